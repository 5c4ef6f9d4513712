"""Opening a file of weights: which form it has, which state dicts it holds, and what it says of its images."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor

from lit_robust.core.errors import UserError
from lit_robust.models.foreign.reader import INFLATION, Inert, NotPlain, read_restricted

Channels = tuple[float, float, float]
FILE_ENDINGS = (".pt", ".pth", ".safetensors", ".ckpt", ".tar", ".bin", ".th")
# What may stand among the tensors, such as an epoch; a network cannot need it, as it is loaded strictly.
PLAIN = (int, float, str, type(None))
# Parts of a checkpoint that hold tensors and are never weights: the states of what trained them.
OF_TRAINING = re.compile(r"optim|lr_|sched|(grad_)?scaler|loops|callbacks|rng|averaging_state|amp$", re.IGNORECASE)
# A copy that says by its name that it is averaged over the steps of training, and one that says that it is not.
AVERAGED = re.compile(r"(?<![a-z])(ema|swa|avg|averaged?|polyak|shadow)(?![a-z])", re.IGNORECASE)
RAW = re.compile(
    r"(?<![a-z])(raw|(un|non|not|no|without)[ _-]?(ema|swa|avg|averaged?)|current_model_state)(?![a-z])", re.IGNORECASE
)
# What an optimiser averages is gradients, but for torch's ASGD (`ax`) and wrappers that name the parameters.
AVERAGED_BY_OPTIMISER = re.compile(r"ax|(params?_)?(ema|swa|avg|averaged?|shadow)(_(params?|buffer|weights?))?")
# State dicts stand no deeper than in `{"checkpoint": {"model": {"state_dict": ...}}}`.
DEEPEST = 3
# Averages stand no deeper than in `{"callbacks": {"EMA": {"averages": {"model": {"state_dict": {"weight": ...}}}}}}`.
DEEPEST_AVERAGE = 8
LONGEST_NAME = 500


@dataclass(frozen=True)
class Preprocessing:
    """How a network wants its images; None where nothing is said.

    Attributes:
        mean: per-channel mean, in [0, 1] pixel units.
        std: per-channel standard deviation, likewise.
        transform_input: whether torchvision's GoogLeNet or Inception rescales its normalised input to [-1, 1].
    """

    mean: Channels | None = None
    std: Channels | None = None
    transform_input: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds, before one of its state dicts is chosen.

    Attributes:
        states: the state dicts by their place in the file, dotted; empty for a bare one. Names are the file's own, and
            tensors are on the CPU.
        parts: what the file holds on its first level; nothing for a bare state dict.
        foreign: names of the classes and functions that were passed over.
        unread: how many numbers the tensors have at each place that may hold an average of the weights and is no
            state dict that can be chosen: in the state of a callback or an optimiser, or a list without names. A number
            in a place, such as that of a parameter in an optimiser, is a ``*``.
        bare: the form of a bare state dict, for a person.
        says: what the file's metadata say of its images.
        network: what a checkpoint of our own modules says of its network, the settings of ``Network``.
    """

    states: Mapping[str, Mapping[str, Any]]
    parts: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    unread: Mapping[str, int] = field(default_factory=dict)
    bare: str = "state dict"
    says: Preprocessing = field(default_factory=Preprocessing)
    network: Mapping[str, Any] = field(default_factory=dict)

    def form(self, place: str) -> str:
        """Return what kind of file this is where its weights stand at ``place``, for a person."""
        if not place:
            return self.bare
        if "pytorch-lightning_version" in self.parts:
            return "Lightning"
        if place in ("state_dict", "state_dict_ema") and {"arch", "metric"} <= set(self.parts):
            return "timm"
        if place in ("model", "model_ema") and "lr_scheduler" in self.parts:
            return "torchvision's training script"
        if place == "state_dict" and {"arch", "best_prec1"} <= set(self.parts):
            return "PyTorch's ImageNet script (fast_adversarial, Geirhos)"
        return f"checkpoint with its weights in {place!r}"


def names_file(weights: str) -> bool:
    """Return whether a setting of weights is a file rather than a library's entry."""
    return weights.endswith(FILE_ENDINGS) or "/" in weights or Path(weights).is_file()


