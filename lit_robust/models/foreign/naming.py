"""Other laboratories' names of tensors, made those of torchvision and timm."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lit_robust.core.errors import UserError

# What stands before every name of a wrapped network: DataParallel and AveragedModel, torch.compile, Lightning and
# RobustBench, revisiting-at, and ours.
WRAPPERS = ("module.", "_orig_mod.", "model.", "base_model.", "network.")
# An unknown prefix has no more parts than these, such as the three of `lit.encoder.net.`.
DEEPEST = 4
# The parts of MadryLab's AttackerModel (robustness/attacker.py), and of RobustBench's normalised networks.
ATTACKER_PARTS = {"model", "attacker", "normalizer", "normalize"}
FROM_ATTACKER = "the network was taken out of its AttackerModel"
FROM_NORMALISED = "the network was taken out from behind its normaliser"
MEANS, DEVIATIONS = ("new_mean", "mean", "mu"), ("new_std", "std", "sigma")
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
        normaliser: mean and standard deviation, ``[3]`` each, that the file holds as tensors.
        wrappers: the prefixes that were taken off.
        has_heads: whether auxiliary classifiers were among the tensors.
    """

    tensors: dict[str, Tensor]
    rules: list[str] = field(default_factory=list)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    normaliser: tuple[Tensor, Tensor] | None = None
    wrappers: list[str] = field(default_factory=list)
    has_heads: bool = False

    def rename(self, rule: str, plain: Callable[[str], str]) -> None:
        """Give every tensor the name ``plain(name)``."""
        renamed = {plain(name): tensor for name, tensor in self.tensors.items()}
        if len(renamed) != len(self.tensors):
            raise UserError(f"Two tensors would have one name once {rule}: save the one you mean as a state dict.")
        if renamed.keys() != self.tensors.keys():
            self.rules.append(rule)
        self.tensors = renamed

    def unwrap(self, prefix: str) -> None:
        """Take off a prefix that every tensor bears."""
        self.rename(f"the prefix {prefix} was taken off", lambda name: name.removeprefix(prefix))
        self.wrappers.append(prefix)

    def fork(self) -> "Naming":
        """Return another of the same tensors, on which rules can be tried."""
        dropped = {reason: list(names) for reason, names in self.dropped.items()}
        return replace(
            self, tensors=dict(self.tensors), rules=list(self.rules), dropped=dropped, wrappers=list(self.wrappers)
        )

    def drop(self, reason: str, names: Collection[str]) -> None:
        """Leave tensors out."""
        if names:
            self.dropped.setdefault(reason, []).extend(names)
            self.tensors = {name: tensor for name, tensor in self.tensors.items() if name not in names}


def plain_names(tensors: dict[str, Tensor], own: Collection[str] = ()) -> Naming:
    """Return a state dict under the names of torchvision and timm.

    Prefixes are taken off only where every tensor bears them, and only until the network knows a name, so that a
    network whose own names begin with ``model.`` keeps them. One prefix that is no known wrapper's, such as ``net.`` or
    ``backbone.`` of a Lightning module, is taken off where the network is known and the rest has exactly its names.

    Args:
        tensors: a state dict by the names of its file.
        own: the names of the network it is meant for, where that is known.

    Raises:
        UserError: the parts of a wrapped network contradict each other.
    """
    naming = Naming(dict(tensors))
    naming.drop("count of averaged steps", [name for name in tensors if name.split(".")[-1] == "n_averaged"])
    _apply_rules(naming, own)
    return naming if not own or naming.tensors.keys() == set(own) else _without_shared_prefix(naming, own)


def _without_shared_prefix(naming: Naming, own: Collection[str]) -> Naming:
    """Take one more prefix off, of any name, where every tensor bears it and the rest is the whole network by name."""
    parts = min(naming.tensors, default="").split(".")[:-1]
    for depth in range(1, min(len(parts), DEEPEST) + 1):
        prefix = ".".join(parts[:depth]) + "."
        if not all(name.startswith(prefix) for name in naming.tensors):
            break
        trial = naming.fork()
        trial.unwrap(prefix)
        _apply_rules(trial, own)
        if trial.tensors.keys() == set(own):
            return trial
    return naming


