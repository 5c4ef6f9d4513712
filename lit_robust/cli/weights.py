"""What the command line says of weights and checkpoints, before anything heavy is done."""

import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

from jsonargparse import Namespace
from pytorch_lightning.utilities import rank_zero_warn

from lit_robust.core.errors import UserError
from lit_robust.modules import CacheModule, ClassifierModule
from lit_robust.modules.base import module_of, read_hyperparameters


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
            has = (
                f"has those weights that {network.name} itself gives it"
                if ":" in network.name
                else "has random weights"
            )
            rank_zero_warn(f"The network {has}: to test others, give {cure}.")
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
    if trained is not None:
        module_of(Path(checkpoint), trained, ClassifierModule)  # type: ignore[type-abstract]
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
    if ":" in str(kept.get("name")):
        # A file must not say what of the user's own code is called, and how.
        arguments = kept.get("arguments") or {}
        if network is None or network.name != kept["name"] or (network.get("arguments") or {}) != arguments:
            raise UserError(
                f"The checkpoint {checkpoint} is of {kept['name']} with the arguments {arguments}, which is called "
                "only where you name it: give both as --model.network.name and --model.network.arguments."
            )


def _unknown_to(kind: type, settings: Mapping[str, Any], within: str = "") -> list[str]:
    """Return which settings a constructor does not take, also inside those that are settings of a class themselves.

    Args:
        kind: the class.
        settings: by name; underscored ones are Lightning's own.
        within: of the names, such as ``network.``.
    """
    known = inspect.signature(kind).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return []
    types = get_type_hints(kind.__init__)  # type: ignore[misc]
    found = []
    for name, value in settings.items():
        if name not in known and not name.startswith("_"):
            found.append(within + name)
        if not isinstance(value, Mapping):
            continue
        inner = [one for one in get_args(types.get(name)) or [types.get(name)] if is_dataclass(one)]
        if str(value.get("class_path")).startswith("lit_robust."):
            found += _unknown_to(pkgutil.resolve_name(value["class_path"]), value["init_args"], f"{within}{name}.")
        elif len(inner) == 1:
            found += _unknown_to(cast(type, inner[0]), value, f"{within}{name}.")
    return found


def _list_of(value: Any) -> Any:
    """Return a sequence as a list, which a tuple of the same numbers equals, and anything else as it is."""
    return list(value) if isinstance(value, list | tuple) else value
