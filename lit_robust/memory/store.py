"""A memory on disk: a manifest of what it holds, and memory-mapped keys, sorted by class, with labels and norms."""

import ast
import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_robust.core.errors import DataError, UserError, printable
from lit_robust.core.files import file_sha256, open_regular, read_regular, write_text

SCHEMA = 3
OLDER = 2  # Has no digest of its own.
FILE_NAME = "manifest.json"
KEYS, LABELS, NORMS, PROJECTION = "keys.npy", "labels.npy", "norms.npy", "projection.safetensors"
LONGEST = 1 << 24  # Bytes of a JSON file that is read: a manifest has a few thousand.
PIECE = 1 << 26  # Bytes that are hashed in one go, by as many threads as there are.
LONGEST_HEADER = 10_000  # Bytes, as NumPy has it; ours have 4,096 at most.
KeyType = Literal["float32", "float16"]
# What a field of the file must be, where no constructor would say so.
OWN_DIGEST = "manifest_sha256"  # Digest of all other fields of the file.
OBJECTS = ("backbone", "images")
TEXTS = ("layer", "transform", "version", "keys_sha256", "labels_sha256", "norms_sha256", "projection_sha256")
COUNTS = ("count", "dimensions", "num_classes")


@dataclass(frozen=True)
class Manifest:
    """A memory's description; ``manifest.json`` in its folder.

    Attributes:
        backbone: name, number of classes, sha256 of the weights and channel normalisation of the network.
        layer: whose output the keys are, by its name in the network.
        transform: what is done to the output: ``none``, or ``softmax`` over its channels.
        images: which images, and how they were resized, cropped and decoded.
        count: how many keys.
        dimensions: of a key.
        num_classes: how many classes the labels are of.
        key_type: of the stored numbers.
        compression: what was done to the keys since they came from the network, in order.
        keys_sha256: of the stored keys, over the digests of their pieces; empty while the memory is being built.
        labels_sha256: of the labels, in the same way.
        norms_sha256: of the keys' lengths, in the same way.
        projection_sha256: of the file of the principal components; empty where the keys were not projected.
        version: of lit_robust.
    """

    backbone: Mapping[str, Any]
    layer: str
    transform: str
    images: Mapping[str, Any]
    count: int
    dimensions: int
    num_classes: int
    key_type: KeyType
    version: str
    compression: tuple[Mapping[str, Any], ...] = ()
    keys_sha256: str = ""
    labels_sha256: str = ""
    norms_sha256: str = ""
    projection_sha256: str = ""
    schema: int = field(default=SCHEMA)

    @property
    def projects(self) -> bool:
        """Whether the keys were projected on principal components, which lie next to them."""
        return any(step["kind"] == "components" for step in self.compression)

    def save(self, folder: Path) -> None:
        """Write ``manifest.json`` into ``folder``, all of it or nothing."""
        content = asdict(self)
        write_text(folder / FILE_NAME, json.dumps({**content, OWN_DIGEST: _text_digest(content)}, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read the manifest of the memory in ``folder``.

        Raises:
            UserError: there is none, it is not one of this version's, or it has changed since it was written.
        """
        file = folder / FILE_NAME
        try:
            content = read_json(file)
            if "schema" not in content:
                raise ValueError("it has no schema")
            if content["schema"] not in (SCHEMA, OLDER):
                raise UserError(f"{file} has schema {content['schema']!r:.20}, not {SCHEMA}: build the memory again.")
            if content["schema"] == SCHEMA and content.pop(OWN_DIGEST, None) != _text_digest(content):
                raise ValueError("it has changed since it was written")
            _check_types(content)
            return cls(**{**content, "schema": SCHEMA, "compression": tuple(content["compression"])})
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"There is no memory in {folder}: build one with `lit-robust fit` and a CacheModule, or check the path."
            ) from None
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}): make it a file that can be read.") from error
        except ValueError as error:
            raise UserError(f"{file} is not a memory's manifest ({error}): build the memory again.") from error

    def check(self, folder: Path, backbone: Mapping[str, Any], layer: str, transform: str, num_classes: int) -> None:
        """Raise a UserError unless the memory is of this backbone, layer and class count.

        Args:
            folder: of the memory, for the sentence.
            backbone: as `Manifest.backbone`.
            layer: as `Manifest.layer`.
            transform: as `Manifest.transform`.
            num_classes: of the network's own classes.
        """
        if self.num_classes != num_classes:
            raise UserError(
                f"The memory {folder} is of {self.num_classes} classes, and the network of {num_classes}: use the "
                "memory that was built with this network, or build one."
            )
        for what, theirs, ours in (("layer", self.layer, layer), ("transform", self.transform, transform)):
            if theirs != ours:
                raise UserError(
                    f"The memory {folder} holds keys of {what} {theirs!r}, not {ours!r}: set {what} to {theirs}, or "
                    "build another memory."
                )
        differs = first_difference(self.backbone, backbone)
        if differs:
            raise UserError(
                f"The memory {folder} is of another backbone, its {differs}: give the network it was built with, or "
                "build another memory."
            )

    def unfinished(self) -> "Manifest":
        """Return the manifest as it is while the memory is being built: without digests."""
        return replace(self, keys_sha256="", labels_sha256="", norms_sha256="", projection_sha256="")

    def difference(self, other: "Manifest") -> str:
        """Return in words the first thing in which the memory is another than ``other``; empty where in none.

        Neither digests count, which a memory has at its end, nor the version that built it.
        """
        ours, theirs = (asdict(replace(one.unfinished(), version="")) for one in (self, other))
        for name in OBJECTS:
            if differs := first_difference(ours[name], theirs[name]):
                return f"{name}: {differs}"
        return first_difference(ours, theirs)


def first_difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Return in words which value is another, such as ``key type is float32 and not float16``; empty where none is."""
    for name in dict.fromkeys([*theirs, *ours]):
        if theirs.get(name) != ours.get(name):
            return f"{name.replace('_', ' ')} is {as_text(theirs.get(name))} and not {as_text(ours.get(name))}"
    return ""


def as_text(value: Any) -> str:
    """Return a value for a sentence, at most 80 letters of it; of a digest its first digits."""
    if value is None:
        return "unknown"
    text = printable(str(value))
    if isinstance(value, str) and len(value) == 64:
        return f"{text[:12]}..."
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_json(file: Path) -> dict[str, Any]:
    """Return the object that a JSON file next to a memory holds, all its numbers finite and all its text Unicode.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        ValueError: it is too long, or holds something else.
    """
    text = read_regular(file)
    if len(text) > LONGEST:
        raise ValueError(f"it holds {len(text)} bytes, where {LONGEST} are the most")
    try:
        content = json.loads(text, parse_float=_finite, parse_constant=_finite)
        json.dumps(content, ensure_ascii=False).encode()  # Half a surrogate pair has no bytes.
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("it is not an object")
    return content


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds the number {text[:20]}")
    return value


def _text_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_types(content: Mapping[str, Any]) -> None:
    """Raise a ValueError unless every field of a manifest's file is there, and is what it must be."""
    names = {entry.name for entry in fields(Manifest)}
    if content.keys() != names:
        raise ValueError(f"it lacks, or should not have, {', '.join(sorted(content.keys() ^ names))}")
    right = {
        **{name: isinstance(content[name], dict) for name in OBJECTS},
        **{name: isinstance(content[name], str) for name in TEXTS},
        **{name: type(content[name]) is int and 0 < content[name] < 2**63 for name in COUNTS},
        "key_type": content["key_type"] in get_args(KeyType),
        "compression": isinstance(content["compression"], list) and all(map(_is_step, content["compression"])),
    }
    for name, is_right in right.items():
        if not is_right:
            raise ValueError(f"{name} is {as_text(content[name])}")


def _is_step(step: Any) -> bool:
    if not isinstance(step, dict):
        return False
    if step.get("kind") == "components":
        return step.get("on") in ("unit", "raw") and step.get("centring") in ("both", "keys")
    return step.get("kind") == "k-means"


@dataclass(frozen=True, eq=False)
class Memory:
    """An opened memory.

    Attributes:
        folder: where it lies.
        manifest: what it says of itself.
        keys: ``[K, d]``, sorted by class; of unit length unless the manifest says otherwise; mapped, not read.
        labels: int64 ``[K]``, ascending.
        norms: fp32 ``[K]``, the length of each key before it was divided by it.
    """

    folder: Path
    manifest: Manifest
    keys: NDArray[np.floating]
    labels: NDArray[np.int64]
    norms: NDArray[np.float32]

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return keys and labels as tensors on the CPU; the keys stay mapped, and must not be written to."""
        with warnings.catch_warnings():
            # Nobody writes to the keys; a copy of them could be larger than the memory of the machine.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(self.keys), torch.from_numpy(np.array(self.labels))

    def raw(self, rows: slice) -> NDArray[np.float32]:
        """Return some keys as they came from the network, before they were made unit length."""
        return np.asarray(self.keys[rows], dtype=np.float32) * self.norms[rows, None]


def open_memory(folder: Path, check_digest: bool = True) -> Memory:
    """Open a finished memory, after a look at all of it.

    The manifest, its digest, the arrays' types and sizes, the labels' order and range and the lengths' are checked at
    every opening: together some 12 bytes a key are read. The keys are hundreds of times as long; they are read, held
    against their digest and found finite where ``check_digest`` says so.

    Args:
        folder: of the memory.
        check_digest: read all files once and compare their digests; else the bytes of the keys are believed.

    Raises:
        UserError: there is no finished memory in ``folder``.
        DataError: a file of it is missing, cut short, has changed, or holds what no memory can.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    if not manifest.keys_sha256:
        raise UserError(f"The memory in {folder} is not finished: {_how_to_finish(manifest)}.")
    fix = "copy the whole memory, or build it again"
    keys = mapped_array(folder / KEYS, (manifest.count, manifest.dimensions), manifest.key_type, fix)
    labels = mapped_array(folder / LABELS, (manifest.count,), "int64", fix)
    norms = mapped_array(folder / NORMS, (manifest.count,), "float32", fix)
    if manifest.projects and not (folder / PROJECTION).is_file():
        raise DataError(f"{folder / PROJECTION} is missing: {fix}.")
    digests = {
        LABELS: (array_digest(labels), manifest.labels_sha256),
        NORMS: (array_digest(norms), manifest.norms_sha256),
    }
    if manifest.projects:
        digests[PROJECTION] = file_sha256(folder / PROJECTION), manifest.projection_sha256
    if check_digest:
        digests[KEYS] = array_digest(keys), manifest.keys_sha256
    for name, (ours, said) in digests.items():
        if ours != said:
            raise DataError(f"{folder / name} has changed since the memory was built: build it again, or copy it.")
    if labels[0] < 0 or labels[-1] >= manifest.num_classes or bool((np.diff(labels) < 0).any()):
        raise DataError(
            f"{folder / LABELS} holds labels that do not ascend within 0 to {manifest.num_classes - 1}: build the "
            "memory again."
        )
    for name, array in ((NORMS, norms), *(((KEYS, keys),) if check_digest else ())):
        if not all_finite(array):
            raise DataError(f"{folder / name} holds numbers that are not finite: build the memory again.")
    return Memory(folder, manifest, keys, labels, norms)


def _how_to_finish(manifest: Manifest) -> str:
    if not manifest.compression:
        return "run the `lit-robust fit` that builds it again"
    command = "project" if manifest.projects else "cluster"
    return f"remove it, and run the `lit-robust memory {command}` that makes it again"


def all_finite(array: NDArray[Any]) -> bool:
    """Return whether all numbers of an array ``[K, ...]`` are finite; several threads take its pieces in turn."""
    content, length = array.reshape(-1), PIECE // array.itemsize
    pieces = [content[start : start + length] for start in range(0, len(content), length)]
    with ThreadPoolExecutor() as pool:
        return all(pool.map(lambda piece: bool(np.isfinite(piece).all()), pieces))


def array_digest(array: NDArray[np.generic]) -> str:
    """Return the sha256 over the sha256 of an array's pieces, which several threads take in turn."""
    content = array.reshape(-1).view(np.uint8)
    pieces = [content[start : start + PIECE] for start in range(0, len(content), PIECE)]
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(lambda piece: hashlib.sha256(piece).digest(), pieces))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def mapped_array(file: Path, shape: tuple[int, ...], kind: str, fix: str) -> NDArray[Any]:
    """Map a .npy file.

    Args:
        file: it.
        shape: that it must have.
        kind: of its numbers, such as ``float32``.
        fix: what to do where it is not so, for the sentence.

    Raises:
        DataError: it is missing, cut short, no array, or another one.
    """
    wanted = np.dtype(kind)
    try:
        with os.fdopen(open_regular(file), "rb") as stream:
            found, expected = _read_header(stream), {"descr": wanted.str, "fortran_order": False, "shape": shape}
            if found != expected:
                raise DataError(
                    f"{file} holds {printable(str(found))[:200]}, where the manifest says {expected}: {fix}."
                )
            start, size = stream.tell(), os.fstat(stream.fileno()).st_size
            if size != start + math.prod(shape) * wanted.itemsize:
                raise ValueError(f"{size} bytes")
            return np.memmap(stream, wanted, "r", start, shape)
    except FileNotFoundError:
        raise DataError(f"{file} is missing: {fix}.") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): make it readable, or {fix}.") from error
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise DataError(f"{file} is cut short or not an array ({printable(str(error))[:100]}): {fix}.") from error


def _read_header(stream: BinaryIO) -> object:
    """Return what the header of a .npy file says; NumPy's own reader takes seconds over some that are damaged."""
    version = np.lib.format.read_magic(stream)
    length = int.from_bytes(stream.read(2 if version == (1, 0) else 4), "little")
    text = stream.read(min(length, LONGEST_HEADER))
    if len(text) < length:
        raise ValueError("its header is cut short or too long")
    return ast.literal_eval(text.decode("latin-1").strip())
