"""Measures of any network on any loader, in one call from Python."""

import copy
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lit_robust.attacks import PGD, Attack
from lit_robust.callbacks.adversarial import AdversarialAccuracy
from lit_robust.callbacks.evaluation import EvaluationCallback
from lit_robust.callbacks.plain import describes
from lit_robust.callbacks.results_file import ResultsFile
from lit_robust.core.arrays import as_tensor
from lit_robust.core.batch import as_batch, check_unit_range, image_and_label
from lit_robust.core.errors import UserError
from lit_robust.core.logits import fitting, logits_of
from lit_robust.core.precision import full_precision
from lit_robust.core.results import RunResults
from lit_robust.models import Classifier, weights_digest
from lit_robust.models.foreign.checkpoint import Channels
from lit_robust.models.network import check_channels

NOISE = (
    ".*does not have many workers",
    ".*sampler has shuffling enabled",  # Each sample counts once in any order.
    ".*isinstance.treespec, LeafSpec.",
    "The `srun` command is available",
)


def evaluate(
    network: nn.Module,
    data: Any,
    measures: Sequence[EvaluationCallback | Attack] | EvaluationCallback | Attack,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str = "auto",
    batch_size: int = 64,
    num_workers: int = 0,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool = True,
) -> RunResults:
    """Measure a network, and leave it as it was: its device, its train mode and the global random state.

    Args:
        network: takes float images ``[B, C, H, W]`` and returns logits ``[B, num_classes]``, alone or as ``logits_of``
            finds them. A module of ``lit_robust.modules`` is tested as ``lit-robust test`` does.
        data: a loader or a data set of ``(image, label)``, a pair of tensors ``(images, labels)``, a mapping of names
            to any of these, or a data module of ``lit_robust.data``, which settles what each measure needs to know. A
            set of several parts is a mapping, too: ``{"imagenet-c": {"fog/1": loader, ...}}``.
            Images are uint8 or floats in [0, 1]. One alone is named after the class of its data set, such as
            ``cifar10``; with one set, all measures are of that.
        measures: evaluations such as ``CleanAccuracy()``, and attacks such as ``PGD(eps=1.0)``, which stand for the
            accuracy under them; one, or several.
        mean: per-channel mean that the network wants its images normalised by, in [0, 1] pixel units; null where it
            takes images in [0, 1].
        std: per-channel standard deviation, likewise.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        batch_size: images a batch, where no loader is given.
        num_workers: processes that load, where no loader is given.
        seed: what every random start of an attack follows from.
        folder: where to write ``results.json`` and the pictures that evaluations keep; null writes nothing, and keeps
            no pictures.
        progress: whether to show a bar.

    Returns:
        What ``results.json`` holds. ``save(folder)`` writes it for ``lit-robust report``; ``to_frame()`` gives a
        table of pandas. Values of a loader that is not torch's own, or that draws its samples by another rule than
        once each, have a warning.

    Raises:
        UserError: data or measures are none of these, images are outside [0, 1], or a measure needs more than the data
            tell, such as the corruptions of ImageNet-C.
    """
    sets = data if isinstance(data, LightningDataModule) else as_loaders(data, batch_size, num_workers)
    names = list(sets) if isinstance(sets, Mapping) else [getattr(sets, "name", None) or "imagenet"]
    several = measures if isinstance(measures, Sequence) else [measures]
    wanted = [_on(measure, names, isinstance(sets, Mapping), folder is not None) for measure in several]
    if not wanted:
        raise UserError("There is nothing to measure: give at least one evaluation, such as CleanAccuracy().")
    tested = _as_module(network, mean, std)
    at = next(network.parameters(), torch.empty(0)).device
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(isolate_rng())
        stack.enter_context(_seeded(seed))
        place = Path(folder or stack.enter_context(tempfile.TemporaryDirectory()))
        trainer = Trainer(
            **_accelerator(device),
            default_root_dir=place,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress,
            callbacks=[*wanted, ResultsFile("lit_robust.evaluate")],
        )
        try:
            if isinstance(sets, LightningDataModule):
                trainer.test(tested, datamodule=sets, verbose=False)
            else:
                trainer.test(tested, dataloaders=sets, verbose=False)
        finally:
            network.to(at)  # The trainer leaves it on the processor.
        found = RunResults.load(place)
    if folder is not None:
        return found
    return replace(found, run={**found.run, "name": tested.describe()["network"]}, examples=[])


