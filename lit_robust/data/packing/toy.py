"""The toy data on disk: drawn figures in the layouts of the real image sets."""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from lit_robust.core.errors import UserError, check_count
from lit_robust.core.seeds import stream_seed
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.data.packing import default_workers
from lit_robust.data.packing.corrupting import chosen_cells, corrupt_shards
from lit_robust.data.packing.deriving import announce
from lit_robust.data.settings import LARGEST_SIDE
from lit_robust.shards import ShardWriter
from lit_robust.shards.info import read_info
from lit_robust.stimuli.corruption_names import CORRUPTIONS, SEVERITIES
from lit_robust.stimuli.figures import (
    CLASS_NAMES,
    HARD,
    OUTLINES,
    PLAIN,
    Layout,
    agreeing_cues,
    conflicting_cues,
    draw_figure,
    novel_cues,
    stylized_cues,
)

SHARD_SIZE = 1000
MOST_FIGURES = 1_000_000  # Their numbers in the names have six digits.


@dataclass(frozen=True)
class ToySet:
    """One split of one set: where it lies, and the cues of its figures."""

    folder: str
    split: str
    cues: Sequence[tuple[int, int]]
    layout: Layout = PLAIN


def toy_sets(train: int, test: int) -> list[ToySet]:
    """Return what `write_toy_data` draws.

    Args:
        train: figures of each training split.
        test: figures of every other split; one in eight cue-conflict figures is without conflict.
    """
    same = test // len(CLASS_NAMES)
    return [
        ToySet("imagenet", "train", agreeing_cues(train)),
        ToySet("imagenet", "val", agreeing_cues(test)),
        ToySet("stylized-imagenet", "train", stylized_cues(train)),
        ToySet("stylized-imagenet", "val", stylized_cues(test)),
        ToySet("cue-conflict", "test", [*conflicting_cues(test - same), *agreeing_cues(same)]),
        ToySet("imagenet-a", "test", agreeing_cues(test), HARD),
        ToySet("imagenet-o", "test", novel_cues(test)),
    ]


def write_toy_data(
    output: Path,
    seed: int,
    train: int = 4000,
    test: int = 512,
    size: int = 48,
    severities: Sequence[int] = SEVERITIES,
) -> None:
    """Draw all sets and write them as shards; the same bytes for the same arguments.

    ``imagenet-c-like`` holds the validation figures under the 15 corruptions of ImageNet-C. Labels are the class of the
    outline; in ``imagenet-o``, whose outlines have no class, the number of the outline among those never trained.

    Args:
        output: folder for the sets.
        seed: of the figures; every split draws from a stream of its own.
        train: figures of each training split.
        test: figures of every other split.
        size: side of a figure in pixels.
        severities: of the corruptions; none for no corrupted figures.

    Raises:
        UserError: a severity is none, one of the splits is there already, or the folder cannot be written.
    """
    check_count("train", train, 1, MOST_FIGURES)
    check_count("test", test, len(CLASS_NAMES), MOST_FIGURES)
    check_count("size", size, 16, LARGEST_SIDE)
    if severities:
        chosen_cells(CORRUPTIONS, severities)
    sets = toy_sets(train, test)
    for toy in sets:
        path, info = read_info(output / toy.folder)
        if toy.split in info.get("splits", {}):
            raise UserError(f"{path} has a split {toy.split!r} already: choose another folder, or delete that one.")
    start, total = time.perf_counter(), sum(len(toy.cues) for toy in sets)
    first = [len(_file(toy, 0, size, seed)) for toy in sets]
    seconds = (time.perf_counter() - start) * total / len(sets)
    announce(f"drawing {total:,} figures", sum(first) * total / len(sets), seconds)
    with tqdm(total=total, desc="drawing", unit="figure") as progress:
        for toy in sets:
            _write_set(output / toy.folder, toy, size, seed, progress)
    if severities:
        corrupt_shards(
            output / "imagenet",
            output / "imagenet-c-like",
            split="val",
            corruptions=CORRUPTIONS,
            severities=severities,
            seed=seed,
            crop=EvaluationCrop(resize=None, crop=None),
            frost=None,
            encoding="png",
            workers=default_workers(),
            shard_size=SHARD_SIZE,
        )


def _write_set(folder: Path, toy: ToySet, size: int, seed: int, progress: "tqdm[None]") -> None:
    trained = toy.folder != "imagenet-o"
    names = CLASS_NAMES if trained else OUTLINES[len(CLASS_NAMES) :]
    categories = {name: [number] for number, name in enumerate(names)} if toy.folder == "cue-conflict" else None
    with ShardWriter(folder, toy.split, shard_size=SHARD_SIZE, class_names=names, categories=categories) as writer:
        for number, (outline, texture) in enumerate(toy.cues):
            label = outline if trained else outline - len(CLASS_NAMES)
            writer.write(
                _key(toy, number, names[label], texture), {"png": _file(toy, number, size, seed), "cls": b"%d" % label}
            )
            progress.update()


def _file(toy: ToySet, number: int, size: int, seed: int) -> bytes:
    outline, texture = toy.cues[number]
    stream = np.random.SeedSequence(stream_seed(seed, f"figure {toy.folder} {toy.split}", number))
    figure = draw_figure(outline=outline, texture=texture, size=size, seed=stream, layout=toy.layout)
    file = io.BytesIO()
    Image.fromarray(figure).save(file, format="PNG")
    return file.getvalue()


def _key(toy: ToySet, number: int, name: str, texture: int) -> str:
    if toy.folder == "cue-conflict":
        # The published images' form: shape and texture as the classes they are of, each with a number.
        return f"{name}/{name}{number}-{CLASS_NAMES[texture]}{number}"
    return f"{name}/{number:06d}"