def open_checkpoint(file: Path) -> Checkpoint:
    """Read ``file`` without running anything it contains.

    Args:
        file: safetensors, or what ``torch.save`` wrote, in the container of any release since torch 0.4.

    Raises:
        UserError: the file is missing, empty, broken, no weights file at all, or holds no state dict.
    """
    _refuse_what_is_no_weights_file(file)
    if file.suffix == ".safetensors" or _looks_like_safetensors(file):
        return _open_safetensors(file)
    content = read_restricted(file)
    value, foreign = content.value, content.foreign
    states = dict(_states(value))
    if not states:
        _refuse_what_holds_none(file, value, foreign)
    _check_names(file, states)
    for state in states.values():
        _check_names(file, state)
        _check_size(file, state)
    parts = tuple(str(name) for name in value) if isinstance(value, Mapping) and "" not in states else ()
    settings = value.get("hyper_parameters") if isinstance(value, Mapping) else None
    network = settings.get("network") if isinstance(settings, Mapping) else None
    unread = _averages(value, states)
    return Checkpoint(states, parts, foreign, unread, network=network if isinstance(network, Mapping) else {})


def _states(value: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every state dict of a file with its place."""
    if _holds_tensors(value) and not _odd_entries(value):
        yield place, value
    elif isinstance(value, Mapping | list | tuple) and depth < DEEPEST:
        entries = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, entry in entries:
            if isinstance(name, str | int) and not OF_TRAINING.match(str(name)):
                yield from _states(entry, f"{place}.{name}" if place else str(name), depth + 1)


def _averages(value: Any, states: Mapping[str, object]) -> dict[str, int]:
    """Return where outside the state dicts an average of the weights may stand, and of how many numbers it is."""
    found: Counter[str] = Counter()
    waiting: list[tuple[tuple[str, ...], Any]] = [((), value)]
    seen: set[int] = set()  # A list may hold itself.
    while waiting:
        place, part = waiting.pop()
        if isinstance(part, Tensor):
            last = max((depth for depth, name in enumerate(place) if _averages_by_name(place, name)), default=None)
            if last is not None or re.match("callbacks", place[0], re.IGNORECASE):
                group = place[: len(place) - 1 if last is None else last + 1]
                shown = ["*" if name.isdecimal() else name[:60] if name.isprintable() else "?" for name in group]
                found[".".join(shown)] += part.numel()
        elif not isinstance(part, Mapping | list | tuple) or id(part) in seen or len(place) == DEEPEST_AVERAGE:
            continue
        elif ".".join(place) not in states:
            seen.add(id(part))
            entries = part.items() if isinstance(part, Mapping) else enumerate(part)
            waiting += [((*place, str(name)), entry) for name, entry in entries if isinstance(name, str | int)]
    return dict(sorted(found.items()))


def _averages_by_name(place: tuple[str, ...], name: str) -> bool:
    """Return whether a part of a place says that an average of the weights stands there."""
    if any(re.match("optim", part, re.IGNORECASE) for part in place):
        return bool(AVERAGED_BY_OPTIMISER.fullmatch(name.lower()))
    return bool(AVERAGED.search(name)) and not RAW.search(name)


def _refuse_what_is_no_weights_file(file: Path) -> None:
    if not file.is_file():
        raise UserError(f"There is no weights file {file}: check the path.")
    with file.open("rb") as stream:
        start = stream.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        raise UserError(f"{file} is empty: download or copy it again.")
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        raise UserError(
            f"{file} is a web page, not weights: the server sent it for a link that is gone, wants a login or has used "
            "up its quota; open the link in a browser and download the file itself."
        )
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{file} is a Git LFS pointer, not weights: run `git lfs pull` where it comes from.")


def _looks_like_safetensors(file: Path) -> bool:
    with file.open("rb") as stream:
        length, brace = int.from_bytes(stream.read(8), "little"), stream.read(1)
    return brace == b"{" and length < file.stat().st_size


def _open_safetensors(file: Path) -> Checkpoint:
    from safetensors import safe_open

    try:
        with safe_open(file, framework="pt", device="cpu") as content:
            metadata = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - it is not a dict
    except Exception as error:  # The library's own exception is private.
        raise UserError(f"{file} cannot be read as weights ({error}): is it whole?") from error
    _check_names(file, tensors)
    if not tensors:
        raise UserError(f"{file} holds no tensor: save `network.state_dict()` and name that file.")
    says = Preprocessing(
        _channels(metadata, "mean", file), _channels(metadata, "std", file), metadata.get("transform_input") == "true"
    )
    return Checkpoint({"": tensors}, bare="safetensors", says=says)


def _channels(metadata: Mapping[str, str], name: str, file: Path) -> Channels | None:
    if name not in metadata:
        return None
    found = three_numbers_in(metadata[name])
    if found is None:
        raise UserError(
            f"{file} says of its {name} {metadata[name][:60]!r}, not a list of three numbers: convert it again."
        )
    return found


def _holds_tensors(value: object) -> TypeGuard[Mapping[Any, Any]]:
    return isinstance(value, Mapping) and any(isinstance(tensor, Tensor) for tensor in value.values())


def _odd_entries(value: Mapping[Any, Any]) -> list[Any]:
    """Return the names of what may not stand in a state dict."""
    return [
        name
        for name, entry in value.items()
        if not (isinstance(name, str) and isinstance(entry, (Tensor, NotPlain, *PLAIN)))
    ]


def check_plain(file: Path, state: Mapping[str, Any]) -> None:
    """Refuse a state dict with tensors that no network can load: quantised, sparse or nested ones.

    Raises:
        UserError: there is one; the sentence names it.
    """
    for name, entry in state.items():
        if isinstance(entry, NotPlain):
            raise UserError(
                f"{file} holds {name} as a {entry.kind} tensor, which no network here computes with: save it as plain "
                "floats, by `.dequantize()` or `.to_dense()`."
            )


def _check_size(file: Path, state: Mapping[str, Any]) -> None:
    """Refuse tensors that are larger than the file can hold: a stride of 0 makes one of any size out of one number."""
    tensors = [entry for entry in state.values() if isinstance(entry, Tensor)]
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors) > INFLATION * file.stat().st_size:
        raise UserError(f"{file} announces far more numbers than it holds: download it again from where you trust it.")


def _check_names(file: Path, names: Iterable[str]) -> None:
    """Refuse names that no network gives its tensors, and that a terminal or a record could not show."""
    odd = next((name for name in names if not name.isprintable() or len(name) > LONGEST_NAME), None)
    if odd is not None:
        raise UserError(
            f"{file} names a tensor {odd[:60]!a}, which cannot be printed or is too long: save it under another name."
        )


def _refuse_what_holds_none(file: Path, value: Any, foreign: tuple[str, ...]) -> None:
    """Say why a file without any state dict is of no use.

    Raises:
        UserError: always.
    """
    places = [value, *value.values()] if isinstance(value, Mapping) else []
    mixed = next((place for place in places if _holds_tensors(place)), None)
    if mixed is not None:
        odd = _odd_entries(mixed)[0]
        kind = "a Python object" if isinstance(mixed[odd], Inert) else f"of type {type(mixed[odd]).__name__}"
        raise UserError(
            f"{file} holds no state dict, since among its tensors {odd!r} is {kind}: save the state dict without it, "
            "and name that file."
        )
    if foreign:
        raise UserError(
            f"{file} holds Python objects where its state dict should be ({foreign[0]}), which are never run here: "
            "save `network.state_dict()` where its code is, and name that file."
        )
    raise UserError(f"{file} holds no state dict: save `network.state_dict()` and name that file.")


def three_numbers(value: object) -> Channels | None:
    """Return a list or tuple of three finite numbers as ``Channels``; None for anything else."""
    if not isinstance(value, list | tuple) or len(value) != 3:
        return None
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in value):
        return None
    red, green, blue = value
    return float(red), float(green), float(blue)


def three_numbers_in(text: str) -> Channels | None:
    """Return the three numbers of a JSON list; None for anything else."""
    try:
        return three_numbers(json.loads(text))
    except (ValueError, OverflowError, RecursionError):  # No JSON, a number past all floats, a list in a list in a ...
        return None


def in_pixel_units(mean: Iterable[float], std: Iterable[float]) -> bool:
    """Return whether a mean and a standard deviation can be those of pixels in [0, 1]; one of NaN can not."""
    return all(0 <= value <= 1 for value in mean) and all(0 < value <= 1 for value in std)


def channels_of_option(option: str, text: str | None) -> Channels | None:
    """Return what a person wrote for ``option``, a number per channel; null for null.

    Raises:
        UserError: it is not a list of three numbers.
    """
    if text is None:
        return None
    found = three_numbers_in(text)
    if found is None:
        raise UserError(
            f"{option} is {text!r}, which is not a list of three numbers: write one for each channel, as in "
            f'{option} "[0.5, 0.5, 0.5]".'
        )
    return found
