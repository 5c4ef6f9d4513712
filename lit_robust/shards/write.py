"""Writing the shards of a split: the same bytes for the same samples, all of them or none.

The tars are ustar, with time, owner and mode fixed.
"""

import hashlib
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from lit_robust.core.errors import UserError
from lit_robust.core.files import atomic_path, held_alone, write_text
from lit_robust.shards.info import GENERATED, read_info
from lit_robust.shards.labels import LABEL_EXTENSION
from lit_robust.shards.listing import ALIASES, UNFINISHED
from lit_robust.shards.scan import IMAGE_EXTENSIONS

BLOCK = 512
RECORD = 20 * BLOCK  # Tars are filled up to records of 20 blocks.
MODE = 0o644
WORD = re.compile(r"[A-Za-z0-9_.+-]+")


def check_key(key: str) -> None:
    """Raise a UserError where a key is not a relative path, or WebDataset would end it early."""
    *folders, base = key.split("/")
    if "." in base or not base or base.startswith("__"):
        raise UserError(
            f"The key {key!r} cannot be distinguished from an extension or a hidden file: give it a plain name."
        )
    if any(folder in ("", ".", "..") for folder in folders) or not key.isprintable():
        raise UserError(f"The key {key!r} is not a relative path of printable letters: give it another name.")


def sample_bytes(key: str, members: Mapping[str, bytes]) -> bytes:
    """Return one sample as it stands in a tar: the image first, each member with its header and padding.

    Args:
        key: its name, see `ShardWriter.write`.
        members: extension to content, see `ShardWriter.write`.

    Raises:
        UserError: the key or a member is not allowed.
    """
    check_key(key)
    _check_members(key, members)
    blocks = []
    for extension in sorted(members, key=lambda extension: extension.lower() not in IMAGE_EXTENSIONS):
        body = members[extension]
        blocks += [header(f"{key}.{extension}", len(body)), body, bytes(-len(body) % BLOCK)]
    return b"".join(blocks)


def header(name: str, size: int) -> bytes:
    """Return a member's ustar header, one block, with time, owner and mode fixed.

    Raises:
        UserError: the name is too long for the format, or no Unicode.
    """
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, MODE
    try:
        return member.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
    except (ValueError, UnicodeEncodeError) as error:
        raise UserError(f"A tar cannot hold the name {name!r} ({error}): shorten it.") from error


def end_bytes(size: int) -> bytes:
    """Return what ends a tar of ``size`` bytes: two blocks of zeros, and more up to a whole record."""
    return bytes(2 * BLOCK + -(size + 2 * BLOCK) % RECORD)


def _check_members(key: str, members: Mapping[str, bytes]) -> None:
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


