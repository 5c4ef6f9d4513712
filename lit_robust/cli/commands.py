"""The commands besides Lightning's: a typed function each, whose signature and docstring are its options and its help.

What stands before the ``*`` is given by place; a parameter ``command`` gets the command line. The rooms are imported
where they are used, so that help, reports and work on shards need no torch.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from lit_robust.cli.options import Count, Seed
from lit_robust.core.errors import DataError, UserError

SPLITS = ("train", "val", "validation", "test")
Aggregation = Literal["mean", "max", "sum"]
Baseline = Literal["imagenet-c", "robustbench-5000"]
Score = Literal["max_softmax", "max_logit", "energy", "memory_similarity"]


def demo(*, output: Path = Path("runs/demo"), seed: Seed = 0) -> None:
    """Draw toy data, train a standard, an AdvProp and an adversarially trained network, and compare them on one page.

    A cache model of the first one's features is built and tested, too. It takes minutes on 2 CPU cores; a second call
    reuses what is finished.

    Args:
        output: folder for data, runs and the page
        seed: of the figures and of the training
    """
    from lit_robust.cli.demo import run_demo

    run_demo(output, seed)


def data_toy(
    output: Path,
    *,
    seed: Seed = 0,
    train: Count = 4000,
    test: Count = 512,
    size: Count = 48,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
) -> None:
    """Draw the toy data: 8 outlines x 8 textures, in the layouts of the real image sets.

    Args:
        output: folder to write; it must not hold these sets yet
        seed: the same seed draws the same bytes
        train: images of the two training splits
        test: images of every other split
        size: side of an image, pixels
        severities: of the 15 corruptions; [] for no corrupted images
    """
    from lit_robust.data.packing.toy import write_toy_data

    write_toy_data(output, seed, train, test, size, severities)
    print(f"Wrote {output}")


def data_concepts(output: Path, *, seed: Seed = 0, count: Count = 512, size: Count = 48) -> None:
    """Draw figures with marked outlines, textures and colours, for `analyze dissection`, in Broden's layout.

    Outline, texture and colours are drawn independently. twins/ holds each image once more with another texture.

    Args:
        output: folder to write
        seed: the same seed draws the same bytes
        count: of images
        size: side of an image, pixels
    """
    from lit_robust.data.packing.concepts import write_concepts

    write_concepts(output, seed, count, size)
    print(f"Wrote {output}. Next: `lit-robust analyze dissection --concepts {output} --quantile 0.03`.")


def data_shard(
    source: Path,
    output: Path,
    *,
    split: str,
    layout: Literal[
        "auto",
        "class-folders",
        "flat",
        "wnid-names",
        "tiny-imagenet-val",
        "imagenet-c",
        "imagenet-a",
        "imagenet-o",
        "cue-conflict",
        "human-stimuli",
    ] = "auto",
    labels: Literal["auto", "sorted", "imagenet"] = "auto",
    label_file: Path | None = None,
    categories: str = "imagenet",
    some_classes: bool = False,
    shard_size: Count = 1000,
    seed: Seed = 0,
    resize: Count | None = None,
    workers: Count | None = None,
) -> None:
    """Pack images into WebDataset shards; their bytes are copied.

    The same command again goes on where a killed run was, and keeps the shards that it had finished.

    Args:
        source: folder of images, or the tar, tar.gz, tar.bz2 or tar.xz of one
        output: folder for the shards, such as data/imagenet
        split: name of the split: train, val or test
        layout: auto: recognise it, and say so; class-folders: <class>/ or <class>/images/; flat: one folder, see
            --label-file; wnid-names: files <wnid>_*.JPEG; tiny-imagenet-val: with val_annotations.txt; imagenet-c:
            [<group>/]<corruption>/<severity>/<class>/, all cells that are there; imagenet-a, imagenet-o: class folders
            of WordNet ids; cue-conflict: <shape>/<shape><i>-<texture><j>.png
        labels: sorted: place of the class among those there; imagenet: place of its WordNet id among the 1,000; auto:
            imagenet for flat, imagenet-a, imagenet-o and where all 1,000 are there, else sorted
        label_file: for flat: lines of an image's name and its class (WordNet id or number), Kaggle's
            LOC_val_solution.csv, or a WordNet id a line in the order of the names
        categories: for cue-conflict, the classes of each category: imagenet, or a JSON file {"category": [classes]}
        some_classes: the class folders are some of those of a split that the output has already, and have its numbers
        shard_size: images a tar
        seed: of the order of the images
        resize: shorter side in pixels to which larger images are brought, encoded again as JPEG of quality 95, PNG as
            PNG; null keeps the bytes
        workers: threads, which change no byte; null for the CPUs, at most 8
    """
    from lit_robust.data.packing import shard_images

    if split.isalpha() and split not in SPLITS and (near := get_close_matches(split, SPLITS, n=1, cutoff=0.8)):
        raise UserError(f"The split is {split!r}: did you mean {near[0]}?")
    packed = shard_images(
        source=source,
        output=output,
        split=split,
        layout=layout,
        labels=labels,
        label_file=label_file,
        categories=categories,
        some_classes=some_classes,
        shard_size=shard_size,
        seed=seed,
        resize=resize,
        workers=workers,
    )
    print(f"Packed into {output}: {packed}. Images that cannot be read: `lit-robust data verify {output} --decode`.")


def data_verify(
    path: Path, *, quick: bool = False, decode: bool = False, workers: Count = 2, label: str = "auto"
) -> None:
    """Check shards: every header, the counts and digests of info files, numbers of shards, keys and labels.

    It lists all that is wrong, and ends with exit code 2 where anything is.

    Args:
        path: folder of one set, or a folder with sets below it
        quick: read headers and labels alone, and do not compare digests of whole shards
        decode: decode every image, too
        workers: processes that decode
        label: where classes come from: auto (cls, or the json field that the info file names), cls, json:FIELD, or
            wordnet (the WordNet id in the key)
    """
    from lit_robust.reference import imagenet_wnids
    from lit_robust.shards.labels import LabelRule
    from lit_robust.shards.verify import report_text, verify_shards

    classes = {wnid: number for number, wnid in enumerate(imagenet_wnids())} if label == "wordnet" else None
    reports = verify_shards(path, LabelRule(label, classes), decode, workers, quick)
    print(report_text(reports))
    if count := sum(report.count for report in reports):
        raise DataError(f"{path} is not whole (defects: {count}): copy, download or write these shards again.")


def data_corrupt(
    source: Path,
    output: Path,
    *,
    split: str = "val",
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    seed: Seed = 0,
    resize: Count | None = 256,
    crop: Count | None = 224,
    frost: Path | None = None,
    encoding: Literal["jpg", "png"] = "jpg",
    workers: Count = 2,
) -> None:
    """Write images under ImageNet-C's corruptions, as shards in its layout.

    They are like ImageNet-C, not it, and results on them say so. A second call writes what is missing.

    Args:
        source: folder of the clean shards, such as data/imagenet
        output: folder to write, such as data/imagenet-c-like
        split: of the clean shards
        corruptions: names, as "[fog, frost]"; null for the 15 of the paper; the extra four are speckle_noise,
            gaussian_blur, spatter, saturate
        severities: some of 1 to 5
        seed: of all draws
        resize: shorter side first, pixels; null for none
        crop: then the centre, pixels; null for none
        frost: folder with ImageNet-C's frost pictures; null draws frost
        encoding: jpg: quality 85, as the published files; or png
        workers: processes; each writes one cell at a time
    """
    from lit_robust.data.loading.transforms import EvaluationCrop
    from lit_robust.data.packing.corrupting import corrupt_shards
    from lit_robust.stimuli.corruptions import CORRUPTIONS

    names = CORRUPTIONS if corruptions is None else corruptions
    crops = EvaluationCrop(resize, crop)
    count = corrupt_shards(source, output, split, names, severities, seed, crops, frost, encoding, workers)
    print(f"Wrote {count} cells to {output}")


def recipes() -> None:
    """List the recipes, each with what it is; `-c NAME` finds one from any folder."""
    from lit_robust.cli.recipes import about, names

    width = max(map(len, names()))
    print("\n".join(f"{name:<{width}}  {about(name)}" for name in names()))


def recipes_copy(name: str, to: Path | None = None) -> None:
    """Copy a recipe, to be changed.

    Args:
        name: of the recipe, such as imagenet/madry
        to: the file to write, or a folder for it; null for this folder
    """
    from lit_robust.cli.recipes import copy

    print(f"Wrote {copy(name, to)}")


def convert(
    source: Path,
    output: Path,
    *,
    network: str | None = None,
    num_classes: Count = 1000,
    mean: str | None = None,
    std: str | None = None,
    copy: str = "averaged",
) -> None:
    """Read another lab's checkpoint without running anything in it, and write safetensors that any network here takes.

    A provenance file stands next to them. Such checkpoints can be named as weights directly, too.

    Args:
        source: the checkpoint
        output: the file to write, .safetensors
        network: torchvision/<name> or timm/<name>, which it must then fit
        num_classes: classes of that network
        mean: per-channel mean it was trained with, in [0, 1] pixel units, as in "[0.5, 0.5, 0.5]"; null for what the
            checkpoint says
        std: per-channel standard deviation it was trained with, likewise
        copy: which copy of the weights to take of a checkpoint that holds several: averaged, raw, or one by its name
    """
    from lit_robust.models.foreign import convert as converting
    from lit_robust.models.foreign.checkpoint import channels_of_option

    means, deviations = channels_of_option("--mean", mean), channels_of_option("--std", std)
    print(converting.convert(source, output, network, num_classes, means, deviations, copy))


def report(
    runs: tuple[Path, ...],
    *,
    command: str,
    output: Path = Path("report.html"),
    published: tuple[str, ...] = (),
    group: bool = False,
    recompute: bool = False,
    paired: bool = False,
    board: Path | None = None,
    columns: tuple[str, ...] = (),
) -> None:
    """Compare runs on one self-contained page, in a table, or on a board that sorts.

    Args:
        runs: run folders that `lit-robust test` wrote into
        command: the command line
        output: file to write: .html, .md, .tex or .csv
        published: published networks to show beneath the runs, such as resnet50 alexnet humans, each value with its
            source and marked where its protocol is another; `all` alone for every one that shares a column with the
            runs
        group: join runs that differ in their seed alone into one row: mean, standard deviation and how many
        recompute: show what `lit-robust recompute RUN` computes by its defaults from the predictions that each run kept
        paired: compare each further run with the first on the same images, from the predictions that they kept
        board: file for one sortable table of many runs instead: .html, .csv or .json
        columns: those of the board to see at first, such as clean mce or imagenet-c/mean_accuracy; by default the score
            card's
    """
    from lit_robust.report import report as compare
    from lit_robust.report import write_board

    folders = list(runs)
    if recompute:
        from lit_robust.callbacks.recompute import Choices, recomputed_folder
        from lit_robust.callbacks.recompute import recompute as again

        folders = [again(run, recomputed_folder(run), Choices(), command).parent for run in runs]
    if board is not None:
        print(write_board(folders, board, columns, published, group))
    elif columns:
        raise UserError(f"--columns {' '.join(columns)} are a board's: give --board FILE.html, too.")
    else:
        more = {}
        if paired and group:
            raise UserError("--paired compares single runs: leave out --group.")
        if paired:
            from lit_robust.callbacks.paired import paired_results

            more = {run: paired_results(folders[0], run) for run in folders[1:]}
        compare(folders, output, published, group, more)


def recompute(
    run: Path,
    *,
    command: str,
    output: Path | None = None,
    aggregation: Aggregation = "mean",
    baseline: Baseline | None = "imagenet-c",
    clean: str = "imagenet",
    scores: Sequence[Score] = ("max_softmax",),
    decisions: Path | None = None,
) -> None:
    """Take every measure that needs no network again from the predictions that a run kept (KeepPredictions).

    These are accuracy, calibration, corruption errors, OOD detection, shape bias and error consistency.

    Args:
        run: the run's folder
        command: the command line
        output: folder for results.json; null for RUN-recomputed
        aggregation: how a category's probability follows from its classes'
        baseline: AlexNet's errors that corruption errors of ImageNet's classes are measured in; null for accuracies
            alone
        clean: set that corruption errors are relative to, and of the images in distribution where ImageNet-O has none
        scores: of OOD detection, without memory_similarity
        decisions: CSV file, or folder of them, for error consistency
    """
    from lit_robust.callbacks.recompute import Choices, recomputed_folder
    from lit_robust.callbacks.recompute import recompute as again

    choices = Choices(aggregation, baseline, clean, scores, decisions)
    print(again(run, recomputed_folder(run) if output is None else output, choices, command))


def paired(first: Path, second: Path) -> None:
    """Compare two runs on the same images, from the predictions that both kept (KeepPredictions).

    For each set it prints the top-1 accuracies in percent, and their difference with a 95 % interval.

    Args:
        first: a run's folder
        second: another's
    """
    from lit_robust.callbacks.paired import paired_differences, paired_text

    print(paired_text(paired_differences(first, second), first.name, second.name))


def dashboard(
    runs: tuple[Path, ...], *, entity: str, project: str, name: str = "Robustness", output: Path | None = None
) -> None:
    """Build a W&B workspace with panels for the measures of runs, and save it.

    The panels are grouped into clean, adversarial, natural, shape, memory and training. The workspace shows all runs of
    the project that logged a measure. Needs the package wandb-workspaces and `wandb login`; with --output, neither.

    Args:
        runs: run folders that `lit-robust test` wrote into
        entity: W&B user or team that the project belongs to
        project: W&B project that the runs were logged to
        name: of the workspace
        output: write the plan of the panels into this JSON file, and save no workspace
    """
    from lit_robust.report import dashboard as save

    save(list(runs), entity, project, name, output)
