"""The cells of ImageNet-C: a corruption at a severity."""

from collections.abc import Sequence
from pathlib import Path

from lit_robust.core.errors import UserError
from lit_robust.data.settings import check_given
from lit_robust.stimuli.corruption_names import ALL_CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES

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


def cells_there(folder: Path, cells: Sequence[str]) -> list[str]:
    """Return the cells that have a folder; `lacking` tells of the others.

    Raises:
        UserError: there is none.
    """
    found = [cell for cell in cells if (folder / cell).is_dir()]
    if not found:
        raise UserError(f"{folder} has no folder <corruption>/<severity>, such as {cells[0]}: check the root.")
    return found


def lacking(cells: Sequence[str], wanted: Sequence[str]) -> str:
    """Say which of the benchmark's cells among ``wanted`` are not among ``cells``; empty where all are."""
    benchmark = [cell for cell in wanted if not is_extra(cell)]
    absent = [cell for cell in benchmark if cell not in cells]
    return f"{len(absent)} of {len(benchmark)} cells are not there, the first is {absent[0]}" if absent else ""


def is_extra(cell: str) -> bool:
    """Tell whether a cell is of the four corruptions that enter no mean."""
    return cell.split("/")[0] in EXTRA_CORRUPTIONS
