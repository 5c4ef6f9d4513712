"""Adversarial filtration: from a pool of images, those that networks get wrong, or take for what they know.

Hendrycks et al. 2021, section 3, made ImageNet-A and ImageNet-O so; people chose among what was left. Where the text
leaves a rule open, the one taken here stands in its function's docstring.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as crops
from tqdm import tqdm

from lit_robust.core.errors import UserError, check_choice
from lit_robust.core.files import write_tensors
from lit_robust.core.precision import full_precision
from lit_robust.data.loading.loader import PlannedLoader
from lit_robust.data.loading.order import EvaluationOrder
from lit_robust.data.loading.samples import EvaluationSamples, TableSource
from lit_robust.data.loading.splits import TableSplit
from lit_robust.data.loading.transforms import CropError, EvaluationCrop, Image, as_tensor, centre_crop, resize
from lit_robust.models import Classifier, weights_digest
from lit_robust.shards.labels import WORDNET_ID

Crops = Literal["ten", "centre"]
COUNTS: dict[Crops, int] = {"ten": 10, "centre": 1}
KEPT_EVERY = 20  # batches


@dataclass(frozen=True)
class FilterCrops:
    """Resize the shorter side, then cut crops out of the image.

    Attributes:
        resize: length of the shorter side in pixels; null keeps the image as it is.
        crop: side of a crop in pixels.
        crops: ``ten``: the corners and the centre, and the same mirrored, as torchvision's ``ten_crop``; ``centre``.
    """

    resize: int | None = 256
    crop: int = 224
    crops: Crops = "ten"

    def __post_init__(self) -> None:
        check_choice("crops", self.crops, COUNTS)
        EvaluationCrop(self.resize, self.crop)  # Checks both sides.

    @property
    def count(self) -> int:
        """How many crops an image has."""
        return COUNTS[self.crops]

    def __call__(self, image: Image) -> Tensor:
        """Return uint8 ``[3, count * crop, crop]`` of an RGB image ``[H, W, 3]``: the crops, one below the other.

        Raises:
            CropError: the image is smaller than a crop.
        """
        pixels = as_tensor(image)
        height, width = pixels.shape[1:]
        if self.resize is not None:
            short = min(height, width)
            pixels = resize(pixels, (int(self.resize * height / short), int(self.resize * width / short)))
        if min(pixels.shape[1:]) < self.crop:
            raise CropError(f"is {width} x {height} px, smaller than a crop of {self.crop} px: set resize, or crop.")
        if self.crops == "centre":
            return centre_crop(pixels, self.crop)
        return torch.cat(list(crops.ten_crop(pixels, [self.crop, self.crop])), 1)

    def separated(self, images: Tensor) -> Tensor:
        """Return the crops of a batch, ``[B * count, 3, crop, crop]``, of ``[B, 3, count * crop, crop]``."""
        return images.reshape(len(images), 3, self.count, self.crop, -1).transpose(1, 2).flatten(0, 1)


class PoolSamples(EvaluationSamples):
    """Samples of a pool, each with its crops one below the other."""

    def __init__(self, source: TableSource, cuts: FilterCrops) -> None:
        super().__init__(source, EvaluationCrop(cuts.resize, cuts.crop))
        self.cuts = cuts

    def prepare(self, image: Image, epoch: int, number: int) -> Tensor:
        """Cut the crops."""
        return self.cuts(image)


class CropAnswers(NamedTuple):
    """What one network says of each image of a pool.

    Attributes:
        right: bool ``[N]``, whether any crop is named as the label; false without a label.
        confidence: float32 ``[N]``, the highest probability of the label over the crops; 0 without a label.
        predicted: int64 ``[N]``, the answer to the centre crop, a class of the pool.
        highest: float32 ``[N]``, the highest probability of any class for the centre crop.
    """

    right: Tensor
    confidence: Tensor
    predicted: Tensor
    highest: Tensor


_NOTHING = CropAnswers(
    *(torch.zeros(0, dtype=kind) for kind in (torch.bool, torch.float32, torch.int64, torch.float32))
)


@dataclass(frozen=True)
class FilterNetwork:
    """A network that filters.

    Attributes:
        name: for results.
        network: images in [0, 1] to logits.
        classes: the pool's classes, ascending; empty for all of the network's. A network with as many outputs, such as
            one that was fine-tuned on them, has them in this order; of another the logits of these classes are taken
            before the softmax.
    """

    name: str
    network: Classifier
    classes: Sequence[int] = ()

    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probabilities of the pool's classes, float32 ``[B, C]``, for images ``[B, 3, H, W]`` in [0, 1].

        Raises:
            UserError: the network lacks one of the classes.
        """
        with torch.inference_mode(), full_precision(images.device.type):
            logits = self.network(images).float()
        if self.classes and logits.shape[1] != len(self.classes):
            if max(self.classes) >= logits.shape[1]:
                raise UserError(
                    f"The network {self.name} has {logits.shape[1]} classes, and the pool's go up to "
                    f"{max(self.classes)}: give a network that has them, or one of exactly {len(self.classes)}."
                )
            logits = logits[:, torch.tensor(self.classes, device=logits.device)]
        probabilities: Tensor = logits.softmax(1)
        return probabilities

    @cached_property
    def described(self) -> dict[str, Any]:
        """What the results say of it; its digest reads every weight, so once."""
        return {"name": self.name, "weights_sha256": weights_digest(self.network.network)}


