"""One sample as the bytes that stand in a tar: ustar, with time, owner and mode fixed."""

import re
import tarfile
from collections.abc import Mapping

from lit_robust.core.errors import UserError
from lit_robust.shards.labels import LABEL_EXTENSION
from lit_robust.shards.scan import IMAGE_EXTENSIONS

BLOCK = 512
RECORD = 20 * BLOCK  # Tars are filled up to records of 20 blocks.
MODE = 0o644
WORD = re.compile(r"[A-Za-z0-9_.+-]+")


def check_key(key: str) -> None:
    """Raise a UserError where a key is no relative path, or WebDataset would end it early."""
    *folders, base = key.split("/")
    if "." in base or not base or base.startswith("__"):
        raise UserError(f"The key {key!r} cannot be told from an extension or hidden file: give it a plain name.")
    if any(folder in ("", ".", "..") for folder in folders) or not key.isprintable():
        raise UserError(f"The key {key!r} is no relative path of printable letters: give it another name.")


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
