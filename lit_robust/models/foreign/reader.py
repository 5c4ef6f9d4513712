"""What ``torch.save`` wrote, in its zip archive or the row of pickles before 1.6, read without running anything in it.

Python's unpickler imports whatever a file names and calls it. Here a name in a file is looked up in the short table of
``_allowed`` and nowhere else: every other one becomes an inert class, whose objects can be built, called, filled and
given a state, and do nothing. So code that was pickled with tensors, as dill does in the checkpoints of MadryLab's
``robustness``, is passed over whatever the Python version that wrote it.

``torch.load`` with a pickle module of such classes would be some 110 lines shorter; but it compares no checksums,
allocates what an old file announces before it has read a byte of it, unpacks a file that is a tar to disk, and would
have to be entered through its private unpickler. Of a file of 100 MB it takes 0.07 s, this reader with the checksums
0.14 s.
"""

import io
import pickle
import pickletools
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import torch
from torch import Tensor

from lit_robust.core.errors import UserError, printable

# What torch writes at the start of its files before 1.6 (torch/serialization.py, MAGIC_NUMBER and PROTOCOL_VERSION).
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# How many times its own size a file may announce: copies of a network share their numbers, as the attacker's does in
# MadryLab's files, and torch.save compresses nothing.
INFLATION = 16


def _nothing(*_: object, **__: object) -> None:
    """Take anything, do nothing; without a named first argument, so that a file may ask it of a class too."""


class Inert:
    """What stands for an object of a foreign class, or for the result of a foreign function."""

    # All that a pickle can ask of an object: its state, and the items of a list, dict or set.
    __setstate__ = __setitem__ = append = extend = add = _nothing

    def __new__(cls, *_: object, **__: object) -> Self:
        """Build the object, whatever it is built from."""
        return super().__new__(cls)

    def __call__(self, *_: object, **__: object) -> "Inert":
        """Return another inert object: dill makes functions by calls, and calls what it made."""
        return Inert()


class PlainDict(dict[Any, Any]):
    """A dict that takes no attributes from a file, so that its methods stay what they are."""

    __setstate__ = _nothing


class _Function:
    """One of our own functions, wrapped so that a file can call it and change nothing of it."""

    __slots__ = ("_function",)
    __setstate__ = _nothing

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes that tensors are views of.

    Attributes:
        data: ``[N]`` uint8, where N is a multiple of the type's size.
        dtype: the type of the numbers; None where the tensor says it.
    """

    data: Tensor
    dtype: torch.dtype | None

    def view(self, dtype: torch.dtype | None, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        """Return the tensor at ``offset``, counted in elements; torch refuses what leaves the bytes."""
        kind = dtype or self.dtype
        if kind is None:
            raise pickle.UnpicklingError("a tensor has no type")
        numbers = self.data.view(kind)
        # as_strided counts from where the memory begins, which for a view of another storage is before its own start.
        return numbers.as_strided(tuple(shape), tuple(stride), numbers.storage_offset() + offset)


STORAGE_TYPES: dict[str, torch.dtype | None] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": None,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
}


@dataclass(frozen=True, slots=True)
class NotPlain:
    """What stands for a tensor that is not an array of numbers.

    Attributes:
        kind: ``sparse``, ``quantised`` or ``nested``.
    """

    kind: str


@dataclass(frozen=True, slots=True)
class StorageType:
    """What a file's name of a storage class stands for: the type of its numbers."""

    dtype: torch.dtype | None


def _tensor(storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    return storage.view(None, offset, shape, stride)


def _typed_tensor(
    storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], _grad: bool, _hooks: object,
    dtype: torch.dtype, *_: object
) -> Tensor:  # fmt: skip
    return storage.view(dtype, offset, shape, stride)


def _subclass(rebuild: object, _kind: object, arguments: tuple[object, ...], _state: object) -> object:
    return rebuild(*arguments) if isinstance(rebuild, _Function) else Inert()


def _ordered(pairs: object = ()) -> PlainDict:
    # Python 2 pickles an OrderedDict with its items as the argument, Python 3 fills it afterwards.
    return PlainDict(pairs)  # type: ignore[call-overload,no-any-return]


_FUNCTIONS: dict[tuple[str, str], Callable[..., object]] = {
    ("collections", "OrderedDict"): _ordered,
    ("collections", "defaultdict"): lambda *_: PlainDict(),
    ("torch", "Size"): lambda numbers=(): tuple(numbers),
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
    ("torch._tensor", "_rebuild_from_type_v2"): _subclass,
    ("torch._utils", "_rebuild_sparse_tensor"): lambda *_: NotPlain("sparse"),
    ("torch._utils", "_rebuild_sparse_csr_tensor"): lambda *_: NotPlain("sparse"),
    ("torch._utils", "_rebuild_qtensor"): lambda *_: NotPlain("quantised"),
    ("torch._utils", "_rebuild_nested_tensor"): lambda *_: NotPlain("nested"),
}


def _allowed(module: str, name: str) -> object | None:
    """Return what a global of a file stands for; None for a foreign one."""
    if (module, name) in _FUNCTIONS:
        return _Function(_FUNCTIONS[module, name])
    if module in ("torch", "torch.cuda", "torch.storage") and name in STORAGE_TYPES:
        return StorageType(STORAGE_TYPES[name])
    # Looked up in what is there: to ask torch for a name can import a part of it.
    if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
        return vars(torch)[name]  # type: ignore[no-any-return]
    return None


