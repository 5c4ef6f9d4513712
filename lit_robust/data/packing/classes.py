"""Class numbers of classes that are known by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lit_robust.core.errors import UserError
from lit_robust.reference import imagenet_names, imagenet_subset, imagenet_wnids

Labels = Literal["auto", "sorted", "imagenet"]


@dataclass(frozen=True)
class Classes:
    """How classes are numbered.

    Attributes:
        numbers: name of a class, as folders or label files have it, to its number.
        names: what to call each class; empty where nobody said.
        rule: half a sentence for the user.
    """

    numbers: dict[str, int]
    names: Sequence[str]
    rule: str


def number_classes(classes: Sequence[str], labels: Labels) -> Classes:
    """Number classes by their place among those given, or among ImageNet's 1,000 WordNet ids.

    Folders named 0, 1 and so on to the last keep their numbers, as in ImageNet-V2, where 10 would sort before 2.

    Args:
        classes: every class once, sorted.
        labels: ``sorted`` or ``imagenet``; ``auto`` is ``imagenet`` for all 1,000 classes and for the 200 of ImageNet-A
            or ImageNet-O, else ``sorted``.

    Raises:
        UserError: a class is none of ImageNet's, where it should be.
    """
    if classes and set(classes) == set(map(str, range(len(classes)))) and labels != "sorted":
        return given_numbers(classes, labels)
    wnids = imagenet_wnids()
    if labels == "imagenet" or (labels == "auto" and _is_known_set(classes)):
        places = {wnid: number for number, wnid in enumerate(wnids)}
        unknown = [name for name in classes if name not in places]
        if unknown:
            raise UserError(
                f"{unknown[0]!r} is none of ImageNet's 1,000 WordNet ids: use --labels sorted for other classes."
            )
        return Classes({name: places[name] for name in classes}, imagenet_names(), "numbered as ImageNet's 1,000")
    english = dict(zip(wnids, imagenet_names(), strict=True))
    numbers = {name: number for number, name in enumerate(classes)}
    return Classes(numbers, [english.get(name, name) for name in classes], "numbered by their sorted names")


def given_numbers(classes: Sequence[str], labels: Labels) -> Classes:
    """Return classes that are numbers already, written as digits.

    Raises:
        UserError: ``labels`` says they are ImageNet's, and one is 1,000 or more; or it is ``auto``, and they begin
            at 1.
    """
    numbers = {name: int(name) for name in classes}
    highest = max(numbers.values(), default=0)
    if labels == "auto" and highest > 1 and set(numbers.values()) == set(range(1, highest + 1)):
        raise UserError(
            f"The classes are numbered 1 to {highest}, but a network's are numbered from 0: subtract 1 from each, or "
            "give --labels sorted to keep them as they are."
        )
    if labels == "sorted" or (labels == "auto" and set(numbers.values()) != set(range(1000))):
        return Classes(numbers, (), "numbered as their names say")
    if highest >= 1000:
        raise UserError(
            f"Class {highest} is none of ImageNet's 1,000, numbered from 0 to 999: subtract 1 from each where they "
            "begin at 1, or leave out --labels imagenet."
        )
    return Classes(numbers, imagenet_names(), "numbered as their names say, ImageNet's 1,000")


def _is_known_set(classes: Sequence[str]) -> bool:
    wnids = imagenet_wnids()
    known = (range(len(wnids)), imagenet_subset("imagenet-a"), imagenet_subset("imagenet-o"))
    return any(set(classes) == {wnids[number] for number in numbers} for numbers in known)
