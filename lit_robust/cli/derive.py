"""`lit-robust data derive STIMULUS`: the options of each stimulus, and of all of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from lit_robust.cli.options import Count, Seed, call
from lit_robust.core.errors import UserError
from lit_robust.stimuli.stimulus import Stimulus

PUBLISHED = ("imagenet-c", "cue-conflict")


def stimulus_class(name: str) -> Callable[..., Stimulus]:
    """Return the class of a stimulus, whose fields and docstring are the options of its command."""
    from lit_robust.data.packing.silhouettes import DetectedSilhouettes, MaskSilhouettes, ToySilhouettes
    from lit_robust.data.packing.stylised import Stylised, StylisedByMagenta
    from lit_robust.stimuli.corrupted import Corrupted
    from lit_robust.stimuli.scrambled import Scrambled
    from lit_robust.stimuli.textureless import BlackAndWhite, Edges

    kinds = (
        Scrambled,
        BlackAndWhite,
        Edges,
        MaskSilhouettes,
        DetectedSilhouettes,
        ToySilhouettes,
        Stylised,
        StylisedByMagenta,
        Corrupted,
    )
    return next(kind for kind in kinds if kind.kind == name)


def common(
    source: Path,
    output: Path,
    *,
    split: str = "val",
    resize: Count | None = 256,
    crop: Count | None = 224,
    encoding: Literal["png", "jpg"] = "png",
    quality: Count = 85,
    shard_size: Count = 1000,
    workers: Seed = 2,
    part: Seed = 0,
    parts: Count = 1,
) -> None:
    """Take what every stimulus takes.

    Args:
        source: folder of the shards that it is made of, such as data/imagenet
        output: folder to write, such as data/scrambled-4
        split: of the shards; the derived ones have the same
        resize: shorter side first, pixels; null for none
        crop: then the centre, pixels; null for none
        encoding: png, without loss, or jpg
        quality: of JPEGs, 1 to 95
        shard_size: source images a tar
        workers: processes, which change no byte; 0 for this one
        part: of an array of jobs, the number of this one, from 0
        parts: how many jobs share the tars; the last to end writes the info file
    """


def run_derive(name: str, words: Sequence[str]) -> None:
    """Write a derived set.

    Args:
        name: of the stimulus.
        words: the options.

    Raises:
        UserError: an option is wrong, or the output holds another set.
    """
    kind = stimulus_class(name)
    settings, given = call(f"data derive {name}", words, kind, common)
    output: Path = given["output"]
    if output.resolve().name in PUBLISHED:
        raise UserError(f"{output} would pass for the published {output.resolve().name}: choose another name.")
    from lit_robust.data.loading.splits import Reading, open_table
    from lit_robust.data.loading.transforms import EvaluationCrop
    from lit_robust.data.packing.derivation import Derivation
    from lit_robust.data.packing.deriving import derive

    one = Derivation(
        source=open_table(given["source"], given["split"], Reading()),
        folder=output,
        split=given["split"],
        stimulus=kind(**settings),
        crop=EvaluationCrop(given["resize"], given["crop"]),
        encoding=given["encoding"],
        quality=given["quality"],
        shard_size=given["shard_size"],
    )
    written = derive([one], given["workers"], part=(given["part"], given["parts"]))
    if output not in written:
        print(f"{output} has the split {one.split} already, of these images and settings.")
        return
    count, lost = len(one.source), written[output]
    if lost is None:
        print(
            f"Part {given['part']} of {given['parts']} of {output} is done; the last one to end writes its info file."
        )
        return
    print(f"Wrote {count - lost:,} images to {output}.")
    if lost:
        print(f"{lost:,} of {count:,} {one.stimulus.lack}: {output / one.stem}-not-made.txt names them.")
    print(f"A test reads them with lit_robust.data.DerivedDataModule, name {output.name}.")
