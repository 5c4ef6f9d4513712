"""``lit-robust bench ...``: this suite beside its peers, in one run."""

from pathlib import Path
from typing import Literal

from jsonargparse.typing import PositiveInt

from lit_robust.cli.tools.parser import parser_of


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
    from lit_robust.bench.corruptions import bench_corruptions

    print(
        bench_corruptions(
            options.folder, options.split, options.images, options.rounds, options.severity, options.threads
        )
    )


def attacks(words: list[str]) -> None:
    """Time attacks."""
    from lit_robust.attacks import PGD
    from lit_robust.models import Network

    parser = parser_of(
        "bench attacks", "Time PGD, and a sweep over eps, beside Foolbox and torchattacks, with all their accuracies."
    )
    parser.add_argument("folder", type=Path, help="shards of one set, such as data/sample/imagenet")
    parser.add_argument("--split", type=str, default="val", help="its split")
    parser.add_argument("--resize", type=PositiveInt | None, default=256, help="shorter side first, pixels; or null")
    parser.add_argument("--crop", type=PositiveInt | None, default=224, help="then the centre, pixels; or null")
    parser.add_argument("--network", type=Network, default=Network("torchvision/resnet18"), help="and its weights")
    parser.add_argument("--attack", type=PGD, default=PGD(), help="of the single attack; eps in [0, 1] pixel units")
    parser.add_argument(
        "--eps", type=list[float], default=[0.25, 0.5, 1.0, 2.0, 3.0, 5.0], help="of the sweep, [0, 1] pixel units"
    )
    parser.add_argument("--images", type=PositiveInt, default=64, help="images a measurement")
    parser.add_argument("--batch", type=PositiveInt, default=16, help="images attacked at once")
    parser.add_argument("--rounds", type=PositiveInt, default=3, help="measurements of each contender")
    parser.add_argument(
        "--precision", type=Literal["bf16", "fp32"], default="bf16", help="of our attack; verdicts are in fp32"
    )
    options = parser.parse_args(words)
    from lit_robust.bench.attacks import bench_attacks, check_peers
    from lit_robust.data.loading.transforms import EvaluationCrop

    check_peers()
    made = parser.instantiate_classes(options)
    print(
        bench_attacks(
            options.folder,
            options.split,
            EvaluationCrop(options.resize, options.crop),
            made.network,
            made.attack,
            options.eps,
            options.images,
            options.batch,
            options.rounds,
            options.precision,
        )
    )


def retrieval(words: list[str]) -> None:
    """Time retrieval from a memory."""
    parser = parser_of(
        "bench memory",
        "Time retrieval from a memory of random keys beside the bare matrix product, the plain expression and Faiss, "
        "weigh it, and time building one.",
    )
    parser.add_argument("--count", type=PositiveInt, default=200_000, help="keys in the memory")
    parser.add_argument("--dimensions", type=PositiveInt, default=2048, help="of a key")
    parser.add_argument("--num-classes", type=PositiveInt, default=1000, help="classes of the keys")
    parser.add_argument("--queries", type=PositiveInt, default=256, help="asked at once")
    parser.add_argument("--neighbours", type=PositiveInt, default=50, help="k of the nearest neighbours")
    parser.add_argument(
        "--backbone", type=str, default="torchvision/resnet18", help="torchvision/<name> or timm/<name>, to build with"
    )
    parser.add_argument("--rounds", type=PositiveInt, default=5, help="measurements of each contender")
    parser.add_argument("--folder", type=Path, default=Path(), help="where a memory is built and removed again")
    options = parser.parse_args(words)
    from lit_robust.bench.memory import Subject, bench_memory

    subject = Subject(
        options.count,
        options.dimensions,
        options.num_classes,
        options.queries,
        options.neighbours,
        options.backbone,
        options.folder,
    )
    print(bench_memory(subject, options.rounds))


def training(words: list[str]) -> None:
    """Time training steps."""
    from lit_robust.attacks import PGD

    parser = parser_of(
        "bench training", "Time a step of each training scheme beside MadryLab's recipe, and weigh its peak memory."
    )
    parser.add_argument("--network", type=str, default="torchvision/resnet18", help="torchvision/<name> or timm/<name>")
    parser.add_argument("--num-classes", type=PositiveInt, default=1000, help="its classes")
    parser.add_argument("--size", type=PositiveInt, default=224, help="side of the images, pixels")
    parser.add_argument("--batch", type=PositiveInt, default=16, help="images a step")
    parser.add_argument("--attack", type=PGD, default=PGD(), help="Madry's; eps in [0, 1] pixel units")
    parser.add_argument("--rounds", type=PositiveInt, default=3, help="measurements of each")
    parser.add_argument(
        "--precision", type=Literal["bf16", "fp32"], default="bf16", help="of our steps; the peer's is fp32"
    )
    options = parser.parse_args(words)
    from lit_robust.bench.training import bench_training

    made = parser.instantiate_classes(options)
    print(
        bench_training(
            options.network,
            options.num_classes,
            options.size,
            options.batch,
            made.attack,
            options.rounds,
            options.precision,
        )
    )


def evaluation(words: list[str]) -> None:
    """Time evaluations."""
    parser = parser_of(
        "bench evaluation",
        "Time passes with all measures of a suite, attacks left out, beside bare forward passes over the same batches, "
        "and weigh them.",
    )
    parser.add_argument("--network", type=str, default="torchvision/resnet18", help="torchvision/<name> or timm/<name>")
    parser.add_argument("--size", type=PositiveInt, default=224, help="side of the images, pixels")
    parser.add_argument("--batch", type=PositiveInt, default=16, help="images a batch")
    parser.add_argument("--batches", type=PositiveInt, default=2, help="of each of the five sets")
    parser.add_argument("--rounds", type=PositiveInt, default=5, help="measurements of each")
    options = parser.parse_args(words)
    from lit_robust.bench.evaluation import bench_evaluation

    print(bench_evaluation(options.network, options.size, options.batch, options.batches, options.rounds))
