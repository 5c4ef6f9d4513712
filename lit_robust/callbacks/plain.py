"""What evaluations ask of data and modules of the user's own, which say nothing of themselves."""

import re
from collections.abc import Mapping, Sized
from typing import Any, cast

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.errors import DataError, UserError
from lit_robust.core.logits import logits_of
from lit_robust.core.precision import full_precision
from lit_robust.models import weights_digest

UNCHECKED = "the loader does not say which samples it gives: that each counts exactly once was not checked"
REPEATED = (
    "an iterable data set gives each of the loader's {workers} worker processes all samples, unless it divides them"
)
DROPPED = "the loader leaves out the last {left} of its data set's {count} samples (drop_last)"
LONGEST = 500  # characters of a transform's description


class PlainData:
    """Test loaders of ``(image, label)`` as evaluations see data: a name for each, and what else can be known.

    Args:
        loaders: name to loader, in their order.
    """

    missing_sets: Mapping[str, str] = {}

    def __init__(self, loaders: Mapping[str, Any]) -> None:
        self.evaluation_sets = {name: describe_loader(name, loader) for name, loader in loaders.items()}


def describe_loader(name: str, loader: Any) -> EvaluationSet:
    """Return what is known of a loader; its count is that of its data set, 0 where that has no length."""
    loaders = getattr(loader, "loaders", [loader])
    parts = [getattr(part, "dataset", None) for part in loaders]
    samples = parts[0]
    protocol: dict[str, Any] = {"loader": type(loader).__name__, "samples": type(samples).__name__}
    groups = tuple(getattr(loader, "groups", ()))
    if groups and all("/" in group for group in groups):
        protocol["cells"] = list(groups)
    if (transform := getattr(samples, "transform", None)) is not None:
        # Where an object lies in memory says nothing, and differs from run to run.
        words = " ".join(re.sub(r" at 0x[0-9a-f]+", "", repr(transform)).split())
        protocol["transform"] = "".join(one for one in words if one.isprintable())[:LONGEST]
    workers = getattr(loader, "num_workers", 0)
    repeated = isinstance(samples, IterableDataset) and workers > 1
    classes = getattr(samples, "classes", ())
    named = isinstance(classes, list | tuple) and all(isinstance(one, str) for one in classes)
    return EvaluationSet(
        name=name,
        count=sum(len(part) for part in parts if isinstance(part, Sized)),
        protocol=protocol,
        class_names=tuple(classes) if named else (),
        groups=groups,
        warnings=(
            *([] if all(map(_gives_each_once, loaders)) else [UNCHECKED]),
            *([REPEATED.format(workers=workers)] if repeated else []),
            *filter(None, map(_dropped, loaders)),
        ),
    )


def _gives_each_once(loader: Any) -> bool:
    """Tell whether a loader is torch's own, and gives each sample of its data set once, but for those it drops."""
    plain = type(loader) is DataLoader and type(loader.batch_sampler) is BatchSampler
    if not plain or isinstance(loader.dataset, IterableDataset):
        return False
    sampler = loader.sampler
    if type(sampler) is RandomSampler:
        return not sampler.replacement and sampler.num_samples == len(loader.dataset)
    return type(sampler) is SequentialSampler


def _dropped(loader: Any) -> str:
    """Return what a loader leaves out at its end; empty where nothing, or unknown."""
    if not (_gives_each_once(loader) and loader.drop_last):
        return ""
    count = len(loader.dataset)
    left = count % loader.batch_size
    return DROPPED.format(left=left, count=count) if left else ""