def _apply_rules(naming: Naming, own: Collection[str]) -> None:
    """Take known wrappers off, give layers their plain names, and leave out what has no part in evaluation."""
    while not any(name in own for name in naming.tensors) and _unwrap(naming):
        pass
    _unwrap_features(naming)
    for pattern, spelling, whose, sign in SPELLINGS:
        if sign in naming.tensors:
            rule = f"names of {whose}: {pattern} became {spelling}"
            naming.rename(rule, lambda name, p=pattern, s=spelling: name if name in own else re.sub(p, s, name))  # type: ignore[misc]
    _drop_second_norms(naming)
    _drop_heads(naming, own)
    _fill_counts(naming, own)


def _unwrap(naming: Naming) -> bool:
    """Take one layer of wrapping off; return whether there was one."""
    heads = {name.split(".")[0] for name in naming.tensors}
    if {"model"} < heads <= ATTACKER_PARTS:
        # RobustBench's normalize_model names them so (model_zoo/architectures/utils_architectures.py).
        _unwrap_normalised(naming, FROM_ATTACKER if heads & {"attacker", "normalizer"} else FROM_NORMALISED)
        return True
    for prefix in WRAPPERS:
        if naming.tensors and all(name.startswith(prefix) for name in naming.tensors):
            naming.unwrap(prefix)
            return True
    return False


def check_unwrapped(names: Collection[str], source: str) -> None:
    """Refuse names of which some bear a wrapper's prefix and some do not, where no network is known to judge them.

    Args:
        names: as ``plain_names`` left them, so that no wrapper is around all of them.
        source: where they come from, such as a file's path.
    """
    # `network.` is the beginning of a part of timm's VOLO too.
    for prefix in WRAPPERS[:-1]:
        inside = [name for name in names if name.startswith(prefix)]
        # Counts of batches may have been filled in, and stand in no file.
        outside = [name for name in names if not name.startswith(prefix) and not name.endswith("num_batches_tracked")]
        if inside and outside:
            raise UserError(
                f"{source} holds more than one network's state dict, as {inside[0]} bears the prefix {prefix} of a "
                f"wrapper and {outside[0]} does not: save that of the network alone."
            )


def _unwrap_normalised(naming: Naming, rule: str) -> None:
    # The attacker holds the same network again, under its own name (robustness/attacker.py).
    twins = [name for name in naming.tensors if name.startswith("attacker.model.")]
    for name in twins:
        original = naming.tensors.get(name.removeprefix("attacker."))
        if original is None or not _same(original, naming.tensors[name]):
            raise UserError(
                f"{name} is not the tensor of {name.removeprefix('attacker.')}, so the file holds two networks: save "
                "the one you mean as a state dict."
            )
    naming.drop("the attacker's copy of the network, found equal", twins)
    normalisers = [name for name in naming.tensors if re.match(r"(attacker\.)?(normalizer|normalize)\.", name)]
    for name in normalisers:
        if name.split(".")[-1] not in (*MEANS, *DEVIATIONS) or naming.tensors[name].numel() != 3:
            raise UserError(f"{name} is no mean or deviation of three channels: save the network's own state dict.")
    means = [naming.tensors[name].flatten() for name in normalisers if name.split(".")[-1] in MEANS]
    deviations = [naming.tensors[name].flatten() for name in normalisers if name.split(".")[-1] in DEVIATIONS]
    if not all(_same(values[0], other) for values in (means, deviations) for other in values):
        raise UserError("The file holds two normalisers that differ: save the network's own state dict.")
    if means and deviations:
        naming.normaliser = means[0].float(), deviations[0].float()
    naming.drop("normaliser; the network's own does its work", normalisers)
    naming.rename(rule, lambda name: name.removeprefix("model."))


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or (one.is_floating_point() and torch.allclose(one, other, 0, 0, equal_nan=True))


def _unwrap_features(naming: Naming) -> None:
    # PyTorch's old ImageNet script put the convolutions of AlexNet and VGG alone into DataParallel.
    features = [name for name in naming.tensors if name.startswith("features.")]
    if features and all(name.startswith("features.module.") for name in features):
        naming.rename(
            "features.module. became features.", lambda name: re.sub(r"^features\.module\.", "features.", name)
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