def _refuse_far_marks(file: IO[bytes]) -> None:
    """Refuse a pickle that marks an object by a number beyond its own length; leave ``file`` where it was.

    Python's unpickler makes a table as long as the largest number, so ten bytes could ask for 32 GiB. A mark takes a
    byte and more, so that an honest one is smaller than its place.
    """
    start = file.tell()
    for code, argument, place in pickletools.genops(file):
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > (place or 0):  # type: ignore[operator]
            raise pickle.UnpicklingError("a mark is beyond the file's length")
    file.seek(start)


class RestrictedUnpickler(pickle.Unpickler):
    """Rebuilds tensors, dicts, lists, tuples, sets, texts and numbers; all else becomes ``Inert``.

    Args:
        file: where the pickle begins; read no further than its end.
        storage: from a tensor's type, key and number of elements, and the view of another storage that very old files
            know (key, offset and length in elements), to the bytes.

    Attributes:
        foreign: the names that the file holds and that stand for nothing here, in order of appearance.
    """

    def __init__(
        self, file: IO[bytes], storage: Callable[[torch.dtype | None, str, int, tuple[Any, ...] | None], Storage]
    ) -> None:
        _refuse_far_marks(file)
        # latin1 reads any text that Python 2 wrote; names of tensors are ASCII.
        super().__init__(file, encoding="latin1")
        self._storage = storage
        self._known: dict[tuple[str, str], object] = {}
        self.foreign: list[str] = []

    def find_class(self, module: str, name: str) -> object:
        """Return our own function, type, or an inert class; nothing is ever imported."""
        if (module, name) not in self._known:
            found = _allowed(module, name)
            if found is None:
                found = type("Foreign", (Inert,), {})
                self.foreign.append(printable(f"{module}.{name}"[:200]))
            self._known[module, name] = found
        return self._known[module, name]

    def persistent_load(self, key: Any) -> object:
        """Return the storage that a tensor is a view of, or the class of a module that was pickled with its source."""
        if not isinstance(key, tuple) or not key:
            raise pickle.UnpicklingError("a reference to no storage")
        if key[0] == "module" and len(key) >= 2:
            return key[1]
        if key[0] != "storage" or len(key) < 5 or not isinstance(key[1], StorageType):
            raise pickle.UnpicklingError("a reference to no storage")
        count, view = key[4], key[5] if len(key) > 5 else None
        if not isinstance(count, int) or count < 0:
            raise pickle.UnpicklingError("a storage of no size")
        return self._storage(key[1].dtype, str(key[2]), count, view)


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

    The sizes are looked at before any member is read. Then all are read once, and their checksums compared.

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
            # torch.save has an option that writes zeros in place of checksums (set_crc32_options).
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
        UserError: the file is not such a container, is damaged or cut short, or is a compiled program (TorchScript).
    """
    check_archive(file)
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
    for member in archive.infolist():
        member.CRC = None  # type: ignore[assignment] # All were compared before, where there are any.
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
        return Storage(loaded[key][: count * _item_size(dtype)], dtype)

    unpickler = RestrictedUnpickler(io.BytesIO(archive.read(pickles[0])), storage)
    value = unpickler.load()
    return Content(value, tuple(unpickler.foreign))


def _read_legacy(stream: IO[bytes], size: int) -> Content:
    def none(*_: object) -> Storage:
        raise pickle.UnpicklingError("a tensor in the header")

    def header() -> Any:
        return RestrictedUnpickler(stream, none).load()

    if header() != LEGACY_MAGIC or header() != LEGACY_PROTOCOL:
        raise pickle.UnpicklingError("not a file of torch.save")
    order = "little" if header().get("little_endian", True) else "big"
    loaded: dict[str, tuple[Tensor, torch.dtype | None]] = {}

    def storage(dtype: torch.dtype | None, key: str, count: int, view: tuple[Any, ...] | None) -> Storage:
        if key not in loaded:
            # The bytes come after the pickle; until then their place is held. A place larger than the file is a lie.
            if sum(len(data) for data, _ in loaded.values()) + count * _item_size(dtype) > size:
                raise pickle.UnpicklingError("more numbers are announced than the file can hold")
            loaded[key] = torch.zeros(count * _item_size(dtype), dtype=torch.uint8), dtype
        whole = loaded[key][0]
        if view is None:
            return Storage(whole, dtype)
        _, offset, length = view
        return Storage(whole[offset * _item_size(dtype) : (offset + length) * _item_size(dtype)], dtype)

    unpickler = RestrictedUnpickler(stream, storage)
    value = unpickler.load()
    for key in header():
        data, dtype = loaded[str(key)]
        count = int.from_bytes(stream.read(8), order)  # type: ignore[arg-type]
        read = stream.read(len(data))
        if count * _item_size(dtype) != len(data) or len(read) != len(data):
            raise EOFError("it ends before its last number")
        data.copy_(_bytes(read, dtype, order))
    return Content(value, tuple(unpickler.foreign))


def _item_size(dtype: torch.dtype | None) -> int:
    return 1 if dtype is None else dtype.itemsize


def _bytes(data: bytes, dtype: torch.dtype | None, order: str) -> Tensor:
    """Return ``data`` as ``[N]`` uint8, its numbers in this machine's byte order."""
    if not data:
        return torch.empty(0, dtype=torch.uint8)
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    if order != sys.byteorder and _item_size(dtype) > 1:
        # Halves of complex numbers are turned each by itself.
        width = _item_size(dtype) // 2 if dtype is not None and dtype.is_complex else _item_size(dtype)
        tensor = tensor.view(-1, width).flip(1).flatten()
    return tensor


def _reason(error: Exception) -> str:
    return printable(" ".join(str(error).split())[:120]) or type(error).__name__
