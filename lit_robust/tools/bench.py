"""``lit-robust bench ...``: this suite beside its peers, in one run."""

from pathlib import Path

from jsonargparse.typing import PositiveInt

from lit_robust.tools.parser import parser_of


def loading(words: list[str]) -> None:
    """Time reading shards."""
    parser = parser_of(
        "bench data", "Time loading from shards beside torchvision's and webdataset's, and weigh a worker process."
    )
    parser.add_argument("folder", type=Path, help="shards of one set, such as data/sample/imagenet")
    parser.add_argument("--split", type=str, default="val", help="its split; the images are repeated")
    parser.add_argument("--images", type=PositiveInt, default=1600, help="images a measurement")
    parser.add_argument("--rounds", type=PositiveInt, default=5, help="measurements of each contender")
    options = parser.parse_args(words)
    from lit_robust.bench.loading import bench_loading

    print(bench_loading(options.folder, options.split, options.images, options.rounds))


def corruptions(words: list[str]) -> None:
    """Time the corruptions."""
    parser = parser_of("bench corruptions", "Time the 19 corruptions beside imagecorruptions.")
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
