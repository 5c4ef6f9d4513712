"""Published constants as data, each file with its source here, and the one loader for them.

- ``imagenet_classes.csv``: the 1,000 classes of ILSVRC-2012 in the order of their sorted WordNet ids, which is the
  order of torchvision's and timm's logits; names as in torchvision.
- ``imagenet_categories_16.json``: the 16 entry-level categories of Geirhos et al. 2019 and their 207 ImageNet classes,
  as in rgeirhos/texture-vs-shape ``code/helper/human_categories.py``.
- ``imagenet_subsets.json``: the 200 classes of ImageNet-A and those of ImageNet-O, as in
  hendrycks/natural-adv-examples ``eval_many_models.py``; those of ImageNet-R, as in hendrycks/imagenet-r ``eval.py``.
- ``objectnet.json``: the 113 folders of ObjectNet that show classes of ImageNet, and these, 125 in all, as in the
  metadata of modestyachts/imagenet-testbed and mlfoundations/wise-ft, which agree.
- ``human_sets.json``: the 17 sets of bethgelab/model-vs-human, their conditions (``datasets/experiments.py``), and
  those that enter no mean, as they are not distorted or people are right in less than 20 % (``plotting/plot.py``).
- ``restricted_imagenet.json``: the first and last ImageNet class of the 9 super-classes of Restricted ImageNet, in
  their order (Engstrom et al. 2019, table 1).
- ``imagenet_c_alexnet.csv``: AlexNet's errors on ImageNet-C; its sources and loader are in ``corruption_baselines.py``.
- ``published/imagenet_testbed_standard.csv``: accuracies of 85 networks that Taori et al. 2020 call standard training
  (modestyachts/imagenet-testbed ``robustness_top1s.csv``, ``model_types.py``): those at least 55 % right on ImageNet,
  without its own training runs (``aws``, ``batch64``, subsampled); those of ImageNet-V2 on the images as published
  (``-format-val``), and ObjectNet's ``objectnet-1.0-beta``; ``imagenet_of_r`` is ImageNet's images of
  ImageNet-R's classes, ``imagenet_of_objectnet`` of ObjectNet's. A network without a value in a
  column is left out of that column's line.
- ``published/``: other published values of networks, a file a source, which each file names.
"""

import csv
import json
from functools import cache
from importlib.resources import files

from lit_robust.core.errors import check_choice
from lit_robust.reference.corruption_baselines import (
    CorruptionBaseline,
    benchmark_corruptions,
    corruption_baseline,
    known_corruptions,
)

__all__ = [
    "CorruptionBaseline",
    "benchmark_corruptions",
    "corruption_baseline",
    "human_axis",
    "human_conditions",
    "human_sets",
    "imagenet_categories",
    "imagenet_names",
    "imagenet_subset",
    "imagenet_wnids",
    "known_corruptions",
    "objectnet_classes",
    "restricted_imagenet",
    "standard_networks",
]


def _read(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """Return the 1,000 WordNet ids; the place of each is its class number."""
    return tuple(row["wnid"] for row in csv.DictReader(_read("imagenet_classes.csv").splitlines()))


@cache
def imagenet_names() -> tuple[str, ...]:
    """Return the 1,000 English class names in class order."""
    return tuple(row["name"] for row in csv.DictReader(_read("imagenet_classes.csv").splitlines()))


def imagenet_categories() -> dict[str, tuple[int, ...]]:
    """Return the 16 categories in alphabetical order, each with its ImageNet class numbers."""
    return {name: tuple(classes) for name, classes in json.loads(_read("imagenet_categories_16.json")).items()}


def imagenet_subset(name: str) -> tuple[int, ...]:
    """Return the ImageNet class numbers of ``imagenet-a``, ``imagenet-o`` or ``imagenet-r``, ascending.

    Raises:
        UserError: there is no subset of that name.
    """
    subsets = json.loads(_read("imagenet_subsets.json"))
    check_choice("subset", name, subsets)
    return tuple(subsets[name])


@cache
def objectnet_classes() -> dict[str, tuple[int, ...]]:
    """Return the 113 folders of ObjectNet that show classes of ImageNet, in alphabetical order, each with these."""
    return {name: tuple(classes) for name, classes in json.loads(_read("objectnet.json")).items()}


def human_sets() -> tuple[str, ...]:
    """Return the names of the 17 sets that people decided on (Geirhos et al. 2021)."""
    return tuple(json.loads(_read("human_sets.json")))


def human_conditions(name: str, in_mean: bool = False) -> tuple[str, ...]:
    """Return the conditions of one of ``human_sets`` in their order; none where it has one, or for another set.

    Args:
        name: of the set.
        in_mean: only those that enter the published means.
    """
    facts = json.loads(_read("human_sets.json")).get(name, {})
    left_out = facts.get("left_out", ()) if in_mean else ()
    return tuple(condition for condition in facts.get("conditions", ()) if condition not in left_out)


def human_axis(name: str) -> str:
    """Return what the conditions of one of ``human_sets`` are, with the unit; empty where it has one."""
    return str(json.loads(_read("human_sets.json")).get(name, {}).get("axis", ""))


def restricted_imagenet() -> dict[str, range]:
    """Return the 9 super-classes of Restricted ImageNet in their order, each with its ImageNet classes."""
    ranges = json.loads(_read("restricted_imagenet.json"))
    return {name: range(first, last + 1) for name, (first, last) in ranges.items()}


def standard_networks(dataset: str, clean: str = "imagenet") -> tuple[tuple[str, float, float], ...]:
    """Return networks with standard training: name, accuracy on ``clean``, accuracy on ``dataset``, as fractions.

    Args:
        dataset: ``imagenet-a``, ``imagenet-r``, ``imagenet-sketch``, ``objectnet`` or one of
            ``imagenet-v2-matched-frequency``, ``imagenet-v2-threshold-0.7`` and ``imagenet-v2-top-images``.
        clean: ``imagenet``; or ``imagenet_of_a``, ``imagenet_of_r`` or ``imagenet_of_objectnet``, its images of those
            sets' classes.

    Raises:
        UserError: there is no such set.
    """
    rows = list(csv.DictReader(_read("published/imagenet_testbed_standard.csv").splitlines()))
    for name in (dataset, clean):
        check_choice("dataset", name, [column for column in rows[0] if column != "network"])
    both = [(row["network"], row[clean], row[dataset]) for row in rows]
    return tuple((name, float(first), float(second)) for name, first, second in both if first and second)
