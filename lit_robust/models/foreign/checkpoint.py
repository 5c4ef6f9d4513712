"""Opening a file of weights: which form it has, which of its state dicts counts, and how its network normalises."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor

from lit_robust.core.errors import UserError
from lit_robust.models.foreign.channels import Channels, three_numbers_in
from lit_robust.models.foreign.containers import INFLATION, Content, check_archive, read_restricted
from lit_robust.models.foreign.restricted import Inert

Copy = Literal["averaged", "raw"]
FILE_ENDINGS = (".pt", ".pth", ".safetensors", ".ckpt", ".tar", ".bin", ".th")
# Where training scripts keep the weights: timm's and revisiting-at's, torchvision's, MadryLab's, and others.
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
RAW = ("state_dict", "model", "model_state_dict", "net")
# What some scripts write among the tensors, such as an epoch; a network cannot need it, as it is loaded strictly.
PLAIN = (int, float, str)


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
    """A state dict as it stands in a file, before its names are made plain.

    Attributes:
        tensors: by the file's own names, on the CPU.
        form: the container's form, for a person.
        key: where in the file it stands; empty for a bare state dict.
        left: what else the file holds on its first level.
        foreign: names of the classes and functions that were passed over.
        says: what the file's metadata say of its images.
        notes: what was chosen where there was a choice, a sentence each.
        network: what a checkpoint of our own modules says of its network, the settings of ``Network``.
    """

    tensors: dict[str, Tensor]
    form: str
    key: str
    left: tuple[str, ...]
    foreign: tuple[str, ...]
    says: Preprocessing = field(default_factory=Preprocessing)
    notes: tuple[str, ...] = ()
    network: Mapping[str, Any] = field(default_factory=dict)


def names_file(weights: str) -> bool:
    """Return whether a setting of weights is a file rather than a library's entry."""
    return weights.endswith(FILE_ENDINGS) or "/" in weights


