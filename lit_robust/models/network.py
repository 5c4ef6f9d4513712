"""Networks by name: torchvision's, timm's, a small one of ours, and any of the user's by its import path."""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_robust.core.errors import UserError, nearest
from lit_robust.models.classifier import Classifier
from lit_robust.models.foreign.channels import Channels, in_pixel_units
from lit_robust.models.foreign.checkpoint import names_file
from lit_robust.models.foreign.reading import check_normaliser, check_said
from lit_robust.models.resnet_small import resnet_small, resnet_tiny
from lit_robust.models.weights import load_weights

OURS: dict[str, Callable[[int], nn.Module]] = {"resnet_small": resnet_small, "resnet_tiny": resnet_tiny}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Network:
    """Which network, with which weights, and how it normalises.

    Attributes:
        name: ``torchvision/<name>``, ``timm/<name>``, ``lit_robust/resnet_small``, or ``<module>:<callable>``, the
            import path of a class or function that returns a network, such as ``mypackage.nets:make_net``. The network
            takes normalised images ``[B, 3, H, W]`` and returns logits ``[B, num_classes]``.
        num_classes: number of classes it tells apart; a callable gets it if it has a parameter of that name.
        weights: null for random weights, ``pretrained`` for the library's default ones, the name of one of
            torchvision's entries such as ``IMAGENET1K_V1``, or a file (.pt, .pth, .pth.tar, .safetensors, .ckpt) of
            ours or of another laboratory: MadryLab's and Microsoft's, Chen et al.'s, Geirhos et al.'s, RobustBench's,
            timm's and more, which are read without running anything in them. torchvision's own files of GoogLeNet and
            Inception v3 give the network of their entry: without the auxiliary classifiers, and with
            ``transform_input``, which random weights and those that others trained do not have.
        mean: per-channel mean the network expects, in [0, 1] pixel units; null takes what the file says (converted
            ones, the AdvProp port's, revisiting-at's), else what timm says of the network, else ImageNet's. A
            normaliser inside the file must agree with it.
        std: per-channel standard deviation the network expects, likewise.
        copy: which to take of a file that holds several copies of the weights: ``averaged`` (EMA, SWA), ``raw``, or one
            by its name.
        transform_input: whether torchvision's GoogLeNet or Inception v3 rescales its normalised input; null takes
            what the weights say.
        arguments: what a callable is called with, by parameter; for a network by its import path alone.
    """

    name: str = "torchvision/resnet50"
    num_classes: int = 1000
    weights: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    copy: str = "averaged"
    transform_input: bool | None = None
    arguments: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.weights in ("null", "None"):  # What a command line makes of null.
            object.__setattr__(self, "weights", None)
        if self.num_classes < 1:
            raise UserError(f"num_classes is {self.num_classes}: give 1 or more.")
        if self.arguments and ":" not in self.name:
            raise UserError(
                f"arguments are {self.arguments}, but {self.name} takes none: they are for a callable of your own, "
                "such as mypackage.nets:make_net."
            )
        check_channels(self.mean, self.std)


def check_channels(mean: Channels | None, std: Channels | None) -> None:
    """Refuse a mean or a standard deviation that is not in [0, 1] pixel units, as those in grey values are not."""
    if not in_pixel_units(mean or (), std or ()):
        raise UserError(f"mean {mean} and std {std} are not in [0, 1] pixel units: divide them by 255.")


def build_classifier(spec: Network) -> Classifier:
    """Build the network, load its weights strictly, and put the normalisation in front.

    Raises:
        UserError: unknown library or name, a class count the weights do not have, or weights of another network.
    """
    library, _, name = spec.name.partition("/")
    builders = {"torchvision": _torchvision, "timm": _timm, "lit_robust": _ours}
    file = Path(spec.weights) if spec.weights is not None and names_file(spec.weights) else None
    entry = None if file else spec.weights
    if ":" in spec.name:
        network = _called(spec.name, spec.num_classes, spec.arguments or {}, entry)
    elif library in builders and name:
        network = builders[library](name, spec.num_classes, entry)
    else:
        raise UserError(
            f"Unknown network {spec.name!r}{nearest(library, builders)}: write torchvision/<name>, timm/<name>, "
            f"lit_robust/{'|'.join(OURS)}, or <module>:<callable>."
        )
    weights = load_weights(network, file, spec.name, spec.num_classes, spec.copy) if file else None
    # Some of timm's weights expect another normalisation than ImageNet's; they say so themselves.
    says = getattr(network, "pretrained_cfg", {}) if library == "timm" else {}
    mean, std = spec.mean or says.get("mean", IMAGENET_MEAN), spec.std or says.get("std", IMAGENET_STD)
    if weights is not None:
        mean, std = spec.mean or weights.says.mean or mean, spec.std or weights.says.std or std
        check_normaliser(weights, str(file), mean, std)
        check_said(mean, std, str(file), "--model.network.mean and --model.network.std")
    # torchvision's GoogLeNet and Inception rescale their normalised input inside, where their weights expect it.
    rescales = spec.transform_input if weights is None else spec.transform_input or weights.says.transform_input
    if rescales is not None and hasattr(network, "transform_input"):
        setattr(network, "transform_input", rescales)  # noqa: B010 - to mypy a module's attributes are tensors
    return Classifier(network.to(memory_format=torch.channels_last), mean, std)


