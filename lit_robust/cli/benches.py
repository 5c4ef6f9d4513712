"""``lit-robust bench ...``: this suite against its peers, in one run; a typed function each, as in ``commands``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lit_robust.cli.options import Count, Seed, made

Precision = Literal["auto", "bf16", "fp32"]
AS_IT_IS: Mapping[str, Any] = {}
SMALL: Mapping[str, Any] = {"name": "torchvision/resnet18"}


def bench_data(folder: Path, *, split: str = "val", images: Count = 1600, rounds: Count = 5) -> None:
    """Time loading from shards against torchvision's and webdataset's, and weigh a worker process.

    Args:
        folder: shards of one set, such as data/sample/imagenet
        split: its split; the images are repeated
        images: images a measurement
        rounds: measurements of each contender
    """
    from lit_robust.bench.loading import bench_loading

    print(bench_loading(folder, split, images, rounds))


def bench_corruptions(
    folder: Path,
    *,
    split: str = "val",
    images: Count = 16,
    rounds: Count = 5,
    severity: Count = 3,
    threads: Count = 1,
) -> None:
    """Time the 19 corruptions against imagecorruptions.

    Args:
        folder: shards of one set, such as data/sample/imagenet
        split: its split
        images: images a measurement, one batch
        rounds: measurements of each
        severity: 1 to 5
        threads: of torch and of OpenCV
    """
    from lit_robust.bench import corruptions

    print(corruptions.bench_corruptions(folder, split, images, rounds, severity, threads))


def bench_attacks(
    folder: Path,
    *,
    split: str = "val",
    resize: Count | None = 256,
    crop: Count | None = 224,
    network: Mapping[str, Any] = SMALL,
    attack: Mapping[str, Any] = AS_IT_IS,
    eps: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 3.0, 5.0),
    images: Count = 64,
    batch: Count = 16,
    rounds: Count = 3,
    precision: Precision = "auto",
) -> None:
    """Time PGD, and a sweep over eps, against Foolbox and torchattacks, with all their accuracies.

    Args:
        folder: shards of one set, such as data/sample/imagenet
        split: its split
        resize: shorter side first, pixels; null for none
        crop: then the centre, pixels; null for none
        network: name, num_classes, weights, mean and std, as of --model.network
        attack: settings of the single PGD, such as --attack.eps 3, in [0, 1] pixel units
        eps: of the sweep, [0, 1] pixel units
        images: images a measurement
        batch: images attacked at once
        rounds: measurements of each contender
        precision: of our attack; auto is bf16 where the device is fast in it; verdicts are in fp32
    """
    from lit_robust.attacks import PGD
    from lit_robust.bench import attacks
    from lit_robust.data.loading.transforms import EvaluationCrop
    from lit_robust.models import Network

    attacks.check_peers()
    crops, net, pgd = EvaluationCrop(resize, crop), made(Network, "network", network), made(PGD, "attack", attack)
    print(attacks.bench_attacks(folder, split, crops, net, pgd, eps, images, batch, rounds, precision))


def bench_autoattack(
    folder: Path,
    *,
    split: str = "val",
    resize: Count | None = 256,
    crop: Count | None = 224,
    network: Mapping[str, Any] = SMALL,
    norm: Literal["l2", "linf"] = "linf",
    eps: float = 4 / 255,
    images: Count = 128,
    batch: Count = 32,
) -> None:
    """Time AutoAttack in fp32 and in bf16 against its authors' code, and compare all verdicts.

    An image that withstands costs some 10,000 passes, so a robust network of usual size takes hours on a processor.

    Args:
        folder: shards of one set, such as data/sample/imagenet
        split: its split
        resize: shorter side first, pixels; null for none
        crop: then the centre, pixels; null for none
        network: name, num_classes, weights, mean and std, as of --model.network; trained weights
        norm: l2 or linf
        eps: radius, [0, 1] pixel units
        images: attacked by each
        batch: images attacked at once
    """
    from lit_robust.attacks import AutoAttack
    from lit_robust.bench import autoattack
    from lit_robust.data.loading.transforms import EvaluationCrop
    from lit_robust.models import Network

    autoattack.check_peer()
    crops, net, attack = EvaluationCrop(resize, crop), made(Network, "network", network), AutoAttack(norm, eps)
    print(autoattack.bench_autoattack(folder, split, crops, net, attack, images, batch))


def bench_inversion(
    *,
    network: Mapping[str, Any] = SMALL,
    size: Count = 224,
    batch: Count = 8,
    steps: Count = 10,
    rounds: Count = 3,
) -> None:
    """Time the steps of an inversion against MadryLab's attacker with a custom loss.

    Args:
        network: name, num_classes, weights, mean and std, as of --model.network
        size: side of the images, pixels
        batch: images at once
        steps: of each measurement
        rounds: measurements of each contender
    """
    from lit_robust.bench import inversion
    from lit_robust.models import Network

    print(inversion.bench_inversion(made(Network, "network", network), size, batch, steps, rounds))


def bench_stylising(
    folder: Path, *, split: str = "val", images: Count = 32, styles: Count = 2, rounds: Count = 3
) -> None:
    """Time stylising by AdaIN against the script that Stylized-ImageNet was made with.

    Args:
        folder: shards of one set, such as data/sample/imagenet
        split: its split
        images: images a measurement
        styles: pictures that they take their styles from; 17 images share one in Stylized-ImageNet
        rounds: measurements of each contender
    """
    from lit_robust.bench import stylising

    print(stylising.bench_stylising(folder, split, images, styles, rounds))


def bench_training(
    *,
    network: str = "torchvision/resnet18",
    num_classes: Count = 1000,
    size: Count = 224,
    batch: Count = 16,
    attack: Mapping[str, Any] = AS_IT_IS,
    rounds: Count = 3,
    precision: Precision = "auto",
) -> None:
    """Time a step of each training scheme against MadryLab's recipe, and weigh its peak memory.

    Args:
        network: torchvision/<name> or timm/<name>
        num_classes: its classes
        size: side of the images, pixels
        batch: images a step
        attack: settings of Madry's PGD, such as --attack.eps 3, in [0, 1] pixel units
        rounds: measurements of each
        precision: of our steps; auto is bf16 where the device is fast in it; the peer's is fp32
    """
    from lit_robust.attacks import PGD
    from lit_robust.bench import training

    pgd = made(PGD, "attack", attack)
    print(training.bench_training(network, num_classes, size, batch, pgd, rounds, precision))


def bench_memory(
    *,
    count: Count = 200_000,
    dimensions: Count = 2048,
    num_classes: Count = 1000,
    queries: Count = 256,
    neighbours: Count = 50,
    backbone: str = "torchvision/resnet18",
    rounds: Count = 5,
    folder: Path = Path(),
) -> None:
    """Time retrieval from a memory of random keys against the bare matrix product, the plain expression and Faiss.

    It weighs the memory, and times building one, too.

    Args:
        count: keys in the memory
        dimensions: of a key
        num_classes: classes of the keys
        queries: asked at once
        neighbours: k of the nearest neighbours
        backbone: torchvision/<name> or timm/<name>, to build with
        rounds: measurements of each contender
        folder: where a memory is built and removed again
    """
    from lit_robust.bench import memory

    subject = memory.MemorySubject(count, dimensions, num_classes, queries, neighbours, backbone, folder)
    print(memory.bench_memory(subject, rounds))


def bench_stored_memory(
    *,
    count: Count = 1_281_167,
    dimensions: Count = 2048,
    queries: Count = 256,
    neighbours: Count = 50,
    folder: Path = Path(),
) -> None:
    """Build a memory of ImageNet's size on disk and ask it from there; say the time and the memory it takes.

    The default is 5.25 GB of keys in float16, which are removed again.

    Args:
        count: keys in the memory
        dimensions: of a key
        queries: asked at once
        neighbours: k of the nearest neighbours
        folder: on the disk that is measured
    """
    from lit_robust.bench import stored

    print(stored.bench_stored_memory(count, dimensions, queries, neighbours, folder))


def bench_evaluation(
    *,
    network: str = "torchvision/resnet18",
    size: Count = 224,
    batch: Count = 16,
    batches: Count = 2,
    rounds: Count = 5,
) -> None:
    """Time passes with all measures of a suite against bare forward passes over the same batches, and weigh them.

    Attacks are left out.

    Args:
        network: torchvision/<name> or timm/<name>
        size: side of the images, pixels
        batch: images a batch
        batches: of each of the five sets
        rounds: measurements of each
    """
    from lit_robust.bench import evaluation

    print(evaluation.bench_evaluation(network, size, batch, batches, rounds))


def bench_suite(
    *,
    network: str = "torchvision/resnet50",
    size: Count = 224,
    batch: Count = 16,
    rounds: Count = 3,
    precision: Precision = "auto",
) -> None:
    """Say what eval/suite.yaml costs on the whole of ImageNet's sets: passes, and hours here and on one H200.

    Args:
        network: torchvision/<name> or timm/<name>
        size: side of the images, pixels
        batch: images at once
        rounds: measurements of each rate
        precision: of the attack; auto is bf16 where the device is fast in it
    """
    from lit_robust.bench import suite

    print(suite.bench_suite(network, size, batch, rounds, precision))


def bench_intervals(*, repeats: Count = 400, draws: Count = 300, seed: Seed = 0) -> None:
    """Say how often 95 % intervals hold the truth: Wilson's exactly, paired and bootstrapped ones by simulation.

    Args:
        repeats: simulated sets of each kind
        draws: of the bootstrap, a set; results files have 1,000
        seed: of the simulation
    """
    from lit_robust.bench.coverage import coverage_table

    print(coverage_table(repeats, draws, seed))


def bench_compile(
    *,
    network: str = "torchvision/resnet18",
    size: Count = 224,
    batch: Count = 16,
    rounds: Count = 5,
    precision: Precision = "auto",
) -> None:
    """Time a verdict, an attack's gradient and a training step with torch.compile and without; say its warm-up.

    Args:
        network: torchvision/<name> or timm/<name>, with random weights
        size: side of the images, pixels
        batch: images at once
        rounds: measurements of each
        precision: of gradient and training; auto is bf16 where the device is fast in it
    """
    from lit_robust.bench import compiling

    print(compiling.bench_compile(network, size, batch, rounds, precision))


def bench_analysis(
    *,
    network: str = "torchvision/alexnet",
    size: Count = 224,
    images: Count = 1,
    dissected: Count = 48,
    rounds: Count = 1,
) -> None:
    """Time ablations against Captum's LayerFeatureAblation and dissections against NetDissect-Lite's way; weigh these.

    Ablated are all stages' units for every image. A study also leaves out images that cannot count, which is not timed.

    Args:
        network: torchvision/<name> or timm/<name>, with random weights
        size: side of the images, pixels
        images: that units are ablated for, one after another
        dissected: images that units are dissected on
        rounds: measurements of each
    """
    from lit_robust.bench import analysis

    print(analysis.bench_analysis(network, size, images, dissected, rounds))
