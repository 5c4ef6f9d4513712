"""A pickle reader that rebuilds tensors and plain containers, and runs nothing that a file names.

Python's unpickler imports whatever a file names and calls it. Here a name in a file is looked up in the short table of
``_allowed`` and nowhere else: every other one becomes an inert class, whose objects can be built, called, filled and
given a state, and do nothing. So code that was pickled beside tensors, as dill does in the checkpoints of MadryLab's
``robustness``, is passed over whatever the Python version that wrote it.
"""

import pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, Self

import torch
from torch import Tensor

from lit_robust.core.errors import printable


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
}


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


def _first(tensor: object, *_: object) -> object:
    return tensor


def _subclass(rebuild: object, _kind: object, arguments: tuple[object, ...], _state: object) -> object:
    return rebuild(*arguments) if isinstance(rebuild, _Function) else Inert()


def _ordered(pairs: object = ()) -> PlainDict:
    # Python 2 pickles an OrderedDict with its items as the argument, Python 3 fills it afterwards.
    return PlainDict(pairs)  # type: ignore[call-overload,no-any-return]


def _size(numbers: tuple[int, ...] = ()) -> tuple[int, ...]:
    return tuple(numbers)


_FUNCTIONS: dict[tuple[str, str], Callable[..., object]] = {
    ("collections", "OrderedDict"): _ordered,
    ("collections", "defaultdict"): lambda *_: PlainDict(),
    ("torch", "Size"): _size,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _subclass,
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
