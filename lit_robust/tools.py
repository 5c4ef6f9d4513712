"""The tools beside Lightning's commands: one parser and one call each."""

from argparse import ArgumentError
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveInt

from lit_robust.errors import UserError


def _toy(words: list[str]) -> None:
    parser = _parser("data toy", "Draw the toy data: 8 outlines x 8 textures, in the layouts of the real image sets.")
    parser.add_argument("output", type=Path, help="folder to write; it must not hold these sets yet")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="the same seed draws the same bytes")
    parser.add_argument("--train", type=PositiveInt, default=4000, help="images of the two training splits")
    parser.add_argument("--test", type=PositiveInt, default=512, help="images of every other split")
    parser.add_argument("--size", type=PositiveInt, default=48, help="side of an image, in pixels")
    parser.add_argument(
        "--severities",
        type=list[int],
        default=[1, 2, 3, 4, 5],
        help="of the 15 corruptions; [] for no corrupted images",
    )
    options = parser.parse_args(words)
    from lit_robust.data.toy import write_toy_data

    write_toy_data(options.output, options.seed, options.train, options.test, options.size, options.severities)
    print(f"Wrote {options.output}")


def _shard(words: list[str]) -> None:
    parser = _parser(
        "data shard",
        "Pack images into WebDataset shards; their bytes are copied. The same command again goes on where a killed run "
        "was, and keeps the shards that it had finished.",
    )
    parser.add_argument("source", type=Path, help="folder of images, or the tar, tar.gz, tar.bz2 or tar.xz of one")
    parser.add_argument("output", type=Path, help="folder for the shards, such as data/imagenet")
    parser.add_argument("--split", type=str, required=True, help="name of the split: train, val or test")
    parser.add_argument(
        "--layout",
        type=Literal[
            "auto",
            "class-folders",
            "flat",
            "wnid-names",
            "tiny-imagenet-val",
            "imagenet-c",
            "imagenet-a",
            "imagenet-o",
            "cue-conflict",
        ],
        default="auto",
        help="auto: recognise it, and say so; class-folders: <class>/ or <class>/images/; flat: one folder, see "
        "--label-file; wnid-names: files <wnid>_*.JPEG; tiny-imagenet-val: with val_annotations.txt; imagenet-c: "
        "[<group>/]<corruption>/<severity>/<class>/, all cells that are there; imagenet-a, imagenet-o: class folders "
        "of WordNet ids; cue-conflict: <shape>/<shape><i>-<texture><j>.png",
    )
    parser.add_argument(
        "--labels",
        type=Literal["auto", "sorted", "imagenet"],
        default="auto",
        help="sorted: place of the class among those there; imagenet: place of its WordNet id among the 1,000; auto: "
        "imagenet for flat, imagenet-a, imagenet-o and where all 1,000 are there, else sorted",
    )
    parser.add_argument(
        "--label-file",
        type=Path,
        default=None,
        help="for flat: lines of an image's name and its class (WordNet id or number), Kaggle's LOC_val_solution.csv, "
        "or a WordNet id a line in the order of the names",
    )
    parser.add_argument(
        "--categories",
        type=str,
        default="imagenet",
        help='for cue-conflict, the classes of each category: imagenet, or a JSON file {"category": [classes]}',
    )
    parser.add_argument("--shard-size", type=PositiveInt, default=1000, help="images a tar")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="of the order of the images")
    parser.add_argument(
        "--resize",
        type=PositiveInt,
        default=None,
        help="shorter side in px to which larger images are brought, encoded again as JPEG of quality 95, PNG as PNG",
    )
    parser.add_argument(
        "--workers", type=PositiveInt, default=None, help="threads, which change no byte; null: CPUs, at most 8"
    )
    options = parser.parse_args(words)
    from lit_robust.data.packing import shard_images

    packed = shard_images(
        source=options.source,
        output=options.output,
        split=options.split,
        layout=options.layout,
        labels=options.labels,
        label_file=options.label_file,
        categories=options.categories,
        shard_size=options.shard_size,
        seed=options.seed,
        resize=options.resize,
        workers=options.workers,
    )
    print(f"Packed into {options.output}: {packed}.")


