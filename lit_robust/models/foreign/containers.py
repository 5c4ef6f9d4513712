"""The two containers of ``torch.save``: the zip archive since torch 1.6, and the row of pickles before."""

import io
import pickle
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from lit_robust.core.errors import UserError, printable
from lit_robust.models.foreign.restricted import RestrictedUnpickler, Storage

# What torch writes at the start of its files before 1.6 (torch/serialization.py, MAGIC_NUMBER and PROTOCOL_VERSION).
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# How many times its own size a file may announce: copies of a network share their numbers, as the attacker's does in
# MadryLab's files, and torch.save compresses nothing.
INFLATION = 16


@dataclass(frozen=True)
class Content:
    """What a file of ``torch.save`` holds.

    Attributes:
        value: the saved value; what was neither tensor nor plain container in it is inert.
        foreign: names of the classes and functions that were passed over.
    """

    value: Any
    foreign: tuple[str, ...]


def is_archive(file: Path) -> bool:
    """Return whether a file is a zip archive, as torch.save writes since 1.6.

    Raises:
        UserError: it is a damaged one.
    """
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile as error:  # Its end is one, and says what no archive does.
        raise UserError(f"{file} cannot be read as weights ({_reason(error)}): download or copy it again.") from error


def check_archive(file: Path) -> None:
    """Refuse a zip archive that is damaged, or whose members are said to be far larger than itself.

    The sizes are looked at before any member is read. Then all are read once, as torch's reader compares no checksums.

    Raises:
        UserError: a member is not what was written, they are too large, or the directory is broken.
    """
    if not is_archive(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            announced = sum(member.file_size for member in archive.infolist())
            if announced > INFLATION * file.stat().st_size:
                raise UserError(
                    f"{file} would unpack to {announced} bytes, far more than it holds: no weights file does that."
                )
            # torch.save can be told to reckon no checksums, and then writes zeros (set_crc32_options).
            damaged = archive.testzip() if any(member.CRC for member in archive.infolist()) else None
    except UserError:
        raise
    except Exception as error:  # A crafted directory can end in more than BadZipFile.
        raise UserError(f"{file} cannot be read as weights ({_reason(error)}): download or copy it again.") from error
    if damaged is not None:
        raise UserError(
            f"{file} is damaged, as {printable(damaged)} in it is not what was written: copy it again, or take an "
            "older checkpoint."
        )


def read_restricted(file: Path) -> Content:
    """Read what ``torch.save`` wrote, in either container, onto the CPU, without running anything it names.

    Raises:
        UserError: the file is no such container, is cut short, or is a compiled program (TorchScript).
    """
    try:
        if is_archive(file):
            with zipfile.ZipFile(file) as archive:
                return _read_zip(archive, file)
        with file.open("rb") as stream:
            return _read_legacy(stream, file.stat().st_size)
    except UserError:
        raise
    except Exception as error:  # A crafted or cut pickle can end in any exception of its own making.
        if tarfile.is_tarfile(file):
            raise UserError(f"{file} is a tar archive: unpack it and name the weights inside.") from error
        raise UserError(f"{file} cannot be read as weights ({_reason(error)}): download or copy it again.") from error


def _read_zip(archive: zipfile.ZipFile, file: Path) -> Content:
    # Members are looked up by name and never written to disk, so their names can point nowhere.
    names = set(archive.namelist())
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UserError(f"{file} is a zip archive, but not one of torch.save: unpack it and name the weights inside.")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in names:
        raise UserError(
            f"{file} is a TorchScript program, which is never run here: save the network's state_dict instead."
        )
    order = archive.read(f"{root}byteorder").decode() if f"{root}byteorder" in names else "little"
    loaded: dict[str, Tensor] = {}

    def storage(dtype: torch.dtype | None, key: str, count: int, _view: tuple[Any, ...] | None) -> Storage:
        if key not in loaded:
            loaded[key] = _bytes(archive.read(f"{root}data/{key}"), dtype, order)
        return Storage(loaded[key][: count * _size(dtype)], dtype)

    unpickler = RestrictedUnpickler(io.BytesIO(archive.read(pickles[0])), storage)
    value = unpickler.load()
    return Content(value, tuple(unpickler.foreign))


def _read_legacy(stream: IO[bytes], size: int) -> Content:
    def none(*_: object) -> Storage:
        raise pickle.UnpicklingError("a tensor in the header")

    def header() -> Any:
        return RestrictedUnpickler(stream, none).load()

    if header() != LEGACY_MAGIC or header() != LEGACY_PROTOCOL:
        raise pickle.UnpicklingError("no file of torch.save")
    order = "little" if header().get("little_endian", True) else "big"
    loaded: dict[str, tuple[Tensor, torch.dtype | None]] = {}

    def storage(dtype: torch.dtype | None, key: str, count: int, view: tuple[Any, ...] | None) -> Storage:
        if key not in loaded:
            # The bytes come after the pickle; until then their place is held. A place larger than the file is a lie.
            if sum(len(data) for data, _ in loaded.values()) + count * _size(dtype) > size:
                raise pickle.UnpicklingError("more numbers are announced than the file can hold")
            loaded[key] = torch.zeros(count * _size(dtype), dtype=torch.uint8), dtype
        whole = loaded[key][0]
        if view is None:
            return Storage(whole, dtype)
        _, offset, length = view
        return Storage(whole[offset * _size(dtype) : (offset + length) * _size(dtype)], dtype)

    unpickler = RestrictedUnpickler(stream, storage)
    value = unpickler.load()
    for key in header():
        data, dtype = loaded[str(key)]
        count = int.from_bytes(stream.read(8), order)  # type: ignore[arg-type]
        read = stream.read(len(data))
        if count * _size(dtype) != len(data) or len(read) != len(data):
            raise EOFError("it ends before its last number")
        data.copy_(_bytes(read, dtype, order))
    return Content(value, tuple(unpickler.foreign))


def _size(dtype: torch.dtype | None) -> int:
    return 1 if dtype is None else dtype.itemsize


def _bytes(data: bytes, dtype: torch.dtype | None, order: str) -> Tensor:
    """Return ``data`` as ``[N]`` uint8, its numbers in this machine's byte order."""
    if not data:
        return torch.empty(0, dtype=torch.uint8)
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    if order != sys.byteorder and _size(dtype) > 1:
        # Halves of complex numbers are turned each by itself.
        width = _size(dtype) // 2 if dtype is not None and dtype.is_complex else _size(dtype)
        tensor = tensor.view(-1, width).flip(1).flatten()
    return tensor


def _reason(error: Exception) -> str:
    return printable(" ".join(str(error).split())[:120]) or type(error).__name__
