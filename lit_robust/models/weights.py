"""Reading weights from a file: strictly, and without running anything the file contains."""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lit_robust.core.errors import UserError
from lit_robust.models.auxiliary_norm import without_auxiliary
from lit_robust.models.foreign.reading import Weights, read_weights

log = logging.getLogger(__name__)
# Where our Lightning checkpoints keep the network inside the module.
LIGHTNING_PREFIX = "model.network."


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """Read a network's state dict from a file of ours or of another laboratory.

    See ``foreign.open_checkpoint`` for the containers and ``foreign.plain_names`` for what is done to the names. Of an
    AdvProp network this is the main branch: it is what is tested, and trained on.

    Raises:
        UserError: the file is missing, broken, or holds no state dict.
    """
    return read_weights(file).tensors


def load_weights(
    network: nn.Module, file: Path, name: str, num_classes: int, copy: str = "averaged", new_head: bool = False
) -> Weights:
    """Load ``file`` into ``network``; every tensor must fit, but for the head's where a new one is asked for.

    Args:
        network: changed in place.
        file: as for ``read_state_dict``.
        name: the network's name, for the error's sentence.
        num_classes: the class count asked for, for the error's sentence.
        copy: which copy of the weights to take, as for ``foreign.read_weights``.
        new_head: leave the tensors of the file that are of another number of classes, and keep the network's own.

    Returns:
        What was read, with what the file says of the images.

    Raises:
        UserError: as ``read_state_dict``, or the tensors are those of another network or class count.
    """
    own = network.state_dict()
    weights = read_weights(file, own, copy)
    if new_head:
        left = _other_classes(weights.tensors, own, file)
        weights = replace(weights, tensors={**weights.tensors, **{name: own[name] for name in left}})
        log.warning("%s: the head is new, its %s are not the file's.", file, " and ".join(left))
    check_fit(weights.tensors, network, f"{file}", f"{name} with {num_classes} classes")
    # Some layers rename tensors by the version of who saved them; these names are already the newest.
    tensors = OrderedDict(weights.tensors)
    tensors._metadata = own._metadata  # type: ignore[attr-defined]
    network.load_state_dict(tensors, strict=True)
    return weights


def _other_classes(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], file: Path) -> list[str]:
    """Return the names of tensors that differ from the network's in their first axis alone, that of the classes.

    Raises:
        UserError: there are none, or they are not of one number of classes.
    """
    left = [name for name, tensor in tensors.items() if name in own and tensor.shape != own[name].shape]
    counts = {(tensors[name].shape[:1], own[name].shape[:1]) for name in left}
    same = all(tensors[name].shape[1:] == own[name].shape[1:] for name in left)
    if len(counts) != 1 or not same:
        found = f"{', '.join(left)} differ in shape" if left else "every tensor has the shape it has there"
        raise UserError(
            f"A new head is for another number of classes than the file's, but of {file} {found}: leave new_head out, "
            "or name the network that the file is of."
        )
    return left


def check_fit(tensors: Mapping[str, Tensor], network: nn.Module, source: str, name: str) -> None:
    """Raise a UserError of one sentence unless ``tensors`` are exactly those of ``network``, and are its numbers.

    Args:
        tensors: a state dict, in any floating precision.
        network: what it shall be loaded into.
        source: where the tensors come from, such as a file's path.
        name: what the network is, such as ``torchvision/resnet50 with 1000 classes``.
    """
    own = network.state_dict()
    missing = [key for key in own if key not in tensors]
    surplus = [key for key in tensors if key not in own]
    if missing or surplus:
        lacks = f"lacks {len(missing)} tensors (first {missing[0]})" if missing else ""
        holds = f"holds {len(surplus)} unknown tensors (first {surplus[0]})" if surplus else ""
        what = " and ".join(filter(None, [lacks, holds]))
        raise UserError(f"{source} is of another network: for {name} it {what}; name the network it was trained with.")
    wrong = [key for key in own if own[key].shape != tensors[key].shape]
    if not wrong:
        _check_types(tensors, own, source)
        check_finite(tensors, source)
        return
    theirs, ours = tensors[wrong[-1]].shape, own[wrong[-1]].shape
    if len(wrong) <= 2 and theirs[1:] == ours[1:]:
        raise UserError(f"{source} has {theirs[0]} classes, not fit for {name}: set num_classes to {theirs[0]}.")
    raise UserError(
        f"{source} is of another network: {wrong[0]} has shape {list(tensors[wrong[0]].shape)}, where {name} has "
        f"{list(own[wrong[0]].shape)}; name the network it was trained with."
    )


def _check_types(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> None:
    """Refuse what torch would copy into floats without a word: whole numbers without their scale, complex ones."""
    for key, tensor in tensors.items():
        if own[key].is_floating_point() and not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"{source} holds {key} as {kind}, where the network has floats: save its weights in float32, before "
                "they are quantised or otherwise changed."
            )


def check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise a UserError that names the first tensor that is not finite in float32, in which networks compute here.

    Args:
        tensors: by name, of any type.
        source: where the tensors come from, such as a file's path.
    """
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():
            raise UserError(
                f"{source} holds NaN or infinite numbers in {key}, as float32 has them, so its training failed or the "
                "file is damaged: take an earlier one."
            )


def weights_digest(network: nn.Module) -> str:
    """Return the sha256 of all tensors of the network, by name, shape, type and bytes; of a main branch alone.

    It does not depend on the device, the file format, or the order of the names.
    """
    return tensors_digest(without_auxiliary(network.state_dict()))


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of tensors, by name, shape, type and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        cpu = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {list(cpu.shape)} {cpu.dtype}\n".encode())
        digest.update(cpu.flatten().view(torch.uint8).numpy().tobytes() if cpu.numel() else b"")
    return digest.hexdigest()
