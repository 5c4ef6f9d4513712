"""`lit-robust bench inversion`: inversions, against MadryLab/robustness's attacker with a custom loss."""

import copy
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from lit_robust.analysis.ascent import Match, Settings, ascend, noise_starts, relative_distance
from lit_robust.analysis.inversion import in_batches
from lit_robust.analysis.representation import Representation
from lit_robust.bench.measuring import PlainClassifier, alternate, machine, ratio, synchronise, table
from lit_robust.core.errors import UserError
from lit_robust.core.precision import full_precision
from lit_robust.models import Classifier, Network, build_classifier

PACKAGES = ("torch", "torchvision")


def bench_inversion(spec: Network, size: int, batch: int, steps: int, rounds: int) -> str:
    """Time the steps of an inversion, ours and the peer's, in turn; return the table.

    All contenders invert the same targets from the same noise, and each gets its distance reached. The gradient of
    the last ReLU is left as it is, for the peer has its own way past it in its own networks alone.

    Args:
        spec: which network; with random weights speed is the same.
        size: side of the images, pixels.
        batch: images at once.
        steps: of each measurement.
        rounds: measurements of each contender.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    ours = build_classifier(spec).to(device).eval()
    theirs = PlainClassifier(copy.deepcopy(ours)).to(device).eval()
    shape = (3, size, size)
    starts = noise_starts(shape, list(range(batch)), 0).to(device)
    # Targets with structure, so that there is something to come near to.
    targets = noise_starts((3, 4, 4), list(range(batch)), 1).to(device).sub(0.5).mul(6).add(0.5).clamp(0, 1)
    targets = nn.functional.interpolate(targets, (size, size), mode="bilinear", align_corners=False)
    represent = Representation.of(ours, starts[:1], straight_through=False)
    goals = in_batches(represent, targets, batch).to(device)
    settings = Settings(step_size=1.0, steps=steps)
    linear = _last_linear(theirs)

    contenders: dict[str, Callable[[], Tensor]] = {
        "lit_robust, fp32": lambda: ascend(represent, Match(goals), starts, settings).images,
        "lit_robust, bf16": lambda: ascend(represent, Match(goals), starts, replace(settings, precision="bf16")).images,
        "MadryLab's attacker with a custom loss, fp32": lambda: madrylab(theirs, linear, goals, starts, 1.0, steps),
    }

    def measured(work: Callable[[], Tensor]) -> Callable[[], float]:
        def measure() -> float:
            synchronise(device)
            begin = time.perf_counter()
            work()
            synchronise(device)
            return batch * steps / (time.perf_counter() - begin)

        return measure

    near = {}
    for name, work in contenders.items():  # Also the warm-up.
        near[name] = float(relative_distance(in_batches(represent, work(), batch).to(device), goals).mean())
    figures = alternate({name: measured(work) for name, work in contenders.items()}, rounds, "image-steps/s")
    named = [replace(one, name=f"{name}: relative distance {near[name]:.4f}") for name, one in figures.items()]
    title = f"{spec.name}, {batch} images of {size} px, {steps} steps of 1 in L2"
    best = named[:-1]
    ratios = {best[1].name: ratio(best[0], best[1]), named[-1].name: ratio(best[0], named[-1])}
    return f"{machine(PACKAGES)}\n\n{table(title, named, ratios)}"


def _last_linear(network: nn.Module) -> nn.Linear:
    found = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not found:
        raise UserError("The network has no linear layer, whose input would be inverted: name one that has.")
    return found[-1]


def madrylab(
    model: Classifier | PlainClassifier,
    last: nn.Linear,
    goals: Tensor,
    starts: Tensor,
    step_size: float,
    steps: int,
    eps: float = 1000.0,
) -> Tensor:
    """Return what MadryLab/robustness's ``Attacker.forward`` returns for a custom loss, without ``use_best``.

    Written anew after its ``attacker.py`` and ``attack_steps.py``. ``calc_loss`` runs the network for the answer, which
    it drops, and the custom loss runs it again; the loss is the mean over the batch.

    Args:
        model: images in [0, 1] to logits.
        last: its last linear layer, whose input is the representation.
        goals: representations ``[B, D]``.
        starts: float32 ``[B, C, H, W]`` in [0, 1].
        step_size: in L2.
        steps: of the search.
        eps: radius in L2 around the starts.
    """
    kept: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    images = starts.clone().detach()
    try:
        with full_precision(starts.device.type):
            for _ in range(steps):
                images = images.clone().detach().requires_grad_(True)
                _unused = model(images)
                kept.clear()
                model(images)
                losses = torch.div(torch.norm(kept[0] - goals, dim=1), torch.norm(goals, dim=1))
                (gradient,) = torch.autograd.grad(-1 * losses.mean(), images)
                with torch.no_grad():
                    length = torch.norm(gradient.view(len(gradient), -1), dim=1).view(-1, 1, 1, 1)
                    moved = images + gradient / (length + 1e-10) * step_size
                    offset = (moved - starts).renorm(p=2, dim=0, maxnorm=eps)
                    images = torch.clamp(starts + offset, 0, 1)
    finally:
        handle.remove()
    return images.detach()