def _verify(words: list[str]) -> None:
    parser = _parser(
        "data verify",
        "Check shards: every header, the counts of info files, numbers of shards, keys and labels. Lists all that is "
        "wrong; exit code 2 where anything is.",
    )
    parser.add_argument("path", type=Path, help="folder of one set, or a folder with sets below it")
    parser.add_argument("--decode", action="store_true", help="decode every image too")
    parser.add_argument("--workers", type=PositiveInt, default=2, help="processes that decode")
    parser.add_argument(
        "--label",
        type=str,
        default="auto",
        help="where classes come from: auto (cls, or the json field that the info file names), cls, json:FIELD, or "
        "wordnet (the WordNet id in the key)",
    )
    options = parser.parse_args(words)
    from lit_robust.errors import DataError
    from lit_robust.reference import imagenet_wnids
    from lit_robust.shards.labels import LabelRule
    from lit_robust.shards.verify import report_text, verify_shards

    classes = {wnid: number for number, wnid in enumerate(imagenet_wnids())} if options.label == "wordnet" else None
    reports = verify_shards(options.path, LabelRule(options.label, classes), options.decode, options.workers)
    print(report_text(reports))
    if count := sum(report.count for report in reports):
        raise DataError(
            f"{options.path} has {count} defects, listed above: copy, download or write these shards again."
        )


def _corrupt(words: list[str]) -> None:
    parser = _parser(
        "data corrupt",
        "Write images under ImageNet-C's corruptions, as shards in its layout. They are like ImageNet-C, not it, and "
        "results on them say so. A second call writes what is missing.",
    )
    parser.add_argument("source", type=Path, help="folder of the clean shards, such as data/imagenet")
    parser.add_argument("output", type=Path, help="folder to write, such as data/imagenet-c-like")
    parser.add_argument("--split", type=str, default="val", help="split of the clean shards")
    parser.add_argument(
        "--corruptions",
        type=list[str],
        default=None,
        help='names, as "[fog, frost]"; null for the 15 of the paper; the extra four are speckle_noise, gaussian_blur, '
        "spatter, saturate",
    )
    parser.add_argument("--severities", type=list[int], default=[1, 2, 3, 4, 5], help="some of 1 to 5")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="of all draws")
    parser.add_argument(
        "--resize", type=PositiveInt | None, default=256, help="shorter side first, pixels; null for none"
    )
    parser.add_argument("--crop", type=PositiveInt | None, default=224, help="then the centre, pixels; null for none")
    parser.add_argument(
        "--frost", type=Path | None, default=None, help="folder with ImageNet-C's frost pictures; null draws frost"
    )
    parser.add_argument(
        "--encoding", type=Literal["jpg", "png"], default="jpg", help="jpg: quality 85, as the published files; or png"
    )
    parser.add_argument("--workers", type=PositiveInt, default=2, help="processes; each writes one cell at a time")
    options = parser.parse_args(words)
    from lit_robust.data.corrupting import corrupt_shards
    from lit_robust.data.transforms import EvaluationCrop
    from lit_robust.stimuli.corruptions import CORRUPTIONS

    count = corrupt_shards(
        options.source,
        options.output,
        options.split,
        CORRUPTIONS if options.corruptions is None else options.corruptions,
        options.severities,
        options.seed,
        EvaluationCrop(options.resize, options.crop),
        options.frost,
        options.encoding,
        options.workers,
    )
    print(f"Wrote {count} cells to {options.output}")


