"""`lit-robust bench training`: a step of each training scheme beside a standard step and MadryLab's recipe."""

import multiprocessing
import resource
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_robust.attacks import PGD
from lit_robust.batch import Batch
from lit_robust.bench.subjects import PlainClassifier, Precision, precise, synchronise
from lit_robust.bench.timing import Figure, alternate, machine, table
from lit_robust.models import Network, build_classifier
from lit_robust.modules import (
    AdversarialModule,
    AdvPropModule,
    ClassifierModule,
    Optimisation,
    StandardModule,
    TradesModule,
)
from lit_robust.modules.optimisation import build_optimizer

Scheme = Literal["standard", "madry", "advprop-pgd1", "trades"]
SCHEMES: tuple[Scheme, ...] = ("standard", "madry", "advprop-pgd1", "trades")
PGD1 = PGD(norm="linf", eps=1 / 255, step_size=1 / 255, steps=1, start="ball")


def bench_training(
    network: str, num_classes: int, size: int, batch: int, attack: PGD, rounds: int, precision: Precision
) -> str:
    """Time training steps in turn, weigh two of them in processes of their own, and return the tables.

    Images and labels are random: a step's cost does not depend on them.

    Args:
        network: name, such as ``torchvision/resnet18``.
        num_classes: of it.
        size: side of the images, pixels.
        batch: images a step.
        attack: Madry's and, with another loss, TRADES'; AdvProp's is one step of 1/255 in Linf.
        rounds: measurements of each, at least 1.
        precision: of our steps; MadryLab's is fp32, as its code is.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    subject = (network, num_classes, size, batch, attack)
    steps = {f"{name}, {precision}": _step(name, *subject, precision) for name in SCHEMES}
    for torch_of in ("its time", "today"):
        key = f"MadryLab's recipe, fp32, autograd as of {torch_of}"
        steps[key] = _madrylab_step(*subject, every_gradient=torch_of == "its time")
    figures = _rates(steps, batch, rounds, device)
    madry, standard = figures[f"madry, {precision}"], figures[f"standard, {precision}"]
    title = f"{network}, a batch of {batch} images of {size} px, PGD-{attack.norm} of {attack.steps} steps"
    ratios = {figure.name: madry.value / figure.value for figure in figures.values() if figure is not madry}
    lines = [f"{title}; the last column is madry / this", "", table(title, list(figures.values()), ratios), ""]
    lines += [
        f"{name} takes {standard.value / figure.value:.2f} times a standard step's time"
        for name, figure in figures.items()
        if figure is not standard
    ]
    peaks = {name: _peak(name, *subject, precision) for name in ("standard", "madry")}
    lines.append(
        f"Peak memory: standard {peaks['standard']:.0f} MiB, madry {peaks['madry']:.0f} MiB, "
        f"{peaks['madry'] / peaks['standard']:.3f} times as much"
    )
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else machine(("torch", "torchvision"))
    return "\n".join([where, "", *lines[2:]])


def _step(
    scheme: Scheme, network: str, num_classes: int, size: int, batch: int, attack: PGD, precision: Precision
) -> Callable[[], None]:
    """Return a step as Lightning takes it: our ``training_step`` under autocast, backward, SGD."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = Network(network, num_classes)
    made: Mapping[Scheme, Callable[[], ClassifierModule]] = {
        "standard": lambda: StandardModule(spec),
        "madry": lambda: AdversarialModule(spec, attack=attack),
        "advprop-pgd1": lambda: AdvPropModule(spec, attack=PGD1),
        "trades": lambda: TradesModule(
            spec,
            attack=PGD(attack.norm, attack.eps, attack.step_size, attack.steps, start="ball", loss="kl"),
        ),
    }
    module = made[scheme]().to(device).train()
    module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    optimizer = build_optimizer(Optimisation(learning_rate=1e-3), module.model.parameters())
    sample = _sample(batch, size, num_classes, device)

    def step() -> None:
        optimizer.zero_grad()
        with precise(precision, device):
            loss = module.training_step(sample, 0)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _madrylab_step(
    network: str, num_classes: int, size: int, batch: int, attack: PGD, every_gradient: bool
) -> Callable[[], None]:
    """Return a step that costs what MadryLab/robustness' does (``attacker.py``, ``train.py``), in a loop of our own.

    Single precision; the batch mean's gradient; the image of highest loss kept, with a pass more at the end; then one
    step of SGD. Torch of its time computed the gradients of all weights in each step of the attack, too.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = PlainClassifier(build_classifier(Network(network, num_classes))).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    sample = _sample(batch, size, num_classes, device)
    weights = list(model.parameters()) if every_gradient else []

    def step() -> None:
        model.eval()
        clean, images = sample.image, sample.image.clone()
        best, best_losses = images, torch.full((batch,), -torch.inf, device=device)
        for number in range(attack.steps + 1):
            images = images.detach().requires_grad_(True)
            losses = F.cross_entropy(model(images), sample.label, reduction="none")
            higher = losses > best_losses
            best = torch.where(higher.view(-1, 1, 1, 1), images, best).detach()
            best_losses = torch.where(higher, losses, best_losses).detach()
            if number == attack.steps:
                break
            gradient = torch.autograd.grad(losses.mean(), [images, *weights])[0]
            images = _madrylab_move(attack, clean, images.detach(), gradient)
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(best), sample.label).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _madrylab_move(attack: PGD, clean: Tensor, images: Tensor, gradient: Tensor) -> Tensor:
    if attack.norm == "linf":
        moved = images + attack.step_size * gradient.sign()
        return (clean + (moved - clean).clamp(-attack.eps, attack.eps)).clamp(0, 1)
    length = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    offset = images + attack.step_size * gradient / (length + 1e-10) - clean
    projected: Tensor = clean + offset.renorm(p=2, dim=0, maxnorm=attack.eps)
    return projected.clamp(0, 1)


def _sample(batch: int, size: int, num_classes: int, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, size, size, generator=generator).to(device)
    index = torch.arange(batch, device=device)
    return Batch(images, index % num_classes, index, torch.ones_like(index, dtype=torch.bool))


def _rates(steps: Mapping[str, Callable[[], None]], batch: int, rounds: int, device: torch.device) -> dict[str, Figure]:
    def measure(step: Callable[[], None]) -> float:
        synchronise(device)
        begin = time.perf_counter()
        step()
        synchronise(device)
        return batch / (time.perf_counter() - begin)

    for step in steps.values():
        step()
    return alternate({name: partial(measure, step) for name, step in steps.items()}, rounds, "images/s")


def _peak(*subject: Any) -> float:
    """Return the peak memory of two steps in a fresh process, in MiB: what torch allocated, or without a GPU all."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return float(pool.apply(_weigh, subject))


def _weigh(*subject: Any) -> float:
    step = _step(*subject)
    for _ in range(2):  # The second has the optimiser's state beside it.
        step()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
