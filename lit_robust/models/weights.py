"""Reading weights from a file: strictly, and without running anything the file contains."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lit_robust.errors import UserError
from lit_robust.models.auxiliary_norm import without_auxiliary

# Where our Lightning checkpoints keep the network inside the module.
LIGHTNING_PREFIX = "model.network."


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors``, from ``.pt``/``.pth``, or out of a Lightning ``.ckpt``.

    Raises:
        UserError: the file is missing, broken, holds code, or holds no state dict.
    """
    if not file.is_file():
        raise UserError(f"There is no weights file {file}: check the path.")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file} holds Python objects beside tensors, which are never run here: save its state dict alone."
        ) from error
    except Exception as error:  # Each format has its own exceptions for a broken file, safetensors a private one.
        raise UserError(f"{file} cannot be read as weights ({error}): is it whole?") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise UserError(f"{file} holds no state dict: save `network.state_dict()` and name that file.")
    tensors = dict(content)
    if all(name.startswith(LIGHTNING_PREFIX) for name in tensors):
        tensors = {name.removeprefix(LIGHTNING_PREFIX): tensor for name, tensor in tensors.items()}
        # Of an AdvProp network what is tested, and trained on, is the main branch.
        tensors = without_auxiliary(tensors)
    return tensors


def load_weights(network: nn.Module, file: Path, name: str, num_classes: int) -> None:
    """Load ``file`` into ``network``; every tensor must fit.

    Args:
        network: changed in place.
        file: as for ``read_state_dict``.
        name: the network's name, for the error's sentence.
        num_classes: the class count asked for, for the error's sentence.

    Raises:
        UserError: as ``read_state_dict``, or the tensors are those of another network or class count.
    """
    tensors = read_state_dict(file)
    check_fit(tensors, network, f"{file}", f"{name} with {num_classes} classes")
    network.load_state_dict(tensors, strict=True)


def check_fit(tensors: Mapping[str, Tensor], network: nn.Module, source: str, name: str) -> None:
    """Raise a UserError of one sentence unless ``tensors`` are exactly those of ``network``.

    Args:
        tensors: a state dict.
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
        return
    theirs, ours = tensors[wrong[-1]].shape, own[wrong[-1]].shape
    if len(wrong) <= 2 and theirs[1:] == ours[1:]:
        raise UserError(f"{source} has {theirs[0]} classes, not fit for {name}: set num_classes to {theirs[0]}.")
    raise UserError(
        f"{source} is of another network: {wrong[0]} has shape {list(tensors[wrong[0]].shape)}, where {name} has "
        f"{list(own[wrong[0]].shape)}; name the network it was trained with."
    )


def weights_digest(network: nn.Module) -> str:
    """Return the sha256 of all tensors of the network, by name, shape, type and bytes; of a main branch alone.

    It does not depend on the device, the file format, or the order of the names.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(without_auxiliary(network.state_dict()).items()):
        cpu = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {list(cpu.shape)} {cpu.dtype}\n".encode())
        digest.update(cpu.flatten().view(torch.uint8).numpy().tobytes() if cpu.numel() else b"")
    return digest.hexdigest()