def _ours(name: str, num_classes: int, entry: str | None) -> nn.Module:
    if name not in OURS:
        raise UserError(f"Unknown network lit_robust/{name}: choose one of {', '.join(OURS)}.")
    if entry is not None:
        raise UserError(f"lit_robust/{name} has no pretrained weights {entry!r}: give a file, or null.")
    return OURS[name](num_classes)


def _torchvision(name: str, num_classes: int, entry: str | None) -> nn.Module:
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise UserError(
            f"torchvision has no classifier {name!r}{nearest(name, names)}: `torchvision.models.list_models()` lists "
            "its names."
        )
    weights = None
    if entry is not None:
        entries = models.get_model_weights(name)
        known = ["pretrained", *entries.__members__]
        if entry not in known:
            raise UserError(
                f"torchvision/{name} has no weights {entry!r}: choose one of {', '.join(known)}, or a file."
            )
        weights = entries.DEFAULT if entry == "pretrained" else entries[entry]
        categories = weights.meta["categories"] or ()
        if len(categories) != num_classes:
            raise UserError(
                f"The weights {entry} of torchvision/{name} have {len(categories)} classes, "
                f"but num_classes is {num_classes}: set num_classes to match, or weights to null."
            )
    if name not in ("googlenet", "inception_v3"):
        network = models.get_model(name, weights=weights, num_classes=num_classes)
    elif weights is None:
        network = models.get_model(name, num_classes=num_classes, aux_logits=False, init_weights=True)
    else:
        # With an entry torchvision sets `transform_input`, which its own weights expect.
        network = models.get_model(name, weights=weights, num_classes=num_classes)
        # Auxiliary classifiers make the output a tuple in train mode only; neither our losses nor attacks want that.
        network.aux_logits, network.aux1, network.aux2, network.AuxLogits = False, None, None, None
    assert isinstance(network, nn.Module)
    return network


def _timm(name: str, num_classes: int, entry: str | None) -> nn.Module:
    import timm

    if not timm.is_model(name):
        raise UserError(
            f"timm has no network {name!r}{nearest(name, timm.list_models())}: `timm.list_models()` lists its names."
        )
    if entry not in (None, "pretrained"):
        raise UserError(f"timm/{name} knows no weights {entry!r}: write pretrained, a file, or null.")
    network = timm.create_model(name, pretrained=entry == "pretrained", num_classes=num_classes)
    assert isinstance(network, nn.Module)
    return network


def _called(path: str, num_classes: int, arguments: Mapping[str, Any], entry: str | None) -> nn.Module:
    """Return what the user's own callable at an import path returns: only what the user names is imported."""
    module_name, _, name = path.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), name]):
        raise UserError(f"{path!r} is not an import path: write <module>:<callable>, such as mypackage.nets:make_net.")
    if entry is not None:
        raise UserError(f"{path} has no pretrained weights {entry!r}: give a file, null, or load them in it.")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # As `python -m` does; an installed command has its own folder there instead.
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"There is no module {error.name}, which the network {path} needs: install it, or run the command where "
            "its folder is."
        ) from error
    if not hasattr(module, name):
        near = nearest(name, [other for other in vars(module) if not other.startswith("_")])
        raise UserError(f"The module {module_name} has no {name!r}{near}: name a class or function in it.")
    build = getattr(module, name)
    if not callable(build):
        raise UserError(f"{path} is a {type(build).__name__}: name a class or function that returns a network.")
    signature = inspect.signature(build)
    if "num_classes" in arguments:
        raise UserError(f"arguments give {path} num_classes: set the network's own num_classes instead.")
    parameters = signature.parameters.values()
    if any(one.name == "num_classes" or one.kind is one.VAR_KEYWORD for one in parameters):
        arguments = {"num_classes": num_classes, **arguments}
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise UserError(
            f"{path}{signature} cannot be called with the arguments {dict(arguments)} ({error}): change "
            "--model.network.arguments."
        ) from error
    network = build(**arguments)
    if not isinstance(network, nn.Module):
        raise UserError(f"{path} returned a {type(network).__name__}: return a torch.nn.Module.")
    return network
