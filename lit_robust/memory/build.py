"""Building a memory: keys are written where they belong as they come, by any number of processes, in several runs."""

import io
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lit_robust.core.errors import DataError, UserError
from lit_robust.core.files import FULL, UMASK, check_space, file_sha256, held_alone, read_regular
from lit_robust.memory.store import (
    FILE_NAME,
    KEYS,
    LABELS,
    NORMS,
    PROJECTION,
    Manifest,
    array_digest,
    mapped_array,
)

SHORTEST = 1e-12  # Length of a vector that is divided by it.
ROWS = 1 << 14  # Keys that are looked at at once.
PAGE = 4096  # Bytes of a file before its numbers: a page of memory.
# Which samples' keys are written, and their norms, as they came: a file a process and start, while a memory is built.
JOURNAL = "written-{}.bin"
ENTRY = np.dtype([("number", "<i8"), ("norm", "<f4")])


def part_folder(folder: Path) -> Path:
    """Return where the memory ``folder`` lies while it is being built."""
    return folder.parent / f"{folder.name}.part"


@dataclass(frozen=True, eq=False)
class MemoryBuilder:
    """Writes keys into an unfinished memory.

    Every process has one of its own. A row is written with positional writes, which do not touch its neighbours, so
    that processes on several machines can share a file; then a journal of the process's own says so. A killed build
    goes on where it stopped, and holds no more of the memory than a batch.

    Attributes:
        folder: of the finished memory.
        manifest: without digests.
        rows: int64 ``[K]``, the row of each sample.
        journal: this process's.
    """

    folder: Path
    manifest: Manifest
    rows: NDArray[np.int64]
    journal: Path

    def write(self, numbers: NDArray[np.int64], keys: NDArray[np.float32], norms: NDArray[np.float32]) -> None:
        """Write the keys of some samples.

        Args:
            numbers: int64 ``[B]``, the samples' numbers.
            keys: ``[B, d]``, of unit length.
            norms: ``[B]``, the lengths they had.

        Raises:
            UserError: the disk is full, the unfinished memory is gone, or a key is not finite.
        """
        if not len(numbers):
            return  # The last batches may leave a rank without images.
        if not (np.isfinite(keys).all() and np.isfinite(norms).all()):
            raise UserError(
                f"The layer {self.manifest.layer!r} gives keys that are not finite: check the network's weights."
            )
        rows = self.rows[numbers]
        order = np.argsort(rows)
        stored = keys[order].astype(self.manifest.key_type, copy=False)
        entries = np.empty(len(numbers), ENTRY)
        entries["number"], entries["norm"] = numbers, norms
        try:
            write_rows(part_folder(self.folder) / KEYS, rows[order], stored)
            with self.journal.open("ab") as file:
                file.write(entries.tobytes())
        except OSError as error:
            raise _cannot_write(part_folder(self.folder), error) from error

    def finish(self) -> Manifest:
        """Check that every key is there, take the digests, and move the memory to its place; one process calls this.

        Nothing is lost where it is killed meanwhile: the journals go last.

        Raises:
            DataError: keys are missing.
            UserError: the disk is full, or the unfinished memory is gone.
        """
        part = part_folder(self.folder)
        norms = np.full(self.manifest.count, np.nan, np.float32)
        for entries in _journals(part, self.manifest.count):
            norms[self.rows[entries["number"]]] = entries["norm"]
        missing = int(np.isnan(norms).sum())
        if missing and part.is_dir():
            raise DataError(
                f"The memory {self.folder} lacks {missing} of {self.manifest.count} keys: run it again without limits "
                "to go on."
            )
        try:
            self._check_written(norms)
            save_array(part / NORMS, norms)
            (part / NORMS).chmod(0o666 & ~UMASK)
            digests = {name: array_digest(np.load(part / name, mmap_mode="r")) for name in (KEYS, LABELS, NORMS)}
            finished = replace(
                self.manifest,
                keys_sha256=digests[KEYS],
                labels_sha256=digests[LABELS],
                norms_sha256=digests[NORMS],
                projection_sha256=file_sha256(part / PROJECTION) if self.manifest.projects else "",
            )
            finished.save(part)
            part.replace(self.folder)
        except OSError as error:
            raise _cannot_write(part, error) from error
        for journal in self.folder.glob(JOURNAL.format("*")):
            journal.unlink()
        return finished

    def _check_written(self, norms: NDArray[np.float32]) -> None:
        """Refuse keys that a journal says were written and that are not there, as after the power failed."""
        part = part_folder(self.folder)
        keys = np.load(part / KEYS, mmap_mode="r")
        for start in range(0, len(keys), ROWS):
            rows = slice(start, start + ROWS)
            # A shorter vector was not made unit length.
            if bool(((norms[rows] > SHORTEST) & ~keys[rows].any(1)).any()):
                raise DataError(f"{part / KEYS} lacks keys that were written: remove {part}, then run it again.")