class Evaluated(LightningModule):
    """A network of the user's own, as the evaluations see their modules.

    Args:
        network: images to logits.
        mean: per-channel mean of the images it wants, in [0, 1] pixel units; null for images in [0, 1].
        std: per-channel standard deviation, likewise.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        super().__init__()
        self.network = network
        self.normalisation = None if mean is None or std is None else {"mean": list(mean), "std": list(std)}
        self.model: nn.Module = _Bare(network)
        if mean is not None and std is not None:
            self.model = Classifier(network, cast(Channels, tuple(mean)), cast(Channels, tuple(std)))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` of float images ``[B, C, H, W]`` in [0, 1]."""
        logits: Tensor = self.model(images)
        return logits

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return fp32 logits ``[B, num_classes]``.

        Raises:
            UserError: an image is outside [0, 1].
        """
        images = as_batch(batch, first=0).image
        check_unit_range(images)
        if self.normalisation is not None and images.shape[1] != len(self.normalisation["mean"]):
            raise UserError(
                f"Images have {images.shape[1]} channels, and mean and std {len(self.normalisation['mean'])}: give a "
                "number a channel, or images of as many."
            )
        with full_precision(self.device.type), fitting(images):
            logits: Tensor = self.model(images)
        return logits

    def describe(self) -> dict[str, Any]:
        """Return plain values that identify the network."""
        kind = type(self.network)
        return {
            "module": f"{kind.__module__}.{kind.__qualname__}",
            "network": kind.__qualname__,
            "weights": None,
            "weights_sha256": weights_digest(self.network),
            "normalisation": self.normalisation,
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
        }


class _Bare(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.network(images))


def _as_module(network: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None) -> Any:
    if not isinstance(network, nn.Module):
        raise UserError(f"The network is a {type(network).__name__}: give a torch.nn.Module.")
    if (mean is None) != (std is None):
        raise UserError(f"mean is {mean} and std {std}: give both, or none where the network takes images in [0, 1].")
    if any(isinstance(value, int | float) for value in (mean, std)):
        raise UserError(f"mean is {mean} and std {std}: give a number a channel, such as (0.5, 0.5, 0.5).")
    if isinstance(network, LightningModule) and describes(network):
        if mean is not None:
            raise UserError(f"{type(network).__name__} normalises by itself: leave mean and std out.")
        return network
    check_channels(None if mean is None else tuple(mean), None if std is None else tuple(std))
    return Evaluated(network, mean, std)


class Grouped:
    """Several loaders as one test set, each a group of it, such as a cell of ImageNet-C.

    Args:
        loaders: name of the group to its loader, in their order.
    """

    def __init__(self, loaders: Mapping[str, Any]) -> None:
        self.groups = tuple(loaders)
        self.loaders = list(loaders.values())

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for number, loader in enumerate(self.loaders):
            for given in loader:
                batch = as_batch(given, first=0)
                yield {"image": batch.image, "label": batch.label, "group": torch.full_like(batch.label, number)}


def as_loaders(data: Any, batch_size: int, num_workers: int) -> dict[str, Any]:
    """Return name to loader of what ``evaluate`` takes.

    Raises:
        UserError: it is neither a loader nor a data set.
    """
    if isinstance(data, Mapping):
        if not data:
            raise UserError("The data are an empty mapping: give at least one loader by its name.")
        sets = {}
        for name, one in data.items():
            parts = one if isinstance(one, Mapping) else {"": one}
            loaders = {str(part): _loader(each, batch_size, num_workers) for part, each in parts.items()}
            sets[str(name)] = Grouped(loaders) if isinstance(one, Mapping) else loaders[""]
        return sets
    loader = _loader(data, batch_size, num_workers)
    samples = getattr(loader, "dataset", loader)
    while isinstance(samples, torch.utils.data.Subset):
        samples = samples.dataset
    return {type(samples).__name__.lower(): loader}


def _loader(data: Any, batch_size: int, num_workers: int) -> Any:
    if isinstance(data, str | Path):
        raise UserError(f"The data are the path {data}: open it, as torchvision's ImageFolder, or by a data module.")
    if isinstance(data, Tensor | np.ndarray):
        raise UserError(f"The data are one {type(data).__name__}: give the pair (images, labels).")
    if isinstance(data, tuple | list) and any(isinstance(one, LightningDataModule | DataLoader) for one in data):
        raise UserError("The data are several: give loaders by name, {name: loader}, data modules as RobustnessSuite.")
    if isinstance(data, tuple | list) and len(data) == 2:
        images, labels = as_tensor("The images", data[0]), as_tensor("The labels", data[1])
        if images.shape[:1] != labels.shape[:1]:
            shapes = f"{list(images.shape)} and {list(labels.shape)}"
            raise UserError(f"The images and labels have the shapes {shapes}: give one label an image.")
        data = TensorDataset(images, labels)
    elif isinstance(data, tuple | list):
        raise UserError(f"The data are a {type(data).__name__} of {len(data)}: give a loader, or (images, labels).")
    if (isinstance(data, Dataset) and not isinstance(data, IterableDataset)) or hasattr(data, "__getitem__"):
        if batch_size < 1 or num_workers < 0:
            raise UserError(f"batch_size is {batch_size} and num_workers {num_workers}: give 1 and 0, or more.")
        data = DataLoader(data, batch_size, num_workers=num_workers, collate_fn=collate)
    if not hasattr(data, "__iter__"):
        raise UserError(f"The data are a {type(data).__name__}: give a loader or a data set of (image, label).")
    if _batches(data) == 0:
        raise UserError("The data give no batch: check what the data set holds, and whether drop_last leaves it out.")
    return data


def _batches(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:  # A loader of an iterable data set has no length.
        return None


def collate(samples: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Return samples as one batch, ``[B, C, H, W]`` and ``[B]``; PIL images become uint8.

    Args:
        samples: ``(image, label)``, or dicts such as ``{"image", "label"}``.

    Raises:
        UserError: images are of different sizes.
    """
    pairs = [image_and_label(sample) for sample in samples]
    images = [_pixels(image) for image, _ in pairs]
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise UserError(
            f"Images have the shapes {', '.join(map(str, shapes[:3]))}: give the data set a transform that makes them "
            "alike, such as Resize(256), CenterCrop(224) and ToTensor()."
        )
    return torch.stack(images), torch.tensor([_class(label) for _, label in pairs])


