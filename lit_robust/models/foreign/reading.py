"""From a file of any laboratory to a plain state dict, and to what its network expects of its images."""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lit_robust.core.errors import UserError
from lit_robust.models.foreign.checkpoint import (
    AVERAGED,
    RAW,
    Channels,
    Checkpoint,
    Preprocessing,
    check_plain,
    in_pixel_units,
    names_file,
    open_checkpoint,
    three_numbers,
)
from lit_robust.models.foreign.naming import TOTALS, Naming, plain_names

_log = logging.getLogger(__name__)
# Half precision rounds a published constant by up to 0.00025; a difference below a quarter of a grey value is none.
CHANNEL_TOLERANCE = 5e-4
# Where training scripts keep the weights, the most usual first: timm's and revisiting-at's, torchvision's, MadryLab's.
USUAL = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model", "model_state_dict", "net")
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


@dataclass(frozen=True, eq=False)
class Copy:
    """One of the copies of a network's weights that a file holds.

    Attributes:
        place: where in the file its state dict stands; empty for a bare one.
        naming: its tensors by plain names.
    """

    place: str
    naming: Naming

    @property
    def label(self) -> str:
        """What to call it: its place, and the prefix inside."""
        return ".".join(filter(None, [self.place, self.naming.prefix.removesuffix(".")]))

    def __str__(self) -> str:
        """Its name and size, as errors list it."""
        return f"{self.label or 'the bare one'} ({len(self.naming.tensors)} tensors)"


def read_weights(file: Path, own: Collection[str] = (), copy: str = "averaged") -> Weights:
    """Read a file of weights under the names of torchvision and timm; nothing in it is run.

    Args:
        file: see ``open_checkpoint``.
        own: the names of the network it is meant for, where that is known.
        copy: which to take where a file holds several copies of the weights: ``averaged`` (EMA, SWA), ``raw``, or the
            name of one. timm and revisiting-at evaluate the averaged one, and Lightning's EMA callback saves it as
            the network's own.

    Raises:
        UserError: as ``open_checkpoint`` and ``plain_names``, or none of the copies can be chosen; the sentence names
            the file.
    """
    opened = open_checkpoint(file)
    chosen, notes = _choose(file, opened, own, copy)
    naming, state = chosen.naming, opened.states[chosen.place]
    check_plain(file, state)
    if others := [name for name, entry in state.items() if not isinstance(entry, Tensor)]:
        notes.append(f"these entries among the tensors are not tensors, and were left out: {', '.join(others)}")
    if left := naming.dropped.get("outside the network"):
        notes.append(f"{len(left)} tensors stand outside the network and were left: {_first(left)}")
    if totals := naming.dropped.get(TOTALS):
        notes.append(f"{len(totals)} {TOTALS}, as a profiler leaves them, were left out: {_first(totals)}")
    # A loss or a single layer can be averaged, too; what trains a network has at least its size.
    size = sum(tensor.numel() for tensor in naming.tensors.values())
    if unread := [place for place, numbers in opened.unread.items() if 2 * numbers > size]:
        notes.append(
            f"what may be an average of the weights stands in {', '.join(unread)}, which is not read here: if you mean "
            "it, load it by the code that wrote it, and save the network's state dict"
        )
    form, says, why = _judge(opened, chosen, frozenset([file.resolve()]))
    for note in (*notes, *(rule for rule in naming.rules if "set to 0" in rule), *why):
        _log.warning("%s: %s", file, note)
    normaliser = naming.normaliser and (_channels(naming.normaliser[0]), _channels(naming.normaliser[1]))
    if normaliser and not in_pixel_units(*normaliser):
        mean, std = normaliser
        raise UserError(
            f"{file} holds a normaliser of mean {list(mean)} and std {list(std)}, which no images in [0, 1] have: save "
            "the network's own state dict, and name that file."
        )
    return Weights(
        tensors=naming.tensors,
        form=form,
        key=chosen.place,
        left=tuple(part for part in opened.parts if part != chosen.place),
        foreign=opened.foreign,
        rules=(*notes, *naming.rules, *why),
        dropped=naming.dropped,
        says=says,
        normaliser=normaliser,
    )


def _choose(file: Path, opened: Checkpoint, own: Collection[str], copy: str) -> tuple[Copy, list[str]]:
    """Return the copy of the weights that counts, and a sentence on each choice there was.

    Where the network is known, only those count that are the network's by name, if there are such.
    """
    copies = _copies(file, opened, own)
    labels = ", ".join(str(one) for one in copies)
    if copy not in ("averaged", "raw"):
        named = [one for one in copies if copy in (one.label, one.place, one.naming.prefix.removesuffix("."))]
        if len(named) != 1:
            raise UserError(f"{file} holds {'no' if not named else 'more than one'} copy {copy!r}, but {labels}.")
        return named[0], [f"the copy {copy} was taken, as asked"]
    averaged = [one for one in copies if AVERAGED.search(one.label) and not RAW.search(one.label)]
    raw = [one for one in copies if RAW.search(one.label)]
    plain = [one for one in copies if one not in averaged and one not in raw]
    # What is neither is averaged where another says that it is not, and raw where another says that it is averaged.
    first, second = (averaged or plain, raw or plain) if copy == "averaged" else (raw or plain, averaged or plain)
    if not first and averaged:
        raise UserError(f"{file} holds averaged weights alone ({averaged[0].label}): take those, with copy averaged.")
    first = first or raw
    places = {one.place for one in first}
    place = next((usual for usual in USUAL if usual in places), first[0].place)
    possible = [one for one in first if one.place == place]
    if len(possible) > 1 or (len(places) > 1 and place not in USUAL):
        raise UserError(
            f"{file} holds several copies of the weights, {labels}: choose one of them by its name, as in --copy or "
            f"--model.network.copy {possible[0].label}."
        )
    chosen = possible[0]
    notes, chosen_copies = [], [chosen]
    if second and second is not first:
        chosen_copies.append(second[0])
        other = second[0].label or "the bare one"
        notes.append(f"of two copies of the weights the {copy} one, {chosen.label}, was taken, not {other}")
    others = [str(one) for one in copies if one not in chosen_copies and one.place == place]
    known = {one.place for one in chosen_copies}
    others += [f"{name} ({_count(state)} tensors)" for name, state in opened.states.items() if name not in known]
    if others:
        notes.append(f"{chosen.label} was taken, not what else holds tensors: {', '.join(others)}")
    return chosen, notes


