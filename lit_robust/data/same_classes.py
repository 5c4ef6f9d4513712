"""Whether two splits mean the same classes by the same numbers."""

from collections.abc import Sequence
from itertools import zip_longest

from lit_robust.core.errors import UserError
from lit_robust.data.split import Split
from lit_robust.reference import imagenet_names, imagenet_wnids


def check_same_classes(first: Split, other: Split) -> None:
    """Refuse two splits of which a network could not learn the one and answer for the other.

    Their class names are compared, where both have some, with ImageNet's WordNet ids standing for the English names;
    else the counts that their publishers give.

    Raises:
        UserError: a class has another name, or there are more or fewer classes.
    """
    if first.class_names and other.class_names:
        names = zip_longest(_english(first.class_names), _english(other.class_names))
        for number, (here, there) in enumerate(names):
            if here != there:
                raise UserError(
                    f"{other.where} {_has(number, there)}, but {first.where} {_has(number, here)}: both must have the "
                    "same classes in the same order."
                )
    elif None not in (first.num_classes, other.num_classes) and first.num_classes != other.num_classes:
        raise UserError(
            f"{other.where} has {other.num_classes} classes, but {first.where} has {first.num_classes}: both must have "
            "the same classes."
        )


def _has(number: int, name: str | None) -> str:
    return f"has no class {number}" if name is None else f"has {name!r} as class {number}"


def _english(names: Sequence[str]) -> list[str]:
    known = dict(zip(imagenet_wnids(), imagenet_names(), strict=True))
    return [known.get(name, name) for name in names]
