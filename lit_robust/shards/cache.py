"""Named arrays in one file, used in place: the index of a split is read once and then mapped into memory.

The file: 8 bytes that name the format, 32 bytes sha256 of all that follows, 8 bytes length of the JSON, the JSON with
every array's type, place and length, then the arrays, each at a multiple of 64 bytes. Nothing in it is executed on
reading.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from lit_robust.core.files import atomic_path, open_regular

MAGIC = b"LRINDEX3"
DIGEST = 32
ALIGNMENT = 64

Arrays = Mapping[str, NDArray[Any]]


def cache_paths(folder: Path, split: str | None, rule: str = "") -> list[Path]:
    """Return where the index of a split may lie: beside the shards, else in the user's cache folder.

    The cache folder is ``$LIT_ROBUST_CACHE``, or ``~/.cache/lit_robust``.

    Args:
        folder: of the shards.
        split: name of the split; None for all tars of the folder.
        rule: what tells a label rule from the usual one; each has an index of its own.
    """
    name = ("all" if split is None else f"split-{quote(split, safe='')}") + (f"-{rule}" if rule else "")
    place = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    # Unlike pathlib's, this leaves the path as it is where nobody knows the home folder.
    user = Path(os.path.expanduser(os.environ.get("LIT_ROBUST_CACHE") or "~/.cache/lit_robust"))  # noqa: PTH111
    return [folder / ".lit_robust" / f"{name}.index", user / f"{folder.resolve().name}-{place}-{name}.index"]


def save_arrays(path: Path, meta: Mapping[str, Any], arrays: Arrays) -> None:
    """Write one-dimensional arrays and plain values, all or nothing.

    Raises:
        UserError: the folder cannot be written.
    """
    entries: dict[str, dict[str, Any]] = {}
    place = 0
    for name, array in arrays.items():
        entries[name] = {"dtype": array.dtype.newbyteorder("<").str, "place": place, "count": len(array)}
        place = _aligned(place + array.nbytes)
    header = json.dumps({"meta": meta, "arrays": entries}).encode()
    with atomic_path(path) as beside, beside.open("wb") as file:
        file.write(MAGIC + bytes(DIGEST) + len(header).to_bytes(8, "little") + header)
        begin = _aligned(file.tell())
        for name, array in arrays.items():
            file.seek(begin + entries[name]["place"])
            file.write(np.ascontiguousarray(array, dtype=entries[name]["dtype"]).data)
        file.truncate(begin + place)
        file.flush()
        digest = hashlib.sha256(np.memmap(beside, np.uint8, "r")[len(MAGIC) + DIGEST :].data).digest()
        file.seek(len(MAGIC))
        file.write(digest)


def load_arrays(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Map a file of `save_arrays` into memory; the arrays cannot be written.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is of another format or damaged.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        content = np.memmap(file, dtype=np.uint8, mode="r")
    body = len(MAGIC) + DIGEST
    if bytes(content[: len(MAGIC)]) != MAGIC:
        raise ValueError(f"{path} is not an index of this version")
    if hashlib.sha256(content[body:].data).digest() != bytes(content[len(MAGIC) : body]):
        raise ValueError(f"{path} is damaged")
    head = body + 8
    begin = head + int.from_bytes(bytes(content[body:head]), "little")
    header = json.loads(bytes(content[head:begin]))
    begin = _aligned(begin)
    arrays = {}
    for name, entry in header["arrays"].items():
        dtype, place = np.dtype(entry["dtype"]), begin + entry["place"]
        arrays[name] = np.frombuffer(content, dtype, entry["count"], place)
    return header["meta"], arrays


def _aligned(place: int) -> int:
    return -(-place // ALIGNMENT) * ALIGNMENT