def _bench_data(words: list[str]) -> None:
    parser = _parser(
        "bench data", "Time loading from shards beside torchvision's and webdataset's, and weigh a worker process."
    )
    parser.add_argument("folder", type=Path, help="shards of one set, such as data/sample/imagenet")
    parser.add_argument("--split", type=str, default="val", help="its split; the images are repeated")
    parser.add_argument("--images", type=PositiveInt, default=1600, help="images a measurement")
    parser.add_argument("--rounds", type=PositiveInt, default=5, help="measurements of each contender")
    options = parser.parse_args(words)
    from lit_robust.bench.loading import bench_loading

    print(bench_loading(options.folder, options.split, options.images, options.rounds))


def _bench_corruptions(words: list[str]) -> None:
    parser = _parser("bench corruptions", "Time the 19 corruptions beside imagecorruptions.")
    parser.add_argument("folder", type=Path, help="shards of one set, such as data/sample/imagenet")
    parser.add_argument("--split", type=str, default="val", help="its split")
    parser.add_argument("--images", type=PositiveInt, default=16, help="images a measurement, one batch")
    parser.add_argument("--rounds", type=PositiveInt, default=5, help="measurements of each")
    parser.add_argument("--severity", type=PositiveInt, default=3, help="1 to 5")
    parser.add_argument("--threads", type=PositiveInt, default=1, help="of torch and of OpenCV")
    options = parser.parse_args(words)
    from lit_robust.bench.corrupting import bench_corruptions

    print(
        bench_corruptions(
            options.folder, options.split, options.images, options.rounds, options.severity, options.threads
        )
    )


def _report(words: list[str]) -> None:
    parser = _parser("report", "Compare runs on one self-contained page, or in a table.")
    parser.add_argument("runs", type=Path, nargs="+", help="run folders that `lit-robust test` wrote into")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("report.html"), help="file to write: .html, .md or .csv"
    )
    options = parser.parse_args(words)
    from lit_robust.report import report

    report(options.runs, options.output)


def _demo(words: list[str]) -> None:
    parser = _parser(
        "demo",
        "Draw toy data, train a standard and an adversarially trained network, test both, and compare them on one "
        "page. Takes about 5 minutes on 2 CPU cores and under 4 GiB; a second call reuses what is finished.",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for data, runs and the page")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="of the figures and of the training")
    options = parser.parse_args(words)
    from lit_robust.demo import run_demo

    run_demo(options.output, options.seed)


TOOLS: dict[str, Callable[[list[str]], None]] = {
    "demo": _demo,
    "data toy": _toy,
    "data shard": _shard,
    "data verify": _verify,
    "data corrupt": _corrupt,
    "bench data": _bench_data,
    "bench corruptions": _bench_corruptions,
    "report": _report,
}


def run_tool(words: Sequence[str]) -> None:
    """Run the tool that the first one or two words name, with the rest as its options.

    Raises:
        UserError: there is no such tool.
    """
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in TOOLS:
            try:
                TOOLS[name](list(words[length:]))
            except ArgumentError as error:
                reason = " ".join(str(error).split()).rstrip(".")
                raise UserError(f"{reason}; `lit-robust {name} --help` shows the options.") from error
            return
    groups = [name for name in TOOLS if name.startswith(f"{words[0]} ")]
    if groups:
        given = words[1] if len(words) > 1 else ""
        if given in ("", "-h", "--help"):
            names = ",".join(name.split()[1] for name in groups)
            print(f"usage: lit-robust {words[0]} {{{names}}} [OPTIONS]\n\nEach has its own --help.")
            return
        raise UserError(f"There is no command `{words[0]} {given}`: choose {', '.join(groups[:-1])} or {groups[-1]}.")
    close = get_close_matches(words[0], ["fit", "validate", "test", "predict", *TOOLS], n=1)
    hint = f"did you mean {close[0]}?" if close else "`lit-robust --help` lists them."
    raise UserError(f"There is no command {words[0]!r}: {hint}")


def _parser(name: str, description: str) -> ArgumentParser:
    return ArgumentParser(prog=f"lit-robust {name}", description=description, exit_on_error=False, allow_abbrev=False)