class ShardWriter:
    """Writes ``<folder>/<prefix>-<split>-0000.tar`` and so on, and last of all the info file.

    Use it in a ``with`` block. Where the block fails, everything it wrote is removed. Other splits in the folder and
    its info file stay as they are. The tars are ustar with times, owners and modes fixed, and hold the bodies as given.

    Args:
        folder: for the shards; made where it is missing.
        split: name of the split: letters, digits, ``_``, ``.``, ``+`` and ``-``.
        shard_size: samples a tar, at least 1.
        prefix: first part of the tars' names; None takes the folder's name.
        num_classes: how many classes there are; None takes the count of ``class_names``, where given.
        class_names: name of each class.
        categories: category name to class numbers.
        generated: plain values that say what chose or made the images; results carry them.

    Raises:
        UserError: the folder holds this split already, cannot be written, or an argument is out of its range.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        shard_size: int = 1000,
        prefix: str | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] = (),
        categories: Mapping[str, Sequence[int]] | None = None,
        generated: Mapping[str, Any] | None = None,
    ) -> None:
        if shard_size < 1:
            raise UserError(f"shard_size is {shard_size}: give 1 or more.")
        if class_names and num_classes not in (None, len(class_names)):
            raise UserError(f"num_classes is {num_classes}, but there are {len(class_names)} class_names: give one.")
        self.folder = Path(folder)
        self.split = split
        self.stem = shard_stem(self.folder, split, prefix)
        self.shard_size = shard_size
        self._extras: dict[str, Any] = {}
        if class_names or num_classes is not None:
            self._extras["num_classes"] = len(class_names) if num_classes is None else num_classes
        if class_names:
            self._extras["class_names"] = list(class_names)
        if categories is not None:
            self._extras["categories"] = {name: [int(n) for n in ids] for name, ids in categories.items()}
        if generated is not None:
            self._extras[GENERATED] = dict(generated)
        self._keys: set[str] = set()
        self._lengths: list[int] = []
        self._digests: list[str] = []
        self._digest = hashlib.sha256()
        self._written: list[Path] = []
        self._file: BinaryIO | None = None
        self._stack = ExitStack()
        self._lock = ExitStack()
        self._count = 0

    def __enter__(self) -> "ShardWriter":
        with ExitStack() as stack:
            stack.enter_context(sole_writer(self.folder, self.stem))
            check_absent(self.folder, self.split, self.stem)
            remove_leftovers(self.folder, any_shard(self.stem))
            write_text(unfinished_mark(self.folder, self.stem), "")
            self._lock = stack.pop_all()
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
        if key in self._keys:
            raise UserError(f"The key {key!r} is written twice: give each sample a name of its own.")
        content = sample_bytes(key, members)
        if self._count >= self.shard_size:
            self._end_shard()
        file = self._begin_shard() if self._file is None else self._file
        self._append(file, content)
        self._keys.add(key)
        self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            try:
                if kind is None:
                    self._finish()
            except BaseException:
                self._remove()
                raise
            if kind is not None:
                self._remove()

    def _path(self) -> Path:
        return self.folder / shard_name(self.stem, len(self._lengths))

    def _begin_shard(self) -> BinaryIO:
        temporary = self._stack.enter_context(atomic_path(self._path()))
        self._file = self._stack.enter_context(temporary.open("wb"))
        return self._file

    def _append(self, file: BinaryIO, content: bytes) -> None:
        self._digest.update(content)
        try:
            file.write(content)
        except OSError as error:
            raise UserError(f"Cannot write {self._path()} ({error.strerror}): free some space.") from error

    def _end_shard(self) -> None:
        assert self._file is not None
        path = self._path()
        self._append(self._file, end_bytes(self._file.tell()))
        self._file = None
        self._stack.close()
        self._written.append(path)
        self._lengths.append(self._count)
        self._digests.append(self._digest.hexdigest())
        self._digest, self._count = hashlib.sha256(), 0

    def _finish(self) -> None:
        if self._file is not None:
            self._end_shard()
        if not self._written:
            raise UserError(f"No samples were given for {self.split!r} in {self.folder}: check the source.")
        names = [shard.name for shard in self._written]
        write_entry(self.folder, self.split, names, self._lengths, self._digests, self._extras)
        unfinished_mark(self.folder, self.stem).unlink(missing_ok=True)

    def _remove(self) -> None:
        for shard in self._written:
            shard.unlink(missing_ok=True)
        unfinished_mark(self.folder, self.stem).unlink(missing_ok=True)
        self._file = None
        # Left by an error, the block of `atomic_path` removes the shard that was not finished.
        self._stack.__exit__(RuntimeError, RuntimeError("given up"), None)


def sole_writer(folder: Path, stem: str, what: str | None = None) -> AbstractContextManager[None]:
    """Return a context in which nobody else writes the tars ``<stem>-*.tar``, in messages ``what``, in a folder."""
    taken = f"Another run writes {what or f'{stem}-*.tar'} in {folder}: wait for it, or end it."
    return held_alone(folder / f".{stem}.lock", taken)


def shard_stem(folder: Path, split: str, prefix: str | None = None) -> str:
    """Return how the names of a split's tars begin: ``<prefix>-<split>``; without a prefix the folder's name is it.

    Raises:
        UserError: the name has other characters than letters, digits, ``_``, ``.``, ``+`` and ``-``.
    """
    stem = f"{prefix or folder.resolve().name}-{split}"
    if not WORD.fullmatch(split) or not WORD.fullmatch(stem):
        raise UserError(f"Shards cannot be named {stem!r}: use letters, digits, '_', '.', '+' and '-' only.")
    return stem


def shard_name(stem: str, number: int) -> str:
    """Return the name of a split's tar ``number``, from 0."""
    return f"{stem}-{number:04d}.tar"


def any_shard(stem: str) -> str:
    """Return the regular expression of the names of a split's tars."""
    return rf"{re.escape(stem)}-\d+\.tar"


def unfinished_mark(folder: Path, stem: str) -> Path:
    """Return the hidden file that is there while a split is being written, and after a kill: its tars are not read."""
    return folder / f".{stem}{UNFINISHED}"


def check_absent(folder: Path, split: str, stem: str) -> None:
    """Raise a UserError where the folder's info file has the split, or tars of its names are there."""
    path, info = read_info(folder)
    there = [name for name in (split, ALIASES.get(split)) if name in info.get("splits", {})]
    if there:
        raise UserError(f"{path} has a split {there[0]!r} already: choose another folder or split, or delete this one.")
    if folder.is_dir() and any(re.fullmatch(any_shard(stem), file.name) for file in folder.iterdir()):
        raise UserError(f"{folder} holds {stem}-*.tar already: remove them, or choose another folder.")


def remove_leftovers(folder: Path, name: str) -> None:
    """Remove the hidden files next to those of a name that `atomic_path` could not, as its process was killed.

    Args:
        folder: that they lie in; may be missing.
        name: regular expression of the whole name of the files that were to be.
    """
    left = re.compile(rf"\.(?:{name})\.[^.]+")
    for file in folder.iterdir() if folder.is_dir() else ():
        if left.fullmatch(file.name):
            file.unlink(missing_ok=True)


def write_entry(
    folder: Path,
    split: str,
    names: Sequence[str],
    lengths: Sequence[int],
    digests: Sequence[str],
    extras: Mapping[str, Any],
) -> None:
    """Put a split into the folder's info file; its other content stays.

    Args:
        folder: with the tars and the info file.
        split: name of the split.
        names: of the tars, in order.
        lengths: samples in each.
        digests: sha256 of each, in hexadecimal; `data verify` compares them, and what reads a stream.
        extras: what else the split's entry shall say, such as ``num_classes``.
    """
    entry = {
        "name": split,
        "filenames": list(names),
        "shard_lengths": list(lengths),
        "shard_sha256": list(digests),
        "num_samples": sum(lengths),
    }
    # Two splits that are finished at a time must both stand there.
    with held_alone(folder / ".info.lock"):
        path, info = read_info(folder)
        remove_leftovers(folder, re.escape(path.name))
        info = {**info, "splits": {**info.get("splits", {}), split: {**entry, **extras}}}
        write_text(path, json.dumps(info, indent=1, ensure_ascii=False) + "\n")
