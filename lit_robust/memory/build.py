"""Building a memory: keys are written where they belong as they come, by any number of processes, in several runs."""

import os
import shutil
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
DONE = "done.npy"  # One byte a row, 1 once its key is written; only while the memory is being built.


def part_folder(folder: Path) -> Path:
    """Return where the memory ``folder`` lies while it is being built."""
    return folder.parent / f"{folder.name}.part"


@dataclass(frozen=True, eq=False)
class MemoryBuilder:
    """Writes keys into an unfinished memory.

    Every process has one of its own. A row is written with positional writes, which do not touch its neighbours, so
    that processes on several machines can share a file; then it is marked as done. A killed build goes on where it
    stopped, and holds no more of the memory than a batch.

    Attributes:
        folder: of the finished memory.
        manifest: without digests.
        rows: int64 ``[K]``, the row of each sample.
    """

    folder: Path
    manifest: Manifest
    rows: NDArray[np.int64]

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
        rows, stored = rows[order], keys[order].astype(self.manifest.key_type)
        try:
            for name, values in (
                (KEYS, stored),
                (NORMS, norms[order].astype(np.float32)),
                (DONE, np.ones(len(rows), np.uint8)),
            ):
                _write_rows(part_folder(self.folder) / name, rows, values)
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
        missing = int((np.load(part / DONE, mmap_mode="r") == 0).sum())
        if missing:
            raise DataError(
                f"The memory {self.folder} lacks {missing} of {self.manifest.count} keys: run it again without limits "
                "to go on."
            )
        arrays = {name: np.load(part / name, mmap_mode="r") for name in (KEYS, LABELS)}
        finished = replace(
            self.manifest, keys_sha256=array_digest(arrays[KEYS]), labels_sha256=array_digest(arrays[LABELS])
        )
        finished.save(part)
        (part / DONE).unlink()
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
        need = manifest.count * (manifest.dimensions * np.dtype(manifest.key_type).itemsize + 13)
        free = shutil.disk_usage(part).free
        if free < need:
            part.rmdir()
            raise UserError(
                f"The memory needs {need / 1e9:.1f} GB and {folder.parent} has {free / 1e9:.1f} GB free: free some "
                "space, choose another folder, or set key_type to float16."
            )
        shapes = {KEYS: (manifest.count, manifest.dimensions), NORMS: (manifest.count,), DONE: (manifest.count,)}
        kinds = {KEYS: manifest.key_type, NORMS: "float32", DONE: "uint8"}
        for name, shape in shapes.items():
            _make_array(part / name, shape, kinds[name])
        np.save(part / LABELS, np.sort(labels.astype(np.int64)))
        for name in (KEYS, NORMS, LABELS, DONE):
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
    return MemoryBuilder(folder, found, class_order(labels))


def samples_done(folder: Path, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which samples' keys an unfinished memory holds already, bool ``[K]`` in the samples' order.

    Raises:
        UserError: it is of another number of samples.
    """
    done = np.load(part_folder(folder) / DONE)
    if len(done) != len(labels):
        raise _other_memory(folder)
    return np.asarray(done[class_order(labels)] == 1)


def _other_memory(folder: Path) -> UserError:
    return UserError(
        f"{part_folder(folder)} holds part of another memory, of another network, layer or other images: remove it, or "
        "choose another folder."
    )


def _make_array(file: Path, shape: tuple[int, ...], kind: str) -> None:
    """Make a .npy file of zeros, a hole on disk, whose numbers begin with a page: so that no two rows share one."""
    header = np.lib.format.magic(1, 0) + (PAGE - 10).to_bytes(2, "little")
    facts = str({"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape})
    with file.open("wb") as stream:
        stream.write(header + facts.encode().ljust(PAGE - 11) + b"\n")
        stream.truncate(PAGE + int(np.prod(shape)) * np.dtype(kind).itemsize)


def _write_rows(file: Path, rows: NDArray[np.int64], values: NDArray[np.generic]) -> None:
    """Write rows, ascending, of a file of `_make_array`; neighbouring rows in one go."""
    size = values[0].nbytes
    ends = np.flatnonzero(np.diff(rows) != 1) + 1
    handle = os.open(file, os.O_WRONLY)
    try:
        for run in np.split(np.arange(len(rows)), ends):
            content = values[run[0] : run[-1] + 1].tobytes()
            place = PAGE + int(rows[run[0]]) * size
            while len(content):
                written = os.pwrite(handle, content, place)
                content, place = content[written:], place + written
    finally:
        os.close(handle)