def data_of(trainer: Trainer) -> Any:
    """Return a test's data: the data module, where it describes its test sets, else what is known of the loaders.

    Raises:
        UserError: plain loaders have no names, or several processes share them.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if hasattr(type(data), "evaluation_sets"):
        return data
    if trainer.world_size > 1:
        raise UserError(
            f"The test's loaders do not say which of their samples each of {trainer.world_size} processes takes, and "
            "some would count twice: test on one device (devices=1), or with a data module of lit_robust.data."
        )
    return PlainData(_named(trainer))


def _named(trainer: Trainer) -> Mapping[str, Any]:
    loaders = trainer.test_dataloaders
    if isinstance(loaders, Mapping):
        return loaders
    several = list(loaders) if isinstance(loaders, list | tuple) else [loaders]
    wanted = list(dict.fromkeys(c.dataset for c in trainer.callbacks if hasattr(c, "dataset")))  # type: ignore[attr-defined]
    if len(several) > 1 or len(wanted) > 1:
        raise UserError(
            f"The test has {len(several)} loaders without names, and its callbacks evaluate {', '.join(wanted)}: give "
            f"the loaders as a dict by these names, such as {{{next(iter(wanted), 'imagenet')!r}: loader}}."
        )
    return {next(iter(wanted), "test"): several[0]}


def describes(module: nn.Module) -> bool:
    """Tell whether a module says which network it is, as those of ``lit_robust.modules`` do."""
    return hasattr(module, "describe")


def description(module: LightningModule) -> dict[str, Any]:
    """Return what a module under test says of its network; of the user's own, what can be seen of it."""
    if describes(module):
        described: dict[str, Any] = cast(Any, module).describe()
        return described
    return {
        "module": f"{type(module).__module__}.{type(module).__qualname__}",
        "network": type(module).__qualname__,
        "weights": None,
        "weights_sha256": weights_digest(module),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
    }


def network_of(module: LightningModule) -> nn.Module:
    """Return what takes images in [0, 1] and gives logits: the ``model`` of ours, else the module by its ``forward``.

    Raises:
        UserError: it has no ``forward``.
    """
    if describes(module):
        return module.get_submodule("model")
    if not is_overridden("forward", module, parent=LightningModule):
        raise UserError(
            f"{type(module).__name__} has no forward, which its logits are asked of: let it return the logits of "
            "images in [0, 1]."
        )
    return module


def is_spread(trainer: Trainer) -> bool:
    """Tell whether the keys of a memory under test are spread over the ranks, each of which knows only its own."""
    retrieval = getattr(trainer.lightning_module, "retrieval", None)
    return trainer.world_size > 1 and bool(getattr(retrieval, "sharded", False))


def logits_of_step(outputs: Any, module: LightningModule, batch: Batch) -> Tensor:
    """Return the logits of a batch, fp32 ``[B, num_classes]``.

    They are what ``test_step`` returned, alone or as ``logits`` of a dict; where it returned something else, such as a
    loss, ``forward`` is asked.
    """
    returned = outputs.get("logits") if isinstance(outputs, Mapping) else outputs
    if isinstance(returned, Tensor) and returned.ndim == 2 and len(returned) == len(batch):
        return returned.float()
    with torch.no_grad(), full_precision(batch.image.device.type):
        return logits_of(network_of(module)(batch.image))


def valid_part(batch: Batch, logits: Tensor, dataset: str, trainer: Trainer) -> tuple[Batch, Tensor]:
    """Return the valid samples of a batch and their logits.

    Raises:
        DataError: a logit is not a finite number.
    """
    kept: Batch = batch.valid_part
    logits = logits if kept is batch else logits[batch.valid]
    broken = ~logits.isfinite().all(1)
    if broken.any():
        number = int(kept.index[broken][0])
        data = data_of(trainer)
        key = data.sample_key(dataset) if hasattr(data, "sample_key") else None
        name = f" ({key(number)})" if key else ""
        raise DataError(
            f"The network gives logits that are not finite for sample {number}{name} of {dataset}: check its weights "
            "and precision."
        )
    return kept, logits


def check_agreement(network: nn.Module, images: Tensor, logits: Tensor) -> None:
    """Refuse a module whose ``forward`` and ``test_step`` are two networks, of which an attack would see the wrong one.

    Args:
        network: the module, by its ``forward``.
        images: ``[B, C, H, W]`` in [0, 1].
        logits: what ``test_step`` said of them.

    Raises:
        UserError: they answer otherwise for more than a tenth of the images, which rounding does not explain.
    """
    with torch.no_grad(), full_precision(images.device.type):
        answers = logits_of(network(images)).argmax(1)
    others = int((answers != logits.argmax(1)).sum())
    if 10 * others > len(images):
        raise UserError(
            f"forward and test_step of {type(network).__name__} answer otherwise for {others} of {len(images)} images, "
            "and an attack sees forward: let both take images in [0, 1], and normalise in forward."
        )
