"""Where the class of a sample comes from: a member, a field of its JSON, a WordNet id in its key, or a table."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from lit_robust.core.errors import UserError, printable
from lit_robust.shards.tar import Member, PositionalTar, defect

LABEL_EXTENSION = "cls"
JSON_EXTENSION = "json"
JSON_SOURCE = "json:"
NO_LABEL = -1
LONGEST_LABEL = 64
LONGEST_JSON = 1 << 22
LARGEST = 10**18  # Eighteen digits fit an int64.
WORDNET_ID = re.compile(rb"(?<![A-Za-z0-9])n[0-9]{8}(?![0-9])")


@dataclass(frozen=True)
class LabelRule:
    """How the class of a sample is found; a sample without one has the label -1.

    Attributes:
        source: ``cls``, the member of that name, a class number in digits; ``json:FIELD``, a whole number in that
            field of the sample's ``json`` member; ``wordnet``, the first WordNet id in the key (``n`` and eight
            digits); ``map``, the key itself; or ``auto``, which is ``cls``, unless the split's info file names a field.
        classes: WordNet id or key to class number, for ``wordnet`` and ``map``.
    """

    source: str = "auto"
    classes: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        field = self.source.removeprefix(JSON_SOURCE) if self.source.startswith(JSON_SOURCE) else None
        if self.source not in ("auto", LABEL_EXTENSION, "wordnet", "map") and not field:
            raise UserError(f"There is no label source {self.source!r}: give auto, cls, json:FIELD, wordnet or map.")
        if self.source in ("wordnet", "map") and self.classes is None:
            raise UserError(f"The label source {self.source!r} has no table of classes: give one.")

    def resolve(self, label_field: str | None) -> "LabelRule":
        """Return the rule with ``auto`` settled.

        Args:
            label_field: field of the ``json`` member that the split's info file names, or None.
        """
        if self.source != "auto":
            return self
        return replace(self, source=LABEL_EXTENSION if label_field is None else JSON_SOURCE + label_field)

    def digest(self) -> str:
        """Return what tells this rule from others, as sha256 in hexadecimal."""
        return hashlib.sha256(json.dumps(self.stamp()).encode()).hexdigest()

    def stamp(self) -> list[str]:
        """Return what tells this rule from others in a kept index."""
        table = json.dumps(sorted((self.classes or {}).items()))
        return [self.source, hashlib.sha256(table.encode()).hexdigest()]


CLS = LabelRule(LABEL_EXTENSION)


def find_label(tar: PositionalTar, key: bytes, members: Mapping[str, Member], rule: LabelRule) -> int:
    """Return the class of a sample, or -1 where it has none.

    Args:
        tar: that holds it.
        key: of the sample.
        members: extension in lower case to member.
        rule: a resolved rule.

    Raises:
        DefectError: what should be a class number is something else.
    """
    if rule.source == LABEL_EXTENSION:
        return _from_cls(tar, key, members.get(LABEL_EXTENSION))
    if rule.source.startswith(JSON_SOURCE):
        return _from_json(tar, key, members.get(JSON_EXTENSION), rule.source.removeprefix(JSON_SOURCE))
    classes = rule.classes or {}
    if rule.source == "map":
        return classes.get(key.decode("utf-8", "backslashreplace"), NO_LABEL)
    found = WORDNET_ID.search(key)
    return NO_LABEL if found is None else classes.get(found[0].decode(), NO_LABEL)


def too_high(label: int, num_classes: int) -> str:
    """Return half a sentence, with its fix, about a class that is not one of 0 to ``num_classes - 1``."""
    # The commonest cause: ILSVRC's own ids, and MATLAB, count from 1.
    if label == num_classes:
        return (
            f"class {label}, but {num_classes} classes are numbered from 0 to {label - 1}: subtract 1 from every class"
        )
    return f"class {label}, but the set has {num_classes}: write the class as its number from 0 to {num_classes - 1}"


def text(name: bytes) -> str:
    """Return a name in a tar for a sentence: on one line, bytes that are not UTF-8 in hexadecimal."""
    return printable(name.decode("utf-8", "backslashreplace"))


def _from_cls(tar: PositionalTar, key: bytes, member: Member | None) -> int:
    if member is None:
        return NO_LABEL
    body = tar.read(member.offset, min(member.length, LONGEST_LABEL)).strip()
    if member.length > LONGEST_LABEL or not body.isdigit() or int(body) >= LARGEST:
        what = f"the cls of sample {text(key)} is {text(body)!r}, not a class number"
        defect(tar.path, member.offset, what, "write class numbers of at least 0 as digits")
    return int(body)


def _from_json(tar: PositionalTar, key: bytes, member: Member | None, field: str) -> int:
    if member is None:
        return NO_LABEL
    body = tar.read(member.offset, min(member.length, LONGEST_JSON))
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        defect(tar.path, member.offset, f"the json of sample {text(key)} is not an object", "write the shard again")
    value = content.get(field)
    # timm marks samples whose class is not known by -1, and leaves them out (`readers/reader_wds.py`, `_decode`).
    if value is None or (type(value) is int and value < 0):
        return NO_LABEL
    if type(value) is not int or value >= LARGEST:
        what = f"{field!r} in the json of sample {text(key)} is {str(value)[:40]!r}, not a class number"
        defect(tar.path, member.offset, what, "name another field, or write class numbers of at least 0")
    return value
