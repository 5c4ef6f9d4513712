"""What the command line says of weights and checkpoints, checked before anything heavy is done."""

import inspect
import pickle
import pkgutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from pytorch_lightning.utilities import rank_zero_warn

from lit_robust.core.errors import UserError
from lit_robust.models.foreign.containers import check_archive
from lit_robust.modules import CacheModule


def check_weights(command: str, options: Namespace) -> None:
    """Refuse a checkpoint of another network, and warn of random weights.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        options: of the command.

    Raises:
        UserError: the checkpoint is none, is not the network's or the module's, or was not asked for.
    """
    root, checkpoint = Path(options.trainer.default_root_dir), options.get("ckpt_path")
    network = options.model.get("init_args", {}).get("network")
    if network is not None and network.weights == "None":
        network.weights = None  # jsonargparse 4.53 makes a word of a null that the command line sets.
    # A checkpoint names the module's own place, a recipe may name it by its room.
    module = pkgutil.resolve_name(options.model.class_path)
    remembers = issubclass(module, CacheModule)
    if checkpoint is None:
        if command != "fit" and any(root.glob("hpc_ckpt_*")):
            # On SLURM Lightning would load the newest of them into any command without a word.
            raise UserError(f"{root} holds a requeued job's hpc_ckpt_*: name it with --ckpt_path, or move it.")
        if (command != "fit" or remembers) and network is not None and network.weights is None:
            cure = "--model.network.weights" if remembers else "--ckpt_path or --model.network.weights"
            rank_zero_warn(f"The network has random weights: give {cure}.")
    elif remembers:
        # Lightning would build the checkpoint's own module, and test a network without any memory.
        raise UserError(
            "A CacheModule has no checkpoints of its own: give the backbone's as --model.network.weights, and its "
            "memory as --model.memory."
        )
    elif command != "fit" or checkpoint not in ("best", "last", "hpc"):
        _check_checkpoint(command, checkpoint, module, network)


def _check_checkpoint(command: str, checkpoint: str, module: type, network: Namespace | None) -> None:
    """Compare a checkpoint with the module and the network that are asked for.

    Lightning would put the checkpoint's network in the place of the one asked for, without a word.
    """
    hyperparameters = read_hyperparameters(Path(checkpoint))
    trained, asked = hyperparameters.get("_class_path"), f"{module.__module__}.{module.__qualname__}"
    if command == "fit" and trained not in (None, asked):
        raise UserError(
            f"The checkpoint {checkpoint} is of {trained}, not {asked}: a run goes on with its own recipe; to "
            "start another from these weights give them as --model.network.weights."
        )
    if command != "fit" and trained == asked and (unknown := _unknown_to(module, hyperparameters)):
        # Lightning would build the module with all of them.
        raise UserError(
            f"The checkpoint {checkpoint} has a hyperparameter {unknown[0]!r}, which the {module.__name__} of this "
            "version does not know: use the version that wrote it, or give it as --model.network.weights."
        )
    kept = hyperparameters.get("network", {})
    for key in ("name", "num_classes", "mean", "std"):
        if network is None or network[key] is None or kept.get(key) is None:
            continue
        if kept[key] != network[key] and _list_of(kept[key]) != _list_of(network[key]):
            raise UserError(
                f"The checkpoint {checkpoint} is of another network: its {key} is {kept[key]}, not "
                f"{network[key]}; give --model.network.{key} {kept[key]}."
            )


def _unknown_to(module: type, hyperparameters: Mapping[str, Any]) -> list[str]:
    """Return which hyperparameters the module's constructor does not take; underscored ones are Lightning's own."""
    known = inspect.signature(module).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return []
    return [name for name in hyperparameters if name not in known and not name.startswith("_")]


def read_hyperparameters(file: Path) -> dict[str, Any]:
    """Return a checkpoint's hyperparameters, without reading its tensors.

    Raises:
        UserError: the file is damaged, or no checkpoint of Lightning's or of ours.
    """
    what = "is no checkpoint, or not whole" if file.is_file() else "does not exist"
    none = f"The checkpoint {file} {what}: give a file that `lit-robust fit` wrote."
    if not zipfile.is_zipfile(file):
        raise UserError(none)
    check_archive(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"The checkpoint {file} holds Python objects beside tensors and plain values, which are never run here: "
            "give it as --model.network.weights."
        ) from error
    except Exception as error:  # torch refuses an archive that is none of its own in ways of its own.
        raise UserError(none) from error
    if not isinstance(content, dict) or not {"state_dict", "pytorch-lightning_version"} <= content.keys():
        raise UserError(f"{file} holds weights alone: give it as --model.network.weights.")
    kept = content.get("hyper_parameters", {})
    said = kept.get("network", {}) if isinstance(kept, Mapping) else kept
    if not isinstance(kept, Mapping) or not isinstance(said, Mapping):
        raise UserError(
            f"The checkpoint {file} is of no module of lit_robust, as {str(said)[:60]!r} describes no network of ours: "
            "give it as --model.network.weights."
        )
    return dict(kept)


def _list_of(value: Any) -> Any:
    """Return a sequence as a list, which a tuple of the same numbers equals, and anything else as it is."""
    return list(value) if isinstance(value, list | tuple) else value
