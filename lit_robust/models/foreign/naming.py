"""Other laboratories' names of tensors, made those of torchvision and timm."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lit_robust.core.errors import UserError

# What a wrapper puts into a name wherever it stands: torch.compile, activation checkpointing, FSDP, DeepSpeed. No
# network gives a part such a name.
INSIDE = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module")
# What stands around whole networks: DataParallel and AveragedModel, Lightning and RobustBench, revisiting-at, and ours.
WRAPPERS = ("module", "model", "base_model", "network")
FROM_ATTACKER = "robustness (MadryLab, Microsoft, Chen et al.)"
FROM_NORMALISED = "network behind a normaliser (as RobustBench's)"
# A mean or a deviation next to a network, such as `normalize.mean`, `mu`, `new_std`; not a batch norm's.
CHANNEL = re.compile(r"(?P<place>(?:.*\.)?(?!running_)(?:\w*_)?)(?:(?P<mean>mean|mu)|std|sigma)")
# Why `total_ops` and `total_params` are left out.
TOTALS = "totals of a counter of operations"
NORMALISER = re.compile(r"(^|\.)normali[sz]er?\.")
# First parts of what measures a network next to it: loss functions and metrics.
MEASURES = re.compile(
    r"(?<![a-z])(criteri|loss|metric|acc(uracy)?(?![a-z])|auroc|f1|ece(?![a-z])|confusion)", re.IGNORECASE
)
# Another spelling of a layer: the pattern, the plain spelling, whose it is, and a tensor that only they have.
SPELLINGS = (
    (r"^last_layer\.", "classifier.6.", "MadryLab's AlexNet", "classifier.4.weight"),
    (r"\.branch4_conv\.", ".branch4.1.", "Chen et al.'s GoogLeNet", "inception3a.branch4_conv.conv.weight"),
    (
        r"(\.denselayer\d+\.(?:norm|conv|relu))\.([12])\.",
        r"\1\2.",
        "torchvision's old DenseNets",
        "features.conv0.weight",
    ),
    (r"\.mlp\.linear_1\.", ".mlp.0.", "torchvision's old vision transformers", "conv_proj.weight"),
    (r"\.mlp\.linear_2\.", ".mlp.3.", "torchvision's old vision transformers", "conv_proj.weight"),
)
# Auxiliary classifiers take part in training alone: the layer that tells the network, and their names.
AUXILIARY_HEADS = (
    ("inception3a.branch1.conv.weight", ("aux1.", "aux2.")),
    ("Mixed_5b.branch1x1.conv.weight", ("AuxLogits.",)),
)


@dataclass
class Naming:
    """A state dict on its way to plain names, and what was done to it.

    Attributes:
        tensors: by the names so far.
        rules: what was done, a sentence each, in order.
        dropped: names of the file's tensors that were left out, by the reason.
        outside: names of the file's tensors that are not the network's.
        normaliser: mean and standard deviation, ``[3]`` each, that the file holds as tensors.
        prefix: what stood before the names of the network, and was taken off.
        form: whose wrapping was recognised, for a person; empty where none was.
        has_heads: whether auxiliary classifiers were among the tensors.
    """

    tensors: dict[str, Tensor]
    rules: list[str] = field(default_factory=list)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    outside: list[str] = field(default_factory=list)
    normaliser: tuple[Tensor, Tensor] | None = None
    prefix: str = ""
    form: str = ""
    has_heads: bool = False

    def rename(self, rule: str, plain: Callable[[str], str]) -> None:
        """Give every tensor the name ``plain(name)``."""
        renamed = {plain(name): tensor for name, tensor in self.tensors.items()}
        if len(renamed) != len(self.tensors):
            raise UserError(f"Two tensors would have one name once {rule}: save the one you mean as a state dict.")
        if renamed.keys() != self.tensors.keys():
            self.rules.append(rule)
        self.tensors = renamed

    def drop(self, reason: str, names: Collection[str]) -> None:
        """Leave tensors out."""
        if names:
            self.dropped.setdefault(reason, []).extend(names)
            self.tensors = {name: tensor for name, tensor in self.tensors.items() if name not in names}


def plain_names(tensors: Mapping[str, Tensor], own: Collection[str] = ()) -> list[Naming]:
    """Return a state dict under the names of torchvision and timm, once for every place in it where the network stands.

    A place is a prefix, such as ``module.model.``. Where the network is known, it is every prefix under which exactly
    its tensors stand; a normaliser's mean and deviation are read, and what measures the network, other copies of it and
    what else stands outside are left, and named. Where the network is not known, or stands nowhere, the prefixes of
    known wrappers are taken off that stand before everything but a normaliser.

    Args:
        tensors: a state dict by the names of its file.
        own: the names of the network it is meant for, where that is known.

    Returns:
        At least one; several only where each has exactly the names of the network.

    Raises:
        UserError: the parts of a wrapped network contradict each other.
    """
    start = Naming(dict(tensors))
    leaves = {name: name.split(".")[-1] for name in tensors if name not in own}
    start.drop("count of averaged steps", [name for name, leaf in leaves.items() if leaf == "n_averaged"])
    totals = [name for name, leaf in leaves.items() if leaf in ("total_ops", "total_params")]
    start.drop(TOTALS, totals)
    start.rename(
        "the parts that wrappers put inside names, such as _orig_mod, were taken off",
        lambda name: ".".join(part for part in name.split(".") if part not in INSIDE),
    )
    channels = _channels(start.tensors)
    trials = {prefix: _below(prefix, start, own, channels) for prefix in _places(start.tensors, own)}
    whole = {prefix: found for prefix, found in trials.items() if found.tensors.keys() >= set(own)}
    fitting = []
    for prefix, found in whole.items():
        copies = tuple(other for other in whole if other != prefix)
        nested = [name for name in found.tensors if name not in own and (prefix + name).startswith(copies)]
        found.tensors = {name: tensor for name, tensor in found.tensors.items() if name not in nested}
        found.outside += [prefix + name for name in nested]
        if found.tensors.keys() == set(own):
            _judge_what_is_beside(found, start.tensors, channels, copies)
            fitting.append(found)
    return fitting or [_without_wrappers(start, own, channels)]


def _places(names: Collection[str], own: Collection[str]) -> list[str]:
    """Return the prefixes under which stand as many tensors as a known network has."""
    if not own:
        return []
    parts = [name.split(".") for name in names]
    counts = Counter(".".join([*some[:depth], ""]) for some in parts for depth in range(len(some)))
    least = sum(not name.endswith("num_batches_tracked") for name in own)
    return [prefix for prefix, count in counts.items() if count >= least]


def _below(prefix: str, start: Naming, own: Collection[str], channels: Collection[str]) -> Naming:
    """Return the tensors under a prefix by plain names, without those of a normaliser or a measure."""
    inside = {
        name: name.removeprefix(prefix) for name in start.tensors
        if name.startswith(prefix) and not _is_beside(name, name.removeprefix(prefix), own, channels)
    }  # fmt: skip
    naming = Naming(
        {plain: start.tensors[name] for name, plain in inside.items()},
        [*start.rules, *([f"the prefix {prefix} was taken off"] if prefix else [])],
        {reason: list(names) for reason, names in start.dropped.items()},
        [name for name in start.tensors if name not in inside],
        prefix=prefix,
    )
    _apply_rules(naming, own)
    return naming


def _is_beside(name: str, plain: str, own: Collection[str], channels: Collection[str]) -> bool:
    """Return whether a tensor is not of a known network, but of what normalises or measures next to it."""
    return bool(own) and plain not in own and (name in channels or bool(MEASURES.search(plain.split(".")[0])))


def _without_wrappers(start: Naming, own: Collection[str], channels: Mapping[str, str]) -> Naming:
    """Take known wrappers off that stand before all tensors but a normaliser's, until the network knows a name."""
    prefix, longer = "", [""]
    while longer and not any(name.removeprefix(prefix) in own for name in start.tensors):
        prefix = longer[0]
        candidates = [f"{prefix}{wrapper}." for wrapper in WRAPPERS]
        longer = [candidate for candidate in candidates if _is_around(candidate, start.tensors, channels)]
    naming = _below(prefix, start, (), channels)
    _judge_what_is_beside(naming, start.tensors, channels, (f"{prefix.removesuffix('model.')}attacker.model.",))
    return naming


