"""`lit-robust data corrupt`: clean shards to shards like ImageNet-C's, each cell (corruption, severity) a folder."""

from collections.abc import Sequence
from pathlib import Path

from lit_robust.core.errors import UserError
from lit_robust.data.loading.splits import Reading, open_table
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.data.packing.derivation import Derivation, Encoding
from lit_robust.data.packing.deriving import derive
from lit_robust.data.settings import check_given
from lit_robust.stimuli.corrupted import Corrupted
from lit_robust.stimuli.corruption_names import ALL_CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES

PUBLISHED = "imagenet-c"
# The number of a cell in `Batch.group`, whichever cells a run uses.
CELLS = tuple(f"{corruption}/{severity}" for corruption in ALL_CORRUPTIONS for severity in SEVERITIES)


def chosen_cells(
    corruptions: Sequence[str], severities: Sequence[int], known: Sequence[str] = ALL_CORRUPTIONS
) -> list[str]:
    """Return the cells of the named corruptions and severities.

    Args:
        corruptions: names.
        severities: 1 to 5.
        known: the names there are; those that can be made by default.

    Raises:
        UserError: one is unknown or named twice, or there is none.
    """
    check_given("corruptions", corruptions)
    check_given("severities", severities)
    for given, there, what in ((corruptions, known, "corruptions"), (severities, SEVERITIES, "severities")):
        if not given or len(set(given)) < len(given) or not set(given) <= set(there):
            raise UserError(f"{what} is {list(given)}: name some of {', '.join(map(str, there))}, each once.")
    return [f"{corruption}/{severity}" for corruption in corruptions for severity in severities]


def cells_there(folder: Path, cells: Sequence[str]) -> list[str]:
    """Return the cells that have a folder; `lacking` names the others.

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


SPLIT = "val"
JPEG_QUALITY = 85  # Of the published files.


def corrupt_shards(
    source: Path,
    output: Path,
    split: str,
    corruptions: Sequence[str],
    severities: Sequence[int],
    seed: int,
    crop: EvaluationCrop,
    frost: Path | None,
    encoding: Encoding,
    workers: int,
    shard_size: int = 1000,
) -> int:
    """Write every image of a split under every corruption to ``<output>/<corruption>/<severity>/``, split ``val``.

    What an earlier call with the same settings finished is kept.

    Args:
        source: folder of the clean shards.
        output: folder for the cells; not named ``imagenet-c``, which these are not.
        split: of the clean shards.
        corruptions: names.
        severities: 1 to 5.
        seed: of all draws.
        crop: before the corruption.
        frost: folder of frost pictures; None draws frost.
        encoding: ``jpg``, quality 85 as the published files, or ``png``.
        workers: processes; each writes a shard at a time.
        shard_size: images a tar.

    Returns:
        How many cells were written.

    Raises:
        UserError: the output belongs to other settings, a name is unknown, or the disk is too small.
    """
    if output.resolve().name == PUBLISHED:
        raise UserError(f"{output} would pass for the published ImageNet-C: name the folder imagenet-c-like.")
    cells = chosen_cells(corruptions, severities)
    clean = open_table(source, split, Reading())
    sets = []
    for cell in cells:
        corruption, _, severity = cell.partition("/")
        stimulus = Corrupted(corruption=corruption, severity=int(severity), seed=seed, frost=frost)
        sets.append(
            Derivation(
                source=clean,
                folder=output / cell,
                split=SPLIT,
                stimulus=stimulus,
                crop=crop,
                encoding=encoding,
                quality=JPEG_QUALITY,
                shard_size=shard_size,
                by="lit-robust data corrupt",
                what="the corrupted images",
            )
        )
    return len(derive(sets, workers, "corrupting"))
