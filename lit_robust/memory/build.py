"""Building a memory: keys are written where they belong as they come, by any number of processes, in several runs."""

import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lit_robust.errors import DataError, UserError
from lit_robust.files import UMASK
from lit_robust.memory.chunks import class_order
from lit_robust.memory.directory import KEYS, LABELS, NORMS, array_digest
from lit_robust.memory.manifest import FILE_NAME, Manifest

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
            UserError: the disk is full.
        """
        rows = self.rows[numbers]
        order = np.argsort(rows)
        stored = keys[order].astype(self.manifest.key_type, copy=False)
        entries = np.empty(len(numbers), ENTRY)
        entries["number"], entries["norm"] = numbers, norms
        try:
            _write_rows(part_folder(self.folder) / KEYS, rows[order], stored)
            with self.journal.open("ab") as file:
                file.write(entries.tobytes())
        except OSError as error:
            raise UserError(
                f"Cannot write to {part_folder(self.folder)} ({error.strerror}): free some space, then run it again to "
                "go on."
            ) from error

    def finish(self) -> Manifest:
        """Check that every key is there, take the digests, and move the memory to its place; one process calls this.

        Raises:
            DataError: keys are missing.
        """
        part = part_folder(self.folder)
        norms = np.full(self.manifest.count, np.nan, np.float32)
        for entries in _journals(part):
            norms[self.rows[entries["number"]]] = entries["norm"]
        missing = int(np.isnan(norms).sum())
        if missing:
            raise DataError(
                f"The memory {self.folder} lacks {missing} of {self.manifest.count} keys: run it again without limits "
                "to go on."
            )
        np.save(part / NORMS, norms)
        (part / NORMS).chmod(0o666 & ~UMASK)
        arrays = {name: np.load(part / name, mmap_mode="r") for name in (KEYS, LABELS)}
        finished = replace(
            self.manifest, keys_sha256=array_digest(arrays[KEYS]), labels_sha256=array_digest(arrays[LABELS])
        )
        finished.save(part)
        for journal in part.glob(JOURNAL.format("*")):
            journal.unlink()
        part.replace(self.folder)
        return finished


def begin_memory(folder: Path, manifest: Manifest, labels: NDArray[np.int64]) -> None:
    """Make the files of a new memory, as large as they will be; one process calls this.

    Args:
        folder: of the finished memory.
        manifest: without digests.
        labels: int64 ``[K]``, of each sample, in the samples' order.

    Raises:
        UserError: the disk has no room, or the folder cannot be written.
    """
    part = part_folder(folder)
    try:
        if part.exists():
            shutil.rmtree(part)
        part.mkdir(parents=True)
        need = manifest.count * (manifest.dimensions * np.dtype(manifest.key_type).itemsize + 8 + 4 + ENTRY.itemsize)
        free = shutil.disk_usage(part).free
        if free < need:
            part.rmdir()
            raise UserError(
                f"The memory needs {need / 1e9:.1f} GB and {folder.parent} has {free / 1e9:.1f} GB free: free some "
                "space, choose another folder, or set key_type to float16."
            )
        _make_array(part / KEYS, (manifest.count, manifest.dimensions), manifest.key_type)
        np.save(part / LABELS, np.sort(labels.astype(np.int64)))
        for name in (KEYS, LABELS):
            (part / name).chmod(0o666 & ~UMASK)
    except OSError as error:
        raise UserError(
            f"Cannot write in {folder.parent} ({error.strerror}): choose a folder that can be written."
        ) from error
    manifest.save(part)  # Last: a folder with a manifest is whole.


def is_begun(folder: Path) -> bool:
    """Tell whether a memory was begun and not finished."""
    return (part_folder(folder) / FILE_NAME).is_file()


def resume_memory(folder: Path, manifest: Manifest, labels: NDArray[np.int64]) -> MemoryBuilder:
    """Return the builder of a memory that was begun with the same manifest and labels.

    Raises:
        UserError: it was begun with others.
    """
    part = part_folder(folder)
    found = Manifest.load(part)
    same_labels = found.count == len(labels) and bool((np.load(part / LABELS) == np.sort(labels)).all())
    if replace(found, version=manifest.version) != manifest or not same_labels:
        raise _other_memory(folder)
    return MemoryBuilder(folder, found, class_order(labels), part / JOURNAL.format(uuid.uuid4().hex))


def samples_done(folder: Path, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which samples' keys an unfinished memory holds already, bool ``[K]`` in the samples' order.

    Raises:
        UserError: it is of another number of samples.
    """
    part = part_folder(folder)
    if Manifest.load(part).count != len(labels):
        raise _other_memory(folder)
    done = np.zeros(len(labels), dtype=np.bool_)
    for entries in _journals(part):
        done[entries["number"]] = True
    return done


def _other_memory(folder: Path) -> UserError:
    return UserError(
        f"{part_folder(folder)} holds part of another memory, of another network, layer or other images: remove it, or "
        "choose another folder."
    )


def _journals(part: Path) -> Iterator[NDArray[np.void]]:
    for file in sorted(part.glob(JOURNAL.format("*"))):
        content = file.read_bytes()
        # A process that was killed may have left half an entry at the end.
        yield np.frombuffer(content[: len(content) // ENTRY.itemsize * ENTRY.itemsize], ENTRY)


def _make_array(file: Path, shape: tuple[int, ...], kind: str) -> None:
    """Make a .npy file of zeros, a hole on disk, whose numbers begin with a page: rows of 4 KiB share none."""
    header = np.lib.format.magic(1, 0) + (PAGE - 10).to_bytes(2, "little")
    facts = str({"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape})
    with file.open("wb") as stream:
        stream.write(header + facts.encode().ljust(PAGE - 11) + b"\n")
        stream.truncate(PAGE + int(np.prod(shape)) * np.dtype(kind).itemsize)


def _write_rows(file: Path, rows: NDArray[np.int64], values: NDArray[np.generic]) -> None:
    """Write rows, ascending, of a file of `_make_array`; neighbouring rows in one go."""
    size = values[0].nbytes
    content = memoryview(np.ascontiguousarray(values)).cast("B")
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