def ask(
    filtering: FilterNetwork,
    pool: TableSplit,
    cuts: FilterCrops,
    *,
    batch_size: int = 32,
    num_workers: int = 2,
    file: Path | None = None,
    rank: int = 0,
    world: int = 1,
) -> CropAnswers:
    """Return what a network says of every image of a pool.

    Ranks take whole batches in turn, so that each image stands in the same batch on any number of ranks, and has the
    same answer to the last digit.

    Args:
        filtering: the network, on its device.
        pool: labels are numbers of the network's classes, or -1.
        cuts: the crops.
        batch_size: images at a time, each with all of its crops.
        num_workers: processes that decode.
        file: where answers are kept, so that the same call goes on after a kill; null to keep nothing. Of several
            ranks each has its own next to it.
        rank: of this process, in torch's process group.
        world: how many processes share the pool; all get all answers.

    Raises:
        UserError: a label is not one of the classes.
        DataError: an image cannot be read, or is smaller than a crop.
    """
    labels = _labels(pool, filtering)
    described = [filtering.described, list(filtering.classes), asdict(cuts), pool.protocol, len(pool)]
    if world > 1:
        described += [rank, world, batch_size]
        file = file and file.with_suffix(f".{rank}-of-{world}{file.suffix}")
    identity = json.dumps(described)
    mine = np.flatnonzero(np.arange(len(pool)) // batch_size % world == rank)
    parts = [known] if file and (known := _read(file, identity)) else [_NOTHING]
    device = next(filtering.network.parameters()).device
    begin = len(parts[0].right)
    if begin < len(mine):
        plan = EvaluationOrder(numbers=mine, batch_size=batch_size, rank=0, world=1)
        begin -= begin % batch_size  # Batches may have another size than in the run that was killed.
        parts = [CropAnswers(*(part[:begin] for part in known)) for known in parts]
        loader = PlannedLoader(PoolSamples(TableSource(pool.table), cuts), plan, num_workers, False, False)
        loader.sampler.start = begin // batch_size
        bar = tqdm(loader, f"asking {filtering.name}", total=plan.batches, initial=loader.sampler.start, unit="batch")
        for place, batch in enumerate(bar, loader.sampler.start + 1):
            rows, chosen = batch.index[batch.valid], batch.valid
            images = cuts.separated(batch.image[chosen].to(device).float() / 255)
            parts.append(_answers(filtering.probabilities(images).cpu(), labels[rows], cuts))
            if file and (place % KEPT_EVERY == 0 or place == plan.batches):
                write_tensors(file, _joined(parts)._asdict(), {"identity": identity})
    found = _joined(parts)
    if world > 1:
        gathered: list[CropAnswers] = [found] * world
        torch.distributed.all_gather_object(gathered, found)
        order = [np.flatnonzero(np.arange(len(pool)) // batch_size % world == other) for other in range(world)]
        places = torch.from_numpy(np.argsort(np.concatenate(order)))
        found = CropAnswers(*(column[places] for column in _joined(gathered)))
    if filtering.classes:
        return found._replace(predicted=torch.tensor(filtering.classes)[found.predicted])
    return found


def _labels(pool: TableSplit, filtering: FilterNetwork) -> Tensor:
    """Return each image's label as a place among the network's classes, int64 ``[N]``; -1 where it has none."""
    given = torch.tensor(pool.table.label)
    if not filtering.classes:
        return given
    classes = torch.tensor(filtering.classes)
    place = torch.searchsorted(classes, given).clamp(max=len(classes) - 1)
    known = classes[place] == given
    unknown = given[~known & (given >= 0)]
    if len(unknown):
        raise UserError(
            f"The pool {pool.where} has an image of class {int(unknown[0])}, which is not one of the {len(classes)} "
            "classes: leave that class out of the pool, or name it, too."
        )
    return torch.where(known, place, -1)


def _answers(probabilities: Tensor, labels: Tensor, cuts: FilterCrops) -> CropAnswers:
    """Return what probabilities ``[B * count, C]`` of crops say of the ``[B]`` images."""
    each = probabilities.reshape(len(labels), cuts.count, -1)
    if len(labels) and int(labels.max()) >= each.shape[2]:
        raise UserError(
            f"The pool has an image of class {int(labels.max())}, but a filter network has {each.shape[2]} classes: "
            "give a network of the pool's classes."
        )
    labelled = labels >= 0
    own = each.gather(2, labels.clamp(min=0)[:, None, None].expand(-1, cuts.count, 1))[:, :, 0].amax(1)
    centre = each[:, 4 if cuts.crops == "ten" else 0]  # torchvision's fifth crop.
    return CropAnswers(
        right=(each.argmax(2) == labels[:, None]).any(1),
        confidence=torch.where(labelled, own, 0.0),
        predicted=centre.argmax(1),
        highest=centre.amax(1),
    )


def _joined(parts: Sequence[CropAnswers]) -> CropAnswers:
    return CropAnswers(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _read(file: Path, identity: str) -> CropAnswers | None:
    """Return the answers that another call with the same arguments kept; None where there are none."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as opened:
            if (opened.metadata() or {}).get("identity") != identity:
                return None
            return CropAnswers(*(opened.get_tensor(name) for name in CropAnswers._fields))
    except SafetensorError:
        return None


class Stage(NamedTuple):
    """What is left of a pool after one rule.

    Attributes:
        name: the rule.
        left: int64 ``[M]``, numbers of the images, ascending but for the last stage, which is in order of interest.
    """

    name: str
    left: NDArray[np.int64]


def hard_images(
    labels: NDArray[np.int64], answers: Sequence[CropAnswers], most_confidence: float = 0.15, per_confusion: int = 15
) -> list[Stage]:
    """Choose the images that every network gets wrong, least confidence in the true class first.

    An image is removed where any crop is right in any network, or any network gives the true class more than
    ``most_confidence``: the paper does not say in which crop, here in any. Then at most ``per_confusion`` images stay
    of each pair of true class and answer, those of the lowest confidence in the true class (its highest over networks
    and crops); the paper does not say which network's answer, here it is the first network's to the centre crop.

    Args:
        labels: ``[N]`` true classes.
        answers: of each network.
        most_confidence: in [0, 1].
        per_confusion: at least 1.

    Raises:
        UserError: there is no network, an image has no label, or a number is out of its range.
    """
    _check(answers, most_confidence, "most_confidence")
    if per_confusion < 1:
        raise UserError(f"per_confusion is {per_confusion}: give 1 or more.")
    if (labels < 0).any():
        raise UserError(f"{int((labels < 0).sum())} images of the pool have no label: only `anomalies` needs none.")
    wrong = ~torch.stack([each.right for each in answers]).any(0).numpy()
    confidence = torch.stack([each.confidence for each in answers]).amax(0).numpy()
    unsure = wrong & (confidence <= np.float32(most_confidence))
    predicted = answers[0].predicted.numpy()
    taken: Counter[tuple[int, int]] = Counter()
    chosen = []
    for number in np.lexsort((np.arange(len(labels)), confidence)):
        pair = int(labels[number]), int(predicted[number])
        if unsure[number] and taken[pair] < per_confusion:
            taken[pair] += 1
            chosen.append(number)
    return [
        Stage("pool", np.arange(len(labels))),
        Stage("wrong in every crop of every network", np.flatnonzero(wrong)),
        Stage(f"true class at most {most_confidence:g}", np.flatnonzero(unsure)),
        Stage(f"at most {per_confusion} of each confusion", np.array(chosen, dtype=np.int64)),
    ]


def anomalous_images(
    keys: Sequence[str], answers: Sequence[CropAnswers], least_confidence: float = 0.5, leave_out: Sequence[str] = ()
) -> list[Stage]:
    """Choose the images that every network takes for a class it knows, most confidence first.

    The pool is to hold none of the classes that the networks were trained on. The paper keeps high maximum softmax
    probabilities, and names no number.

    Args:
        keys: names of the ``[N]`` images.
        answers: of each network; the lowest of their highest probabilities for the centre crop counts.
        least_confidence: in [0, 1].
        leave_out: WordNet ids; images whose names hold one are of a known class, and leave first.

    Raises:
        UserError: there is no network, or a number is out of its range.
    """
    _check(answers, least_confidence, "least_confidence")
    known = {wnid.encode() for wnid in leave_out}
    outside = np.array([known.isdisjoint(WORDNET_ID.findall(key.encode())) for key in keys], dtype=bool)
    confidence = torch.stack([each.highest for each in answers]).amin(0).numpy()
    kept = outside & (confidence >= np.float32(least_confidence))
    order = np.lexsort((np.arange(len(keys)), -confidence))
    return [
        Stage("pool", np.arange(len(keys))),
        Stage("of no known class by its WordNet id", np.flatnonzero(outside)),
        Stage(f"taken for a known class with at least {least_confidence:g}", order[kept[order]]),
    ]


def _check(answers: Sequence[CropAnswers], fraction: float, name: str) -> None:
    if not answers:
        raise UserError("No network filters: name at least one.")
    if not 0 <= fraction <= 1:
        raise UserError(f"{name} is {fraction}: give a fraction from 0 to 1.")


def stage_counts(stages: Sequence[Stage], labels: NDArray[np.int64], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return for each stage its name, how many images are left, and how many of each class.

    Args:
        stages: of one filtration.
        labels: ``[N]`` of the pool.
        names: of the classes; empty for their numbers.
    """
    counts = []
    for stage in stages:
        classes = Counter(labels[stage.left].tolist())
        named = {names[n] if 0 <= n < len(names) else str(n): count for n, count in sorted(classes.items())}
        counts.append({"stage": stage.name, "left": len(stage.left), "classes": named})
    return counts
