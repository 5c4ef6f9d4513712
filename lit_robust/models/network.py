"""Networks by name that normalise inside: torchvision's, timm's, a small one, and the user's own by import path."""

import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_robust.core.errors import UserError, check_count, nearest
from lit_robust.core.logits import logits_of
from lit_robust.models.foreign.checkpoint import Channels, in_pixel_units, names_file
from lit_robust.models.foreign.reading import check_normaliser, check_said
from lit_robust.models.taps import outputs
from lit_robust.models.weights import load_weights

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Classifier(nn.Module):
    """Images in [0, 1] to logits, with the channel normalisation as the first layer.

    Attacks and corruptions work on what goes in here, so eps is always in pixel units of [0, 1].

    Args:
        network: takes normalised images ``[B, 3, H, W]`` and returns logits ``[B, num_classes]``, alone or as
            ``logits_of`` finds them.
        mean: per-channel mean, in [0, 1] pixel units.
        std: per-channel standard deviation, in [0, 1] pixel units.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Channels, std: Channels) -> None:
        super().__init__()
        self.network = network
        self.normalisation = mean, std
        # Not in the state dict: they belong to the network's description, which a checkpoint keeps by itself.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` of float images ``[B, 3, H, W]`` in [0, 1]."""
        normalised = (images - self.mean) / self.std
        # Convolutions are fastest with channels last, on CPUs and GPUs; where images are so already this is free.
        return logits_of(self.network(normalised.contiguous(memory_format=torch.channels_last)))

    @property
    def normalised(self) -> nn.Module:
        """The network inside, whose names of layers are meant where one is asked for."""
        return self.network

    def features(self, images: Tensor, layer: str) -> Tensor:
        """Return what a layer gives out, before later modules change it in place; see `lit_robust.models.taps`.

        Args:
            images: float ``[B, 3, H, W]`` in [0, 1].
            layer: dotted name inside the network, such as ``avgpool`` or ``layer4.1``.

        Raises:
            UserError: the network has no such layer, never calls it, or it gives no single tensor.
        """
        return outputs(self, images, [layer])[layer]


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
            ones, the AdvProp port's, revisiting-at's), else what timm's or your own network says in its
            ``pretrained_cfg``, else ImageNet's. A
            normaliser inside the file must agree with it.
        std: per-channel standard deviation the network expects, likewise.
        copy: which to take of a file that holds several copies of the weights: ``averaged`` (EMA, SWA), ``raw``, or one
            by its name.
        transform_input: whether torchvision's GoogLeNet or Inception v3 rescales its normalised input; null takes
            what the weights say.
        arguments: what a callable is called with, by parameter; for a network by its import path alone.
        new_head: to train on: take all of a file but its last layer, which is of another number of classes; the new
            one is random, and named.
    """

    name: str = "torchvision/resnet50"
    num_classes: int = 1000
    weights: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    copy: str = "averaged"
    transform_input: bool | None = None
    arguments: dict[str, Any] | None = None
    new_head: bool = False

    def __post_init__(self) -> None:
        if self.weights in ("null", "None"):  # What a command line makes of null.
            object.__setattr__(self, "weights", None)
        check_count("num_classes", self.num_classes, 1)
        if self.arguments and ":" not in self.name:
            raise UserError(
                f"arguments are {self.arguments}, but {self.name} takes none: they are for a callable of your own, "
                "such as mypackage.nets:make_net."
            )
        if self.new_head and not (self.weights and names_file(self.weights)):
            raise UserError("new_head is true: give a file as weights, whose last layer it replaces.")
        check_channels(self.mean, self.std)


def check_channels(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Refuse a mean or a standard deviation that is not in [0, 1] pixel units, as those in grey values are not."""
    if not in_pixel_units(mean or (), std or ()):
        grey_values = any(value > 1 for value in (*(mean or ()), *(std or ())))
        fix = "divide them by 255" if grey_values else "give means from 0 to 1, and deviations above 0"
        raise UserError(f"mean {mean} and std {std} are not in [0, 1] pixel units: {fix}.")


def build_classifier(spec: Network) -> Classifier:
    """Build the network, load its weights strictly, and put the normalisation in front.

    Raises:
        UserError: unknown library or name, a class count the weights do not have, or weights of another network.
    """
    if not isinstance(spec, Network):
        raise UserError(
            f"The network is a {type(spec).__name__}: give a Network, such as Network('torchvision/resnet50') or "
            "Network('mypackage.nets:make_net')."
        )
    library, _, name = spec.name.partition("/")
    builders = {"torchvision": _torchvision, "timm": _timm, "lit_robust": _ours}
    file = Path(spec.weights) if spec.weights is not None and names_file(spec.weights) else None
    entry = None if file else spec.weights
    if ":" in spec.name:
        network = _called(spec.name, spec.num_classes, spec.arguments or {}, entry)
    elif library in builders and name:
        network = builders[library](name, spec.num_classes, entry)
    else:
        near = nearest(library, builders) if "/" in spec.name else _named_in_a_library(spec.name)
        raise UserError(
            f"Unknown network {spec.name!r}{near}: write torchvision/<name>, timm/<name>, "
            f"lit_robust/{'|'.join(OURS)}, or <module>:<callable>."
        )
    weights = load_weights(network, file, spec.name, spec.num_classes, spec.copy, spec.new_head) if file else None
    # Some of timm's weights expect another normalisation than ImageNet's; they say so themselves, as a fusion does.
    says = getattr(network, "pretrained_cfg", {}) if library == "timm" or ":" in spec.name else {}
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


