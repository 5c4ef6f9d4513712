"""``lit-robust data ...``: drawing, packing, checking and corrupting shards."""

from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from lit_robust.cli.tools.parser import parser_of


def toy(words: list[str]) -> None:
    """Draw the toy data."""
    parser = parser_of("data toy", "Draw the toy data: 8 outlines x 8 textures, in the layouts of the real image sets.")
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
    from lit_robust.data.packing.toy import write_toy_data

    write_toy_data(options.output, options.seed, options.train, options.test, options.size, options.severities)
    print(f"Wrote {options.output}")


def shard(words: list[str]) -> None:
    """Pack images as shards."""
    parser = parser_of(
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
    parser.add_argument(
        "--some-classes",
        action="store_true",
        help="the class folders are some of those of a split that the output has already, and have its numbers",
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
        some_classes=options.some_classes,
        shard_size=options.shard_size,
        seed=options.seed,
        resize=options.resize,
        workers=options.workers,
    )
    print(f"Packed into {options.output}: {packed}.")


def verify(words: list[str]) -> None:
    """Check shards."""
    parser = parser_of(
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
    from lit_robust.core.errors import DataError
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


def corrupt(words: list[str]) -> None:
    """Write corrupted shards."""
    parser = parser_of(
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
    from lit_robust.data.loading.transforms import EvaluationCrop
    from lit_robust.data.packing.corrupting import corrupt_shards
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
