"""What is wrong with a shard, and where: for one sentence to a user, and for lists of many."""

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lit_robust.core.errors import DataError

COPY_AGAIN = "copy or download the shard again"


@dataclass(frozen=True)
class Defect:
    """What is wrong with a shard, and where.

    Attributes:
        shard: its path or URL.
        offset: byte in it.
        what: half a sentence.
    """

    shard: str
    offset: int
    what: str


class DefectError(DataError):
    """A DataError about one place in a shard."""

    # No argument of the constructor: torch's loaders build a worker's error again from its sentence alone.
    found = Defect("", 0, "")


class CompressedError(DefectError):
    """A DefectError about a shard that is compressed, which no other attempt to read it changes."""


def compressed_error(where: Path | str, kind: str, mend: str) -> CompressedError:
    """Return the error that names a compressed shard, by what it is compressed, and the command that unpacks it."""
    error = CompressedError(f"{where} is compressed by {kind}, so no sample can be read by its place: {mend}.")
    error.found = Defect(str(where), 0, f"it is compressed by {kind}: {mend}")
    return error


def defect_error(where: Path | str, offset: int, what: str, mend: str = COPY_AGAIN) -> DefectError:
    """Return the error that names a shard, a byte in it, and what is wrong there."""
    error = DefectError(f"{where} is defective at byte {offset}, {what}: {mend}.")
    error.found = Defect(str(where), offset, what)
    return error


def defect(where: Path | str, offset: int, what: str, mend: str = COPY_AGAIN) -> NoReturn:
    """Raise the error that names a shard, a byte in it, and what is wrong there."""
    raise defect_error(where, offset, what, mend)
