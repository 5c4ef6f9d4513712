"""A memory on disk: a manifest of what it holds, and memory-mapped keys, sorted by class, with labels and norms."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_robust.core.errors import DataError, UserError
from lit_robust.core.files import write_text

SCHEMA = 2
FILE_NAME = "manifest.json"
KEYS, LABELS, NORMS, PROJECTION = "keys.npy", "labels.npy", "norms.npy", "projection.safetensors"
PIECE = 1 << 26  # Bytes that are hashed in one go, by as many threads as there are.
KeyType = Literal["float32", "float16"]
# What a field of the file must be, where no constructor would say so.
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
        """Whether the keys were projected on principal components, which lie beside them."""
        return any(step["kind"] == "components" for step in self.compression)

    def save(self, folder: Path) -> None:
        """Write ``manifest.json`` into ``folder``, all of it or nothing."""
        write_text(folder / FILE_NAME, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read the manifest of the memory in ``folder``.

        Raises:
            UserError: there is none, or it is not one of this version's.
        """
        file = folder / FILE_NAME
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or "schema" not in content:
                raise ValueError("it has no schema")
            if content["schema"] != SCHEMA:
                raise UserError(f"{file} has schema {content['schema']!r}, not {SCHEMA}: build the memory again.")
            _check_types(content)
            return cls(**{**content, "compression": tuple(content["compression"])})
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"There is no memory in {folder}: build one with `lit-robust fit` and a CacheModule, or check the path."
            ) from None
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}): make it readable.") from error
        except ValueError as error:
            raise UserError(f"{file} is no memory's manifest ({error}): build the memory again.") from error

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
            return f"{name.replace('_', ' ')} is {shown(theirs.get(name))} and not {shown(ours.get(name))}"
    return ""


def shown(value: Any) -> str:
    """Return a value for a sentence; of a digest its first digits."""
    if value is None:
        return "unknown"
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)


def _check_types(content: Mapping[str, Any]) -> None:
    """Raise a ValueError unless every field of a manifest's file is there, and is what it must be."""
    names = {entry.name for entry in fields(Manifest)}
    if content.keys() != names:
        raise ValueError(f"it lacks, or should not have, {', '.join(sorted(content.keys() ^ names))}")
    right = {
        **{name: isinstance(content[name], dict) for name in OBJECTS},
        **{name: isinstance(content[name], str) for name in TEXTS},
        **{name: type(content[name]) is int and content[name] > 0 for name in COUNTS},
        "key_type": content["key_type"] in get_args(KeyType),
        "compression": isinstance(content["compression"], list) and all(map(_is_step, content["compression"])),
    }
    for name, is_right in right.items():
        if not is_right:
            raise ValueError(f"{name} is {content[name]!r}")


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
    """Open a finished memory.

    Args:
        folder: of the memory.
        check_digest: read all files once and compare their digests; else the arrays' sizes alone are compared.

    Raises:
        UserError: there is no finished memory in ``folder``.
        DataError: a file of it is missing, cut short, or has changed.
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
    if check_digest:
        found = {
            KEYS: (array_digest(keys), manifest.keys_sha256),
            LABELS: (array_digest(labels), manifest.labels_sha256),
            NORMS: (array_digest(norms), manifest.norms_sha256),
        }
        if manifest.projects:
            found[PROJECTION] = file_digest(folder / PROJECTION), manifest.projection_sha256
        for name, (ours, said) in found.items():
            if ours != said:
                raise DataError(f"{folder / name} has changed since the memory was built: build it again, or copy it.")
    return Memory(folder, manifest, keys, labels, norms)


def _how_to_finish(manifest: Manifest) -> str:
    if not manifest.compression:
        return "run the `lit-robust fit` that builds it again"
    command = "project" if manifest.projects else "cluster"
    return f"remove it, and run the `lit-robust memory {command}` that makes it again"


def array_digest(array: NDArray[np.generic]) -> str:
    """Return the sha256 over the sha256 of an array's pieces, which several threads take in turn."""
    content = array.reshape(-1).view(np.uint8)
    pieces = [content[start : start + PIECE] for start in range(0, len(content), PIECE)]
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(lambda piece: hashlib.sha256(piece).digest(), pieces))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def file_digest(file: Path) -> str:
    """Return the sha256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
    try:
        array: NDArray[Any] = np.lib.format.open_memmap(file, mode="r")
    except FileNotFoundError:
        raise DataError(f"{file} is missing: {fix}.") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}): make it readable, or {fix}.") from error
    except (EOFError, ValueError) as error:
        raise DataError(f"{file} is cut short or no array ({error}): {fix}.") from error
    if array.shape != shape or array.dtype != np.dtype(kind):
        raise DataError(
            f"{file} holds {array.dtype} {list(array.shape)} where the manifest says {kind} {list(shape)}: {fix}."
        )
    return array
