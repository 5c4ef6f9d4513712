"""`lit-robust convert`: another laboratory's checkpoint as safetensors, with a record of what was done to it."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_robust import __version__
from lit_robust.core.errors import UserError
from lit_robust.core.files import file_sha256, write_tensors, write_text
from lit_robust.models.foreign.checkpoint import Channels, open_checkpoint
from lit_robust.models.foreign.naming import check_unwrapped
from lit_robust.models.foreign.reading import Weights, check_normaliser, check_said, read_weights
from lit_robust.models.network import Network, build_classifier, check_channels
from lit_robust.models.weights import check_finite, check_fit, tensors_digest


def convert(
    source: Path,
    output: Path,
    network: str | None = None,
    num_classes: int = 1000,
    mean: Channels | None = None,
    std: Channels | None = None,
    copy: str = "averaged",
) -> str:
    """Write the weights of any checkpoint as safetensors, and next to them ``<name>.provenance.json``.

    Nothing in the source is run. The output holds the network's tensors alone, under the names of torchvision and timm
    and in float32, and says in its metadata how the network normalises, where that is known; so
    ``Network(weights=output)`` needs no more settings. An equal output is left as it is, and so is the record of it.

    Args:
        source: the checkpoint; see ``open_checkpoint`` for its forms.
        output: file to write, ``.safetensors``; refused where another file stands there.
        network: name of the network that every tensor must fit, such as ``torchvision/resnet50``; null checks nothing.
        num_classes: classes of that network, a count; without ``network`` of no effect.
        mean: per-channel mean that the network was trained with, in [0, 1] pixel units; null takes what the source
            says, if anything.
        std: per-channel standard deviation, likewise.
        copy: which to take where the source holds several copies of the weights: ``averaged``, ``raw``, or the name of
            one.

    Returns:
        What was written, in one line.

    Raises:
        UserError: the source cannot be read, or is the output, its tensors do not fit, or the output cannot be written.
    """
    if output.suffix != ".safetensors":
        raise UserError(f"{output} does not end in .safetensors, which is what is written: give it that ending.")
    if output.exists() and source.exists() and output.samefile(source):
        raise UserError(f"{output} is the source itself: choose another name for what is written.")
    if (mean is None) != (std is None):
        raise UserError(f"mean is {mean} and std is {std}: give both, or neither.")
    check_channels(mean, std)
    spec = None if network is None else Network(network, num_classes)
    built = None if spec is None else build_classifier(spec).network
    weights = read_weights(source, built.state_dict() if built is not None else (), copy)
    if mean is not None and std is not None:
        check_normaliser(weights, str(source), mean, std, "--mean", "--std")
    if spec is not None and built is not None:
        check_fit(weights.tensors, built, f"{source}", f"{spec.name} with {spec.num_classes} classes")
    else:
        check_unwrapped(weights.tensors, f"{source}")
        check_finite(weights.tensors, f"{source}")
    tensors, rule = _single_precision(weights.tensors)
    says = weights.says
    metadata = {"format": "pt", "transform_input": json.dumps(says.transform_input)}
    found = {
        "mean": mean or (weights.normaliser and weights.normaliser[0]) or says.mean,
        "std": std or (weights.normaliser and weights.normaliser[1]) or says.std,
    }
    check_said(found["mean"] or (), found["std"] or (), f"{source}", "--mean and --std")
    metadata |= {name: json.dumps(list(values)) for name, values in found.items() if values}
    digest = tensors_digest(tensors)
    record = {
        "schema": 1,
        "source": {"file": source.name, "bytes": source.stat().st_size, "sha256": file_sha256(source)},
        **_what_was_done(weights, rule),
        "network": network,
        "num_classes": num_classes if network is not None else None,
        **found,
        "transform_input": says.transform_input,
        "tensors": len(tensors),
        "weights_sha256": digest,
        "versions": {
            "lit_robust": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "safetensors")},
        },
    }
    wrote = _write(tensors, digest, metadata, output)
    origin = output.with_suffix(".provenance.json")
    checked = f"which fit {network}" if network is not None else "not checked against a network, for want of --network"
    # The record of a file that was there tells where it came from; this source may be a copy that knows less.
    if not wrote and origin.is_file() and digest in origin.read_text(encoding="utf-8", errors="replace"):
        return f"Left {output} and its {origin.name} as they are: they hold these {len(tensors)} tensors, {checked}."
    write_text(origin, json.dumps(record, indent=2) + "\n")
    return f"Wrote {output if wrote else origin}: {len(tensors)} tensors from a {weights.form}, {checked}."


def _single_precision(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return floating tensors as float32, which is how networks are built here, and the rule that tells of it."""
    others = sorted({str(t.dtype) for t in tensors.values() if t.is_floating_point() and t.dtype != torch.float32})
    single = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    # A file must hold every tensor by itself: a shared or strided one cannot be written.
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in single.items()}, tuple(
        f"{kind} became float32" for kind in others
    )


def _what_was_done(weights: Weights, precision: tuple[str, ...]) -> dict[str, Any]:
    return {
        "form": weights.form,
        "key": weights.key,
        "rules": [*weights.rules, *precision],
        "dropped": {reason: sorted(names) for reason, names in weights.dropped.items()},
        "left_out": list(weights.left),
        "objects_passed_over": list(weights.foreign),
    }


def _write(tensors: dict[str, Tensor], digest: str, metadata: dict[str, str], output: Path) -> bool:
    """Write the weights; return whether that was needed."""
    if output.exists():
        there = open_checkpoint(output)
        if tensors_digest(there.states[""]) == digest and _metadata(output) == metadata:
            return False
        raise UserError(f"{output} exists and holds other weights: remove it, or choose another name.")
    write_tensors(output, tensors, metadata)
    return True


def _metadata(file: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as content:
        return dict(content.metadata() or {})