def _copies(file: Path, opened: Checkpoint, own: Collection[str]) -> list[Copy]:
    """Return the copies of the weights that a file holds, without repetitions."""
    found: list[Copy] = []
    for place, state in opened.states.items():
        tensors = {name: entry for name, entry in state.items() if isinstance(entry, Tensor)}
        try:
            found += [Copy(place, naming) for naming in plain_names(tensors, own)]
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
    fitting = [one for one in found if own and one.naming.tensors.keys() == set(own)]
    # A count of steps, or what trains the network, can hold a few tensors too.
    largest = max(len(one.naming.tensors) for one in found)
    large = fitting or [one for one in found if 2 * len(one.naming.tensors) > largest]
    distinct: list[Copy] = []
    for one in sorted(large, key=lambda one: len(one.naming.prefix)):
        same_place = [other.naming.tensors for other in distinct if other.place == one.place]
        if not any(_equal(one.naming.tensors, other) for other in same_place):
            distinct.append(one)
    return distinct


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def _count(state: Mapping[str, object]) -> int:
    return sum(isinstance(entry, Tensor) for entry in state.values())


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _judge(opened: Checkpoint, chosen: Copy, seen: frozenset[Path]) -> tuple[str, Preprocessing, list[str]]:
    """Return the form, what is known of the images, and why; ``seen`` are the files that were asked already."""
    says, reasons = _said_by_module(opened, seen)
    form, says, why = _recognise(opened.form(chosen.place), chosen.naming, says)
    return form, says, [*reasons, *why]


def _said_by_module(opened: Checkpoint, seen: frozenset[Path]) -> tuple[Preprocessing, list[str]]:
    """Return what a file says of its images: its metadata, or the settings of our module that was trained."""
    settings = opened.network
    mean, std = three_numbers(settings.get("mean")), three_numbers(settings.get("std"))
    trained_from, start = settings.get("weights"), opened.says
    reasons: list[str] = []
    if isinstance(trained_from, str) and names_file(trained_from):
        # That file may have said something; in the end it can be this very one, written over it.
        file = Path(trained_from).resolve()
        if file.is_file() and file not in seen:
            before = open_checkpoint(file)
            _, start, reasons = _judge(before, _choose(file, before, (), "averaged")[0], seen | {file})
        elif not mean or not std:
            reasons = [f"it was trained from {trained_from}, which is not there to say how its images are normalised"]
    elif trained_from is not None and settings.get("name") in RESCALED:
        start = Preprocessing(transform_input=True)
    if isinstance(settings.get("transform_input"), bool):
        start = replace(start, transform_input=settings["transform_input"])
    for name, found in (("mean", mean), ("std", std)):
        if found is None and settings.get(name) is not None:
            reasons.append(f"the {name} in its settings is not a list of three numbers, and was passed over")
    return Preprocessing(mean or start.mean, std or start.std, start.transform_input), reasons


def _recognise(form: str, naming: Naming, says: Preprocessing) -> tuple[str, Preprocessing, list[str]]:
    """Return the form, more exactly; what it says of the images; and why."""
    if naming.form:
        return f"{naming.form}, {form}", says, []
    if any(re.search(r"\.aux_bn\.[a-z]", name) for names in naming.dropped.values() for name in names):
        # tingxueronghua/pytorch-classification-advprop normalises so in training and evaluation.
        half = (0.5, 0.5, 0.5)
        found = Preprocessing(says.mean or half, says.std or half)
        return f"AdvProp port, {form}", found, ["the AdvProp port normalises by mean 0.5 and std 0.5"]
    if "base_model" in naming.prefix.split("."):
        found = Preprocessing(says.mean or (0.0, 0.0, 0.0), says.std or (1.0, 1.0, 1.0))
        return f"revisiting-at, {form}", found, ["networks of revisiting-at take images in [0, 1] without normalising"]
    bare = form in ("state dict", "safetensors") and not naming.prefix
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
        given = [list(values) for values in weights.normaliser]
        raise UserError(
            f"{source} was trained with mean {given[0]} and std {given[1]}, but mean {list(mean)} and std {list(std)} "
            f'are set: write {mean_option} "{given[0]}" {std_option} "{given[1]}".'
        )