def build_from(part: str, settings: Mapping[str, Any], num_classes: int) -> Classifier:
    """Build a network that is a part of another one.

    Args:
        part: what to call it in messages, such as ``tower``.
        settings: of a ``Network``, by name: name, weights and more.
        num_classes: of its logits, unless the settings say otherwise.

    Raises:
        UserError: a setting is not one of a network's, or the network cannot be built.
    """
    known = [field.name for field in fields(Network)]
    if not isinstance(settings, Mapping):
        raise UserError(f"{part} is {settings!r}: give a network's settings, such as {{name: ..., weights: ...}}.")
    if wrong := sorted(settings.keys() - set(known)):
        raise UserError(
            f"{part} has no setting {wrong[0]!r}{nearest(wrong[0], known)}: give some of {', '.join(known)}."
        )
    spec = replace(Network(num_classes=num_classes), **settings)
    mean, std = (None if one is None else (one[0], one[1], one[2]) for one in (spec.mean, spec.std))
    return build_classifier(replace(spec, mean=mean, std=std))


def _named_in_a_library(name: str) -> str:
    """Return `` (did you mean ...?)`` with the network whose name, without its library, is nearest; empty for none."""
    import timm
    from torchvision import models

    libraries = {"timm": timm.list_models(), "torchvision": models.list_models(module=models), "lit_robust": OURS}
    # Of a name that several have the last one's stays.
    known = {one: f"{library}/{one}" for library, names in libraries.items() for one in names}
    close = get_close_matches(name.lower(), known, n=1)
    return f" (did you mean {known[close[0]]}?)" if close else ""


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
    except Exception as error:
        raise UserError(f"The module {module_name} cannot be imported: {_place_of(error)}.") from error
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
    try:
        network = build(**arguments)
    except Exception as error:
        raise UserError(f"{path} fails with the arguments {dict(arguments)}: {_place_of(error)}.") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{path} returned a {type(network).__name__}: return a torch.nn.Module.")
    return network


def _place_of(error: Exception) -> str:
    """Return what an error in the user's own code says, and the line that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    file, line = (error.filename, error.lineno) if isinstance(error, SyntaxError) else (last.filename, last.lineno)
    return f"{type(error).__name__} in line {line} of {file}, {' '.join(str(error).split()).rstrip('.')}"


class SmallResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks that halve the image and double the width, mean pool, one linear layer.

    The CIFAR form of He et al. 2016 (section 4.2) with wider later stages; the blocks are torchvision's.

    Args:
        num_classes: number of logits.
        widths: channels of each stage; every stage but the first halves height and width.
        blocks: basic blocks a stage.
    """

    def __init__(self, num_classes: int, widths: Sequence[int] = (32, 64, 128, 256), blocks: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        stages = [
            _stage(before, width, blocks, stride=1 if number == 0 else 2)
            for number, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False))
        ]
        self.layers = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` of normalised images ``[B, 3, H, W]``."""
        hidden = self.layers(self.relu(self.bn1(self.conv1(images))))
        logits: Tensor = self.fc(self.avgpool(hidden).flatten(1))
        return logits


def _stage(before: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    from torchvision.models.resnet import BasicBlock  # It loads all of torchvision's networks.

    shortcut = None
    if stride != 1 or before != width:
        shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
    first = BasicBlock(before, width, stride, shortcut)
    return nn.Sequential(first, *[BasicBlock(width, width) for _ in range(blocks - 1)])


def resnet_small(num_classes: int) -> SmallResNet:
    """Four stages of one block, widths 32 to 256: 1.2 million parameters."""
    return SmallResNet(num_classes, widths=(32, 64, 128, 256), blocks=1)


def resnet_tiny(num_classes: int) -> SmallResNet:
    """Four stages of one block, widths 16 to 128: 0.3 million parameters, for the demo and for tests."""
    return SmallResNet(num_classes, widths=(16, 32, 64, 128), blocks=1)


OURS: dict[str, Callable[[int], nn.Module]] = {"resnet_small": resnet_small, "resnet_tiny": resnet_tiny}
