"""DALI's text index beside a tar, compared with what the tar holds.

The form (NVIDIA DALI, ``tools/wds2idx.py``): a line with the version and the number of samples, then one line a sample
with its members, each as extension, byte of the content, length and, from version 1.2 on, name.
"""

from collections.abc import Mapping
from pathlib import Path

from lit_robust.core.errors import DataError
from lit_robust.core.files import read_regular
from lit_robust.shards.scan import IMAGE_EXTENSIONS, ShardScan

FIELDS = {"v1.0": 3, "v1.1": 3, "v1.2": 4}


def read_dali(path: Path) -> tuple[int, Mapping[int, int]]:
    """Read an index; see `parse_dali`."""
    try:
        return parse_dali(str(path), read_regular(path).decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): mend or remove it.") from error


def parse_dali(where: str, text: str) -> tuple[int, Mapping[int, int]]:
    """Return how many samples an index lists, and their images as byte of the content to length.

    Args:
        where: its path, for errors.
        text: its content.

    Raises:
        DataError: it is malformed.
    """
    lines = text.splitlines()
    try:
        version, count = lines[0].split()
        width = FIELDS[version]
        if int(count) != len(lines) - 1:
            raise ValueError(f"it announces {count} samples and lists {len(lines) - 1}")
        images: dict[int, int] = {}
        for line in lines[1:]:
            words = line.split(" ")
            # A name may hold blanks of its own, so a line cannot be cut at every fourth word.
            starts = _members(words, width)
            images |= {int(words[at + 1]): int(words[at + 2]) for at in starts if words[at].lower() in IMAGE_EXTENSIONS}
    except (IndexError, KeyError, ValueError) as error:
        raise DataError(f"{where} is no index of DALI's ({error}): mend or remove it.") from error
    return int(count), images


def contradiction(scan: ShardScan, count: int, images: Mapping[int, int]) -> tuple[int, str] | None:
    """Return the byte and half a sentence where a tar and its index differ, or None.

    Samples that the scan left out because of a defect are no contradiction.

    Args:
        scan: of the tar.
        count: samples that the index lists.
        images: byte to length, as the index has them.
    """
    if not scan.defects and len(scan.keys) != count:
        return 0, f"it holds {len(scan.keys)} samples, but the index of DALI lists {count}"
    for offset, length in zip(scan.offset.tolist(), scan.length.tolist(), strict=True):
        if images.get(offset) != length:
            said = f"{images[offset]} bytes" if offset in images else "nothing"
            return offset, f"there is an image of {length} bytes, where the index of DALI has {said}"
    return None


def _members(words: list[str], width: int) -> list[int]:
    """Return where each member begins: at a word that two numbers follow, and at least ``width`` words on."""
    starts: list[int] = []
    at = 0
    while at < len(words):
        if at + 2 < len(words) and words[at + 1].isdecimal() and words[at + 2].isdecimal():
            starts.append(at)
            at += width
        elif starts and width > 3:
            at += 1
        else:
            raise ValueError(f"{' '.join(words[at : at + 3])[:60]!r} is no member")
    return starts