def _class(given: Any) -> int:
    label = as_tensor("A label", given)
    if label.numel() != 1 or label.is_floating_point() or label.dtype == torch.bool:
        raise UserError(
            f"A label is of {label.dtype} and shape {list(label.shape)}: give one whole number an image, such as "
            "label.argmax() of one that is one-hot."
        )
    return int(label)


def _pixels(image: Any) -> Tensor:
    if hasattr(image, "convert"):  # PIL's.
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return as_tensor("An image", image)


def _on(
    measure: EvaluationCallback | Attack, names: Sequence[str], plain: bool, with_pictures: bool
) -> EvaluationCallback:
    """Return a copy of an evaluation, so that none of the caller's is changed, on the only set there is."""
    if isinstance(measure, Attack):
        if len(names) > 1:
            raise UserError(
                f"The data have {', '.join(names)}, and {type(measure).__name__} names none: give "
                f"AdversarialAccuracy(attack, dataset={names[0]!r})."
            )
        name = "" if isinstance(measure, PGD) else type(measure).__name__.lower()
        return AdversarialAccuracy(measure, dataset=names[0], name=name, examples=8 if with_pictures else 0)
    if not isinstance(measure, EvaluationCallback):
        kind = measure.__name__ + " itself" if isinstance(measure, type) else f"a {type(measure).__name__}"
        raise UserError(f"A measure is {kind}: give objects such as CleanAccuracy() or PGD(eps=1.0).")
    if not hasattr(measure, "dataset"):
        name = type(measure).__name__
        raise UserError(f"{name} has no dataset: let its __init__ begin with super().__init__(dataset).")
    own = copy.copy(measure)
    if plain and len(names) == 1:
        own.dataset = names[0]
    return own


def _accelerator(device: str) -> dict[str, Any]:
    if device == "auto":
        return {"accelerator": "auto", "devices": 1}
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device is {device!r}: give auto, cpu, cuda, cuda:1 or mps.") from error
    if wanted.type not in ("cpu", "cuda", "mps") or (wanted.type == "mps" and not torch.backends.mps.is_available()):
        raise UserError(f"device is {device!r}, which torch has not here: give auto or cpu.")
    if wanted.type == "cuda" and not (torch.cuda.is_available() and (wanted.index or 0) < torch.cuda.device_count()):
        raise UserError(
            f"device is {device!r}, and torch sees {torch.cuda.device_count()} GPUs: give another, or auto."
        )
    return {"accelerator": wanted.type, "devices": 1 if wanted.index is None else [wanted.index]}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    before = os.environ.get("PL_GLOBAL_SEED")
    os.environ["PL_GLOBAL_SEED"] = str(int(seed))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PL_GLOBAL_SEED"]
        else:
            os.environ["PL_GLOBAL_SEED"] = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's lines on hardware and tips away."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in NOISE:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.setLevel(level)