def _is_around(prefix: str, tensors: Mapping[str, Tensor], channels: Collection[str]) -> bool:
    """Return whether a prefix stands before all tensors, but those of a normaliser and of MadryLab's attacker."""
    outside = [name for name in tensors if not name.startswith(prefix)]
    for name in outside:
        # The attacker holds the same network again, under its own name (robustness/attacker.py).
        original = name.replace("attacker.", "", 1)
        if original != name and original.startswith(prefix) and original in tensors:
            if not _same(tensors[original], tensors[name]):
                raise UserError(
                    f"{name} is not the tensor of {original}, so the file holds two networks: name the network, and "
                    "which of the copies to take."
                )
        elif name not in channels and not NORMALISER.search(name):
            return False
    return len(outside) < len(tensors)


def _channels(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the names of means of three channels, each with its deviation's, and the other way round."""
    pairs: dict[str, dict[bool, str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel() == 3 and (match := CHANNEL.fullmatch(name)):
            pairs.setdefault(match["place"], {})[match["mean"] is not None] = name
    whole = [(pair[True], pair[False]) for pair in pairs.values() if len(pair) == 2]
    return dict(whole) | {deviation: mean for mean, deviation in whole}


def _judge_what_is_beside(
    naming: Naming, tensors: Mapping[str, Tensor], channels: Mapping[str, str], copies: tuple[str, ...]
) -> None:
    """Read the normaliser next to a network, and name everything else there.

    Args:
        naming: the network that was found.
        tensors: the whole state dict.
        channels: means and deviations in it, each with its partner.
        copies: prefixes of other copies of the network.
    """
    again = [name for name in naming.outside if name.startswith(copies)]
    rest = [name for name in naming.outside if name not in again]
    for name in rest:
        if NORMALISER.search(name) and name not in channels:
            raise UserError(f"{name} is not a mean or deviation of three channels: save the network's own state dict.")
    means = [name for name in rest if name in channels and CHANNEL.fullmatch(name)["mean"]]  # type: ignore[index]
    values = [(tensors[name].flatten(), tensors[channels[name]].flatten()) for name in means]
    if any(not _same(one, first) for pair in values for one, first in zip(pair, values[0], strict=True)):
        raise UserError(
            f"The file holds two normalisers that differ, {means[0]} and another: save the network's own state dict."
        )
    if values:
        naming.normaliser = values[0][0].float(), values[0][1].float()
    if values or again:
        by_attacker = any(part in ("attacker", "normalizer") for name in naming.outside for part in name.split("."))
        naming.form = FROM_ATTACKER if by_attacker else FROM_NORMALISED if values else ""
    reasons = {
        "normaliser; the network's own does its work": [name for name in rest if name in channels],
        "another copy of the network": again,
        "outside the network": [name for name in rest if name not in channels],
    }
    naming.dropped |= {reason: names for reason, names in reasons.items() if names}


def _apply_rules(naming: Naming, own: Collection[str]) -> None:
    """Give layers their plain names, and leave out what has no part in evaluation."""
    # DataParallel around a part; PyTorch's old ImageNet script puts it around the convolutions of AlexNet and VGG.
    features = [name for name in naming.tensors if name.startswith("features.")]
    if own:
        plain = {name: name if name in own else name.replace(".module.", ".") for name in naming.tensors}
        if len(set(plain.values())) == len(plain):
            naming.rename("module. inside names was taken off", plain.__getitem__)
    elif features and all(name.startswith("features.module.") for name in features):
        naming.rename(
            "features.module. became features.", lambda name: re.sub(r"^features\.module\.", "features.", name)
        )
    for pattern, spelling, whose, sign in SPELLINGS:
        if sign in naming.tensors:
            rule = f"names of {whose}: {pattern} became {spelling}"
            naming.rename(rule, lambda name, p=pattern, s=spelling: name if name in own else re.sub(p, s, name))  # type: ignore[misc]
    _drop_second_norms(naming)
    _drop_heads(naming, own)
    _fill_counts(naming, own)


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype or one.layout != other.layout:
        return False
    return torch.equal(one, other) or (one.is_floating_point() and torch.allclose(one, other, 0, 0, equal_nan=True))


def check_unwrapped(names: Collection[str], source: str) -> None:
    """Refuse names of which some bear a wrapper's prefix and some do not, where no network is known to judge them.

    Args:
        names: as ``plain_names`` left them, so that no wrapper is around all of them.
        source: where they come from, such as a file's path.
    """
    # `network.` is the beginning of a part of timm's VOLO too.
    for wrapper in WRAPPERS[:-1]:
        prefix = f"{wrapper}."
        inside = [name for name in names if name.startswith(prefix)]
        # Counts of batches may have been filled in, and stand in no file.
        outside = [name for name in names if not name.startswith(prefix) and not name.endswith("num_batches_tracked")]
        if inside and outside:
            raise UserError(
                f"{source} holds more than one network's state dict, as {inside[0]} bears the prefix {prefix} of a "
                f"wrapper and {outside[0]} does not: name the network, or save its own state dict alone."
            )


def _drop_second_norms(naming: Naming) -> None:
    # A batch norm inside a batch norm: `aux_bn` in the AdvProp port, a list of them in timm's, `auxiliary` in ours.
    pattern = re.compile(r"^(.*)\.(aux_bn|auxiliary)\.(\d+\.)?\w+$")
    found = {name: match for name in naming.tensors if (match := pattern.match(name))}
    inside = [name for name, match in found.items() if f"{match[1]}.running_mean" in naming.tensors]
    naming.drop("auxiliary batch norm of adversarial training; the main one is tested", inside)


def _drop_heads(naming: Naming, own: Collection[str]) -> None:
    for sign, prefixes in AUXILIARY_HEADS:
        if sign in naming.tensors:
            heads = [name for name in naming.tensors if name.startswith(prefixes) and name not in own]
            naming.has_heads = bool(heads)
            naming.drop("auxiliary classifier of training", heads)


def _fill_counts(naming: Naming, own: Collection[str]) -> None:
    # torch counts a batch norm's batches since 0.4.1; in evaluation the count has no part.
    norms = [name.removesuffix("running_mean") for name in naming.tensors if name.endswith("running_mean")]
    absent = [f"{norm}num_batches_tracked" for norm in norms if f"{norm}num_batches_tracked" not in naming.tensors]
    absent = [name for name in absent if not own or name in own]
    if absent:
        naming.rules.append(f"num_batches_tracked was missing in {len(absent)} batch norms and was set to 0")
        naming.tensors |= {name: torch.zeros((), dtype=torch.int64) for name in absent}
