"""Writing the shards of a split: the same bytes for the same samples, all of them or none."""

import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from lit_robust.errors import UserError
from lit_robust.files import atomic_path, write_text
from lit_robust.shards.listing import ALIASES, read_info
from lit_robust.shards.scan import IMAGE_EXTENSIONS, LABEL_EXTENSION

BLOCK = 512
MODE = 0o644
WORD = re.compile(r"[A-Za-z0-9_.+-]+")


class ShardWriter:
    """Writes ``<folder>/<prefix>-<split>-0000.tar`` and so on, and last of all the info file.

    Use it in a ``with`` block. Where the block fails, everything it wrote is removed. Other splits in the folder and
    its info file stay as they are. The tars are ustar with times, owners and modes fixed, and hold the bodies as given.

    Args:
        folder: for the shards; made where it is missing.
        split: name of the split: letters, digits, ``_``, ``.``, ``+`` and ``-``.
        shard_size: samples a tar, at least 1.
        max_bytes: begin another tar before one would grow beyond this; one sample may. None for no limit.
        prefix: first part of the tars' names; None takes the folder's name.
        num_classes: how many classes there are; None takes the count of ``class_names``, where given.
        class_names: name of each class.
        categories: category name to class numbers.

    Raises:
        UserError: the folder holds this split already, cannot be written, or an argument is out of its range.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        shard_size: int = 1000,
        max_bytes: int | None = None,
        prefix: str | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] = (),
        categories: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        if shard_size < 1 or (max_bytes is not None and max_bytes < 1):
            raise UserError(f"shard_size is {shard_size} and max_bytes {max_bytes}: both must be at least 1.")
        if class_names and num_classes not in (None, len(class_names)):
            raise UserError(f"num_classes is {num_classes}, but there are {len(class_names)} class_names: give one.")
        self.folder = Path(folder)
        self.split = split
        self.stem = f"{prefix or self.folder.resolve().name}-{split}"
        if not WORD.fullmatch(split) or not WORD.fullmatch(self.stem):
            raise UserError(f"Shards cannot be named {self.stem!r}: use letters, digits, '_', '.', '+' and '-' only.")
        self.shard_size = shard_size
        self.max_bytes = max_bytes
        self._extras: dict[str, Any] = {}
        if class_names or num_classes is not None:
            self._extras["num_classes"] = len(class_names) if num_classes is None else num_classes
        if class_names:
            self._extras["class_names"] = list(class_names)
        if categories is not None:
            self._extras["categories"] = {name: [int(n) for n in ids] for name, ids in categories.items()}
        self._keys: set[str] = set()
        self._lengths: list[int] = []
        self._written: list[Path] = []
        self._file: BinaryIO | None = None
        self._stack = ExitStack()
        self._count = 0

    def __enter__(self) -> "ShardWriter":
        self._check_free()
        return self

    def write(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append one sample.

        Args:
            key: its name, unique in the split; folders are allowed. A dot in the base name is refused, as WebDataset
                ends a key at the first one. Other letters than ASCII are written as UTF-8.
            members: extension to content; exactly one image (jpg, jpeg, png or webp), which comes first in the tar.
                ``cls`` holds the class number as digits.

        Raises:
            UserError: the key or a member is not allowed, the key was written before, or the disk is full.
        """
        self._check(key, members)
        ordered = sorted(members, key=lambda extension: extension.lower() not in IMAGE_EXTENSIONS)
        blocks = []
        for extension in ordered:
            body = members[extension]
            blocks += [_header(f"{key}.{extension}", len(body)), body, bytes(-len(body) % BLOCK)]
        size = sum(map(len, blocks))
        if self._file is not None and self._is_full(size):
            self._end_shard()
        file = self._begin_shard() if self._file is None else self._file
        self._append(file, b"".join(blocks))
        self._keys.add(key)
        self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException:
            self._remove()
            raise
        if kind is not None:
            self._remove()

    def _check_free(self) -> None:
        path, info = read_info(self.folder)
        there = [name for name in (self.split, ALIASES.get(self.split)) if name in info.get("splits", {})]
        if there:
            raise UserError(f"{path} has a split {there[0]!r} already: remove it, or choose another folder or split.")
        own = re.compile(rf"{re.escape(self.stem)}-\d+\.tar")
        if self.folder.is_dir() and any(own.fullmatch(file.name) for file in self.folder.iterdir()):
            raise UserError(f"{self.folder} holds {self.stem}-*.tar already: remove them, or choose another folder.")

    def _check(self, key: str, members: Mapping[str, bytes]) -> None:
        *folders, base = key.split("/")
        if "." in base or not base or base.startswith("__"):
            raise UserError(f"The key {key!r} cannot be told from an extension or hidden file: give it a plain name.")
        if any(folder in ("", ".", "..") for folder in folders) or not key.isprintable():
            raise UserError(f"The key {key!r} is no relative path of printable letters: give it another name.")
        if key in self._keys:
            raise UserError(f"The key {key!r} is written twice: give each sample a name of its own.")
        lower = [extension.lower() for extension in members]
        if len(set(lower)) < len(lower) or not all(WORD.fullmatch(extension) for extension in lower):
            raise UserError(f"The sample {key!r} has the members {', '.join(members)}: name each once, and plainly.")
        if sum(extension in IMAGE_EXTENSIONS for extension in lower) != 1:
            raise UserError(
                f"The sample {key!r} has the members {', '.join(members)}: give one of {', '.join(IMAGE_EXTENSIONS)}."
            )
        if not all(members[extension] for extension in members if extension.lower() in IMAGE_EXTENSIONS):
            raise UserError(f"The image of sample {key!r} is empty: replace it.")
        label = next((members[extension] for extension in members if extension.lower() == LABEL_EXTENSION), b"0")
        if not re.fullmatch(rb"[0-9]{1,18}", label):
            raise UserError(f"The cls of sample {key!r} is {label!r}: give the class number as digits.")

    def _is_full(self, more: int) -> bool:
        assert self._file is not None
        too_long = self.max_bytes is not None and self._file.tell() + more + 2 * BLOCK > self.max_bytes
        return self._count >= self.shard_size or too_long

    def _path(self) -> Path:
        return self.folder / f"{self.stem}-{len(self._lengths):04d}.tar"

    def _begin_shard(self) -> BinaryIO:
        beside = self._stack.enter_context(atomic_path(self._path()))
        self._file = self._stack.enter_context(beside.open("wb"))
        return self._file

    def _append(self, file: BinaryIO, content: bytes) -> None:
        try:
            file.write(content)
        except OSError as error:
            raise UserError(f"Cannot write {self._path()} ({error.strerror}): free some space.") from error

    def _end_shard(self) -> None:
        assert self._file is not None
        path = self._path()
        # Two blocks of zeros end an archive; tars are filled up to records of 20 blocks.
        self._append(self._file, bytes(2 * BLOCK + -(self._file.tell() + 2 * BLOCK) % (20 * BLOCK)))
        self._file = None
        self._stack.close()
        self._written.append(path)
        self._lengths.append(self._count)
        self._count = 0

    def _finish(self) -> None:
        if self._file is not None:
            self._end_shard()
        if not self._written:
            raise UserError(f"No samples were given for {self.split!r} in {self.folder}: check the source.")
        path, info = read_info(self.folder)
        entry = {
            "name": self.split,
            "filenames": [shard.name for shard in self._written],
            "shard_lengths": self._lengths,
            "num_samples": sum(self._lengths),
            **self._extras,
        }
        info = {**info, "splits": {**info.get("splits", {}), self.split: entry}}
        write_text(path, json.dumps(info, indent=1, ensure_ascii=False) + "\n")

    def _remove(self) -> None:
        for shard in self._written:
            shard.unlink(missing_ok=True)
        self._file = None
        # Left by an error, the block of `atomic_path` removes the shard that was not finished.
        self._stack.__exit__(RuntimeError, RuntimeError("given up"), None)


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, MODE
    try:
        return member.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    except (ValueError, UnicodeEncodeError) as error:
        raise UserError(f"A tar cannot hold the name {name!r} ({error}): shorten it.") from error
