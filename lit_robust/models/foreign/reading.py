"""From a file of any laboratory to a plain state dict, and to what its network expects of its images."""

import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lit_robust.core.errors import UserError
from lit_robust.models.foreign.channels import Channels, in_pixel_units, three_numbers
from lit_robust.models.foreign.checkpoint import Checkpoint, Copy, Preprocessing, names_file, open_checkpoint
from lit_robust.models.foreign.naming import FROM_ATTACKER, FROM_NORMALISED, Naming, plain_names

_log = logging.getLogger(__name__)
# Half precision rounds a published constant by up to 0.00025; a difference below a quarter of a grey value is none.
CHANNEL_TOLERANCE = 5e-4
# torchvision's own weights of these expect its own rescaling after ImageNet's normalisation.
RESCALED = ("torchvision/googlenet", "torchvision/inception_v3")


@dataclass(frozen=True)
class Weights:
    """What was read from a file.

    Attributes:
        tensors: the network's state dict, in the file's own precision.
        form: what the file is, for a person.
        key: where in the file the state dict stood; empty for a bare one.
        left: what else the file holds on its first level.
        foreign: names of Python objects in the file that were passed over.
        rules: what was done to the names, a sentence each.
        dropped: tensors that were left out, by the reason.
        says: what the file, or its form, says of the images.
        normaliser: mean and standard deviation that the file held as tensors.
    """

    tensors: dict[str, Tensor]
    form: str
    key: str
    left: tuple[str, ...]
    foreign: tuple[str, ...]
    rules: tuple[str, ...]
    dropped: dict[str, list[str]]
    says: Preprocessing
    normaliser: tuple[Channels, Channels] | None


def read_weights(file: Path, own: Collection[str] = (), copy: Copy = "averaged") -> Weights:
    """Read a file of weights under the names of torchvision and timm; nothing in it is run.

    Args:
        file: see ``open_checkpoint``.
        own: the names of the network it is meant for, where that is known.
        copy: averaged or raw weights, where the file has both.

    Raises:
        UserError: as ``open_checkpoint`` and ``plain_names``; the sentence names the file.
    """
    opened = open_checkpoint(file, copy)
    try:
        naming = plain_names(opened.tensors, own)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    form, says, why = _judge(opened, naming, frozenset([file.resolve()]))
    for note in (*opened.notes, *(rule for rule in naming.rules if "set to 0" in rule), *why):
        _log.warning("%s: %s", file, note)
    rules = (*opened.notes, *naming.rules, *why)
    normaliser = naming.normaliser and (_channels(naming.normaliser[0]), _channels(naming.normaliser[1]))
    if normaliser and not in_pixel_units(*normaliser):
        mean, std = normaliser
        raise UserError(
            f"{file} holds a normaliser of mean {list(mean)} and std {list(std)}, which no images in [0, 1] have: save "
            "the network's own state dict, and name that file."
        )
    return Weights(
        naming.tensors, form, opened.key, opened.left, opened.foreign, rules, naming.dropped, says, normaliser
    )


def _judge(opened: Checkpoint, naming: Naming, seen: frozenset[Path]) -> tuple[str, Preprocessing, list[str]]:
    """Return the form, what is known of the images, and why; ``seen`` are the files that were asked already."""
    says, told = _said_by_module(opened, seen)
    form, says, why = _recognise(opened.form, naming, says)
    return form, says, [*told, *why]


def _said_by_module(opened: Checkpoint, seen: frozenset[Path]) -> tuple[Preprocessing, list[str]]:
    """Return what a file says of its images: its metadata, or the settings of our module that was trained."""
    settings = opened.network
    mean, std = three_numbers(settings.get("mean")), three_numbers(settings.get("std"))
    trained_from, start = settings.get("weights"), opened.says
    told: list[str] = []
    if isinstance(trained_from, str) and names_file(trained_from):
        # That file may have said something; in the end it can be this very one, written over it.
        file = Path(trained_from).resolve()
        if file.is_file() and file not in seen:
            before = open_checkpoint(file)
            _, start, told = _judge(before, plain_names(before.tensors), seen | {file})
        elif not mean or not std:
            told = [f"it was trained from {trained_from}, which is not there to say how its images are normalised"]
    elif trained_from is not None and settings.get("name") in RESCALED:
        start = Preprocessing(transform_input=True)
    for name, found in (("mean", mean), ("std", std)):
        if found is None and settings.get(name) is not None:
            told.append(f"the {name} in its settings is no list of three numbers, and was passed over")
    return Preprocessing(mean or start.mean, std or start.std, start.transform_input), told