def open_checkpoint(file: Path, copy: Copy = "averaged") -> Checkpoint:
    """Read ``file`` without running anything it contains.

    torch's own reader (``weights_only=True``) goes first; a file that it refuses, since Python objects stand beside
    the tensors, is read by the restricted one, which is as safe: it imports nothing and passes the objects over.

    Args:
        file: safetensors, or what ``torch.save`` wrote, in the container of any release since torch 0.4.
        copy: which to take where a file holds both an averaged (EMA) and a raw copy of the weights; timm and
            revisiting-at evaluate the averaged one, and Lightning's EMA callback saves it as the network's own.

    Raises:
        UserError: the file is missing, empty, broken, no weights file at all, or holds no state dict.
    """
    _refuse_what_is_no_weights_file(file)
    if file.suffix == ".safetensors" or _looks_like_safetensors(file):
        return _open_safetensors(file)
    check_archive(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # It warns of pickle protocols that it then reads or refuses.
            content = Content(torch.load(file, map_location="cpu", weights_only=True), ())
    except Exception:  # Its reasons are many, and none is final: the restricted reader has the last word.
        content = read_restricted(file)
    value, foreign = content.value, content.foreign
    if _is_state(value):
        tensors, notes = _tensors_alone(file, value)
        return Checkpoint(tensors, "state dict", "", (), foreign, notes=notes)
    key, choice = _chosen(file, value, foreign, copy)
    left = tuple(str(name) for name in value if name != key)
    tensors, notes = _tensors_alone(file, value[key])
    settings = value.get("hyper_parameters")
    network = settings.get("network") if isinstance(settings, Mapping) else None
    return Checkpoint(
        tensors=tensors,
        form=_form(left, key),
        key=key,
        left=left,
        foreign=foreign,
        notes=(*choice, *notes),
        network=network if isinstance(network, Mapping) else {},
    )


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
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - it is no dict
    except Exception as error:  # The library's own exception is private.
        raise UserError(f"{file} cannot be read as weights ({error}): is it whole?") from error
    _check_names(file, tensors)
    says = Preprocessing(
        _channels(metadata, "mean", file), _channels(metadata, "std", file), metadata.get("transform_input") == "true"
    )
    return Checkpoint(tensors, "safetensors", "", (), (), says)


def _channels(metadata: Mapping[str, str], name: str, file: Path) -> Channels | None:
    if name not in metadata:
        return None
    found = three_numbers_in(metadata[name])
    if found is None:
        raise UserError(
            f"{file} says of its {name} {metadata[name][:60]!r}, which is no list of three numbers: convert it again."
        )
    return found


def _is_state(value: object) -> bool:
    return _holds_tensors(value) and not _odd_entries(value)


def _holds_tensors(value: object) -> TypeGuard[Mapping[Any, Any]]:
    return isinstance(value, Mapping) and any(isinstance(tensor, Tensor) for tensor in value.values())


def _odd_entries(value: Mapping[Any, Any]) -> list[Any]:
    """Return the names of what may not stand in a state dict."""
    return [
        name for name, entry in value.items() if not (isinstance(name, str) and isinstance(entry, (Tensor, *PLAIN)))
    ]


def _tensors_alone(file: Path, state: Mapping[str, Any]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of a state dict, and a sentence on what else was in it."""
    _check_names(file, state)
    tensors = {name: entry for name, entry in state.items() if isinstance(entry, Tensor)}
    odd = next(
        (name for name, tensor in tensors.items() if tensor.layout != torch.strided or tensor.is_quantized), None
    )
    if odd is not None:
        kind = tensors[odd].dtype if tensors[odd].is_quantized else tensors[odd].layout
        raise UserError(
            f"{file} holds {odd} as {str(kind).removeprefix('torch.')}, which no network here computes with: save it "
            "as plain floats, by `.dequantize()` or `.to_dense()`."
        )
    # A stride of 0 makes a tensor of any size out of one number.
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > INFLATION * file.stat().st_size:
        raise UserError(f"{file} announces far more numbers than it holds: download it again from where you trust it.")
    others = [name for name, entry in state.items() if not isinstance(entry, Tensor)]
    notes = (f"among the tensors these entries are none, and were left out: {', '.join(others)}",) if others else ()
    return tensors, notes


def _check_names(file: Path, names: Iterable[str]) -> None:
    """Refuse names that no network gives its tensors, and that a terminal or a record could not show."""
    odd = next((name for name in names if not name.isprintable()), None)
    if odd is not None:
        raise UserError(f"{file} names a tensor {odd[:60]!a}, which cannot be printed: save it under another name.")


def _chosen(file: Path, value: Any, foreign: tuple[str, ...], copy: Copy) -> tuple[str, tuple[str, ...]]:
    """Return the key of the state dict that counts, and a sentence on each choice there was."""
    counts = (
        {name: _count(value[name]) for name in value if _is_state(value[name])} if isinstance(value, Mapping) else {}
    )
    raw = next((name for name in RAW if name in counts), None)
    # Book-keeping of an average can hold a tensor too, such as its count of steps.
    least = counts[raw] if raw is not None else 1
    averaged = next((name for name in AVERAGED if counts.get(name, 0) >= least), None)
    if "current_model_state" in counts:  # Lightning's WeightAveraging puts the average in the network's place.
        averaged, raw = raw, "current_model_state"
    first, second = (averaged, raw) if copy == "averaged" else (raw, averaged)
    if first is None and copy == "averaged":
        first, second = raw, None
    if first is not None:
        notes = [f"of two copies of the weights the {copy} one, {first}, was taken, not {second}"] if second else []
        others = [f"{name} ({counts[name]})" for name in (*AVERAGED, *RAW) if name in counts.keys() - {first, second}]
        if others:
            notes.append(f"{first} of {counts[first]} tensors was taken, not what else holds some: {', '.join(others)}")
        return first, tuple(notes)
    if averaged is not None:
        raise UserError(f"{file} holds averaged weights alone ({averaged}): take those, with --copy averaged.")
    if mixed := _mixed(value):
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


def _count(state: Mapping[str, Any]) -> int:
    return sum(isinstance(entry, Tensor) for entry in state.values())


def _mixed(value: object) -> Mapping[Any, Any] | None:
    """Return what would be the state dict but for some entries."""
    if not isinstance(value, Mapping):
        return None
    places = [value[name] for name in (*AVERAGED, *RAW) if name in value] or [value]
    return next((place for place in places if _holds_tensors(place)), None)


def _form(keys: tuple[str, ...], key: str) -> str:
    if "pytorch-lightning_version" in keys:
        return "Lightning"
    if key in ("state_dict", "state_dict_ema") and {"arch", "metric"} <= set(keys):
        return "timm"
    if key in ("model", "model_ema") and "lr_scheduler" in keys:
        return "torchvision's training script"
    if key == "state_dict" and {"arch", "best_prec1"} <= set(keys):
        return "PyTorch's ImageNet script (fast_adversarial, Geirhos)"
    return f"checkpoint with its weights in {key!r}"