def building_alone(folder: Path) -> AbstractContextManager[None]:
    """Return a context in which no other process builds the memory ``folder``; for one process of a run.

    Raises:
        UserError: another process builds it.
    """
    taken = f"Another process builds the memory {folder}: wait for it, or name another folder."
    return held_alone(folder.parent / f".{folder.name}.lock", taken)


def check_place(folder: Path) -> None:
    """Raise a UserError where no memory can be built or go on: something is there already.

    Args:
        folder: of the memory.
    """
    if (folder / FILE_NAME).is_file():
        raise UserError(f"There is a memory {folder} already: use it, remove it, or name another folder.")
    if folder.exists():
        raise UserError(f"{folder} is there already, and is not a memory: name another folder.")
    part = part_folder(folder)
    if part.exists() and not is_begun(folder):
        raise UserError(
            f"{part} is there already, where the memory would be built, and is not part of one: name another folder, "
            "or move that away."
        )
    for around in folder.resolve().parents:
        if (around / FILE_NAME).is_file():
            raise UserError(f"{folder} would lie inside the memory {around}: name a folder next to it.")


def begin_memory(folder: Path, manifest: Manifest, labels: NDArray[np.int64]) -> None:
    """Make the files of a new memory, as large as they will be, all of them or none; one process calls this.

    Args:
        folder: of the finished memory.
        manifest: without digests.
        labels: int64 ``[K]``, of each sample, in the samples' order.

    Raises:
        UserError: the disk has no room, the folder cannot be written, or something is there already.
    """
    check_place(folder)
    part = part_folder(folder)
    if is_begun(folder):
        raise UserError(
            f"{part} holds a memory that another run began: wait for it, or remove that folder where it was given up."
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{part.name}.", dir=folder.parent))
        try:
            check_room(folder, manifest.count, manifest.dimensions, manifest.key_type)
            make_array(temporary / KEYS, (manifest.count, manifest.dimensions), manifest.key_type)
            save_array(temporary / LABELS, np.sort(labels.astype(np.int64)))
            for name in (KEYS, LABELS):
                (temporary / name).chmod(0o666 & ~UMASK)
            manifest.save(temporary)
            temporary.chmod(0o777 & ~UMASK)
            temporary.replace(part)
        except BaseException:
            shutil.rmtree(temporary)
            raise
    except OSError as error:
        fix = "free some space, or choose another folder" if error.errno in FULL else "choose one that can be written"
        raise UserError(f"Cannot write in the folder {folder.parent} ({error.strerror}): {fix}.") from error


def check_room(folder: Path, count: int, dimensions: int, key_type: str) -> None:
    """Refuse to write keys that the disk has no room for.

    Args:
        folder: of the memory.
        count: keys that are yet to be written.
        dimensions: of a key.
        key_type: ``float32`` or ``float16``.

    Raises:
        UserError: there is no room for them, their labels, norms and journal.
    """
    need = count * (dimensions * np.dtype(key_type).itemsize + 8 + 4 + ENTRY.itemsize)
    smaller = "set key_type to float16" if key_type != "float16" else ""
    check_space(folder.parent, need, f"The {count:,} keys of {folder}", smaller)


def is_begun(folder: Path) -> bool:
    """Return whether a memory was begun and not finished."""
    return (part_folder(folder) / FILE_NAME).is_file()


def resume_memory(folder: Path, manifest: Manifest, labels: NDArray[np.int64]) -> MemoryBuilder:
    """Return the builder of a memory that was begun with the same manifest and labels.

    Raises:
        UserError: it was begun with others.
        DataError: a file of it is missing or broken.
    """
    part = part_folder(folder)
    found = Manifest.load(part)
    differs = found.difference(manifest)
    if differs:
        raise _other_memory(folder, differs)
    fix = f"remove {part}, then run it again"
    mapped_array(part / KEYS, (found.count, found.dimensions), found.key_type, fix)
    if not np.array_equal(mapped_array(part / LABELS, (found.count,), "int64", fix), np.sort(labels)):
        raise _other_memory(folder, "labels are others")
    return MemoryBuilder(folder, found.unfinished(), class_order(labels), part / JOURNAL.format(uuid.uuid4().hex))


def samples_done(folder: Path, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which samples' keys an unfinished memory holds already, bool ``[K]`` in the samples' order.

    Of a memory that was not begun these are none.

    Raises:
        UserError: it is of another number of samples.
    """
    done = np.zeros(len(labels), dtype=np.bool_)
    if not is_begun(folder):
        return done
    count = Manifest.load(part_folder(folder)).count
    if count != len(labels):
        raise _other_memory(folder, f"count is {count} and not {len(labels)}")
    for entries in _journals(part_folder(folder), count):
        done[entries["number"]] = True
    return done


def _other_memory(folder: Path, differs: str) -> UserError:
    return UserError(
        f"{part_folder(folder)} holds part of another memory, whose {differs}: set it as it was to go on, remove that "
        "folder, or choose another."
    )


def _cannot_write(part: Path, error: OSError) -> UserError:
    if not part.is_dir():
        return UserError(f"{part} was finished or removed by another process: let one run at a time build a memory.")
    fix = "free some space" if error.errno in FULL else "see that all of it can be written"
    return UserError(f"Cannot write to {part} ({error.strerror}): {fix}, then run it again.")


def _journals(part: Path, count: int) -> Iterator[NDArray[np.void]]:
    for file in sorted(part.glob(JOURNAL.format("*"))):
        content = read_regular(file)
        # A process that was killed may have left half an entry at the end.
        entries = np.frombuffer(content[: len(content) // ENTRY.itemsize * ENTRY.itemsize], ENTRY)
        if bool(((entries["number"] < 0) | (entries["number"] >= count)).any()):
            raise DataError(f"{file} is damaged: remove {part}, then run it again.")
        yield entries


def make_array(file: Path, shape: tuple[int, ...], kind: str) -> None:
    """Make a .npy file of zeros, a hole on disk, whose numbers begin with a page: rows of 4 KiB share none.

    Args:
        file: it.
        shape: of the array.
        kind: of its numbers, such as ``float32``.
    """
    header = np.lib.format.magic(1, 0) + (PAGE - 10).to_bytes(2, "little")
    facts = str({"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape})
    with file.open("wb") as stream:
        stream.write(header + facts.encode().ljust(PAGE - 11) + b"\n")
        stream.truncate(PAGE + int(np.prod(shape)) * np.dtype(kind).itemsize)


def save_array(file: Path, array: NDArray[np.generic]) -> None:
    """Write a .npy file that fits into RAM; NumPy itself writes to a file without saying why it cannot."""
    content = io.BytesIO()
    np.save(content, array)
    file.write_bytes(content.getbuffer())


def write_rows(file: Path, rows: NDArray[np.int64], values: NDArray[np.generic]) -> None:
    """Write some rows of a file of `make_array`; neighbouring ones in one go.

    Args:
        file: it.
        rows: int64 ``[B]``, at least one, ascending.
        values: ``[B, d]``, of the file's own type.
    """
    size = values[0].nbytes
    content = np.ascontiguousarray(values).data.cast("B")
    begins = np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist()
    handle = os.open(file, os.O_WRONLY)
    try:
        for begin, end in zip(begins, [*begins[1:], len(rows)], strict=True):
            left, place = content[begin * size : end * size], PAGE + int(rows[begin]) * size
            while len(left):
                written = os.pwrite(handle, left, place)
                left, place = left[written:], place + written
    finally:
        os.close(handle)


def class_order(labels: NDArray[np.int64] | Sequence[int]) -> NDArray[np.int64]:
    """Return the row of each sample in a class-sorted memory: by class, and within one by the sample's number.

    Example:
        >>> class_order([2, 0, 2, 1]).tolist()
        [2, 0, 3, 1]
    """
    order = np.argsort(np.asarray(labels), kind="stable")
    rows = np.empty(len(order), dtype=np.int64)
    rows[order] = np.arange(len(order))
    return rows
