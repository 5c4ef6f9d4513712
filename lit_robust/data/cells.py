"""The cells of ImageNet-C: a corruption at a severity."""

from collections.abc import Sequence

from lit_robust.data.settings import check_given
from lit_robust.errors import UserError
from lit_robust.stimuli.corruption_names import ALL_CORRUPTIONS, SEVERITIES

NAME = "imagenet-c"
# The number of a cell in `Batch.group`, whichever cells a run uses.
CELLS = tuple(f"{corruption}/{severity}" for corruption in ALL_CORRUPTIONS for severity in SEVERITIES)
GENERATED = "generated"  # In the info file of shards that `lit-robust data corrupt` wrote.


def chosen_cells(corruptions: Sequence[str], severities: Sequence[int]) -> list[str]:
    """Return the cells of the named corruptions and severities.

    Raises:
        UserError: one is unknown or named twice, or there is none.
    """
    check_given(corruptions=corruptions, severities=severities)
    for given, known, what in ((corruptions, ALL_CORRUPTIONS, "corruptions"), (severities, SEVERITIES, "severities")):
        if not given or len(set(given)) < len(given) or not set(given) <= set(known):
            raise UserError(f"{what} is {list(given)}: name some of {', '.join(map(str, known))}, each once.")
    return [f"{corruption}/{severity}" for corruption in corruptions for severity in severities]