def _recognise(form: str, naming: Naming, says: Preprocessing) -> tuple[str, Preprocessing, list[str]]:
    """Return the form, more exactly; what it says of the images; and why."""
    if FROM_ATTACKER in naming.rules:
        return f"robustness (MadryLab, Microsoft, Chen et al.), {form}", says, []
    if FROM_NORMALISED in naming.rules:
        return f"network behind a normaliser (as RobustBench's), {form}", says, []
    if any(re.search(r"\.aux_bn\.[a-z]", name) for names in naming.dropped.values() for name in names):
        # tingxueronghua/pytorch-classification-advprop normalises so in training and evaluation.
        half = (0.5, 0.5, 0.5)
        found = Preprocessing(says.mean or half, says.std or half)
        return f"AdvProp port, {form}", found, ["the AdvProp port normalises by mean 0.5 and std 0.5"]
    if "base_model." in naming.wrappers:
        found = Preprocessing(says.mean or (0.0, 0.0, 0.0), says.std or (1.0, 1.0, 1.0))
        return f"revisiting-at, {form}", found, ["networks of revisiting-at take images in [0, 1] without normalising"]
    bare = form in ("state dict", "safetensors") and not naming.wrappers
    if bare and naming.has_heads:
        # Their own files alone are bare and hold the heads; what others trained from them is wrapped or lacks those.
        found = Preprocessing(says.mean, says.std, transform_input=True)
        return f"torchvision, {form}", found, ["torchvision's own weights expect transform_input, so it is on"]
    return form, says, []


def _channels(values: Tensor) -> Channels:
    red, green, blue = (round(value, 6) for value in values.tolist())
    return red, green, blue


def check_said(mean: Sequence[float], std: Sequence[float], source: str, options: str) -> None:
    """Refuse a mean and a standard deviation that a file says and that no network can normalise by.

    Args:
        mean: per-channel mean, which should be in [0, 1] pixel units; empty where nothing is said.
        std: per-channel standard deviation, likewise, and above 0.
        source: where they come from, for the sentence.
        options: what sets them otherwise on the command line, for the sentence.
    """
    if not in_pixel_units(mean, std):
        raise UserError(
            f"{source} says mean {list(mean)} and std {list(std)}, which are not in [0, 1] pixel units, or divide by "
            f"0: give those it was trained with as {options}."
        )


def check_normaliser(
    weights: Weights,
    source: str,
    mean: Channels,
    std: Channels,
    mean_option: str = "--model.network.mean",
    std_option: str = "--model.network.std",
) -> None:
    """Refuse a network that normalises otherwise than the normaliser in its weights' file.

    Args:
        weights: what was read.
        source: where from, for the sentence.
        mean: per-channel mean of the network, in [0, 1] pixel units.
        std: per-channel standard deviation of the network, likewise.
        mean_option: what sets the mean on the command line, for the sentence.
        std_option: what sets the standard deviation, likewise.
    """
    if weights.normaliser is None:
        return
    theirs, ours = [*weights.normaliser[0], *weights.normaliser[1]], [*mean, *std]
    if any(abs(one - other) > CHANNEL_TOLERANCE for one, other in zip(theirs, ours, strict=True)):
        told = [list(values) for values in weights.normaliser]
        raise UserError(
            f"{source} was trained with mean {told[0]} and std {told[1]}, but mean {list(mean)} and std {list(std)} "
            f'are set: write {mean_option} "{told[0]}" {std_option} "{told[1]}".'
        )
