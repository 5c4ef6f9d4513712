"""`lit-robust bench training`: a step of each training scheme against a standard step and MadryLab's recipe."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_robust.attacks import PGD
from lit_robust.bench.measuring import (
    Figure,
    PlainClassifier,
    alternate,
    check_peers_norm,
    count_operations,
    machine,
    peak_memory,
    precise,
    product_rate,
    ratio,
    seconds_of,
    table,
)
from lit_robust.core.batch import Batch
from lit_robust.core.precision import Precision, PrecisionChoice, choose_precision
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

Scheme = Literal["standard", "madry", "advprop-pgd1", "trades", "madrylab", "madrylab-today"]
PEERS: Mapping[Scheme, str] = {
    "madrylab": "MadryLab's recipe, fp32, autograd as of its time",
    "madrylab-today": "MadryLab's recipe, fp32, autograd of today",
}
PGD1 = PGD(norm="linf", eps=1 / 255, step_size=1 / 255, steps=1, start="ball")


@dataclass(frozen=True)
class TrainingSubject:
    """What the steps train, and on how much.

    Attributes:
        network: name, such as ``torchvision/resnet18``.
        num_classes: of it.
        size: side of the images, pixels.
        batch: images a step.
        attack: Madry's and, with another loss, TRADES'; AdvProp's is one step of 1/255 in Linf.
        precision: of our steps; MadryLab's is fp32, as its code is.
    """

    network: str
    num_classes: int
    size: int
    batch: int
    attack: PGD
    precision: Precision


def bench_training(
    network: str, num_classes: int, size: int, batch: int, attack: PGD, rounds: int, choice: PrecisionChoice
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
        choice: the precision of our steps; MadryLab's is fp32, as its code is.
    """
    check_peers_norm(attack)
    device = _device()
    precision = choose_precision(choice, device.type)
    subject = TrainingSubject(network, num_classes, size, batch, attack, precision)
    names: dict[Scheme, str] = {
        scheme: f"{scheme}, {precision}" for scheme in ("standard", "madry", "advprop-pgd1", "trades")
    }
    names |= PEERS
    steps = {name: build_step(scheme, subject) for scheme, name in names.items()}
    # Counting is each step's warm-up, too.
    operations = {name: count_operations(step) for name, step in steps.items()}
    figures = _rates(steps, batch, rounds, device)
    standard, madry = figures[names["standard"]], figures[names["madry"]]
    title = f"{network}, a batch of {batch} images of {size} px, PGD-{attack.norm} of {attack.steps} steps"
    others = [figure for figure in figures.values() if figure is not madry]
    peak = product_rate(device, precision)
    lines = [
        table(title, list(figures.values()), {figure.name: ratio(madry, figure) for figure in others}),
        "",
        f'"Ours" is "{madry.name}". A matrix product in {precision} reaches {peak / 1e12:.3g} Tflop/s here.',
        "",
        "| | time of a standard step | its operations | Tflop/s | of the product's |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, figure in figures.items():
        rate = operations[name] / batch * figure.value
        passes = operations[name] / operations[standard.name]
        lines.append(
            f"| {name} | {ratio(standard, figure):.2f} | {passes:.2f} | {rate / 1e12:.3g} | {100 * rate / peak:.0f} % |"
        )
    steps.clear()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # The next processes need the room.
        lines += ["", "Where it says fp32, convolutions are in TF32, as is torch's default."]
    peaks = {scheme: peak_memory(build_step, (scheme, subject)) for scheme in ("standard", "madry")}
    lines += [
        "",
        f"Peak memory: standard {peaks['standard']:.0f} MiB, madry {peaks['madry']:.0f} MiB, "
        f"{peaks['madry'] / peaks['standard']:.3f} times as much.",
    ]
    return "\n".join([machine(("torch", "torchvision")), "", *lines])


def build_step(scheme: Scheme, subject: TrainingSubject) -> Callable[[], None]:
    """Return a training step of a scheme, without Lightning's loop around it."""
    if scheme in PEERS:
        model = PlainClassifier(build_classifier(Network(subject.network, subject.num_classes))).to(_device())
        return madrylab_step(model, _sample(subject), subject.attack, every_gradient=scheme == "madrylab")
    return _our_step(scheme, subject)


def _our_step(scheme: Scheme, subject: TrainingSubject) -> Callable[[], None]:
    """Return a step as Lightning takes it: our ``training_step`` under autocast, backward, SGD."""
    device, spec, attack = _device(), Network(subject.network, subject.num_classes), subject.attack
    divergence = PGD(attack.norm, attack.eps, attack.step, attack.steps, start="ball", loss="kl")
    made: Mapping[Scheme, Callable[[], ClassifierModule]] = {
        "standard": lambda: StandardModule(spec),
        "madry": lambda: AdversarialModule(spec, attack=attack),
        "advprop-pgd1": lambda: AdvPropModule(spec, attack=PGD1),
        "trades": lambda: TradesModule(spec, attack=divergence),
    }
    module = made[scheme]().to(device).train()
    module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    optimizer = build_optimizer(Optimisation(learning_rate=1e-3), module.model.parameters())
    sample = _sample(subject)

    def step() -> None:
        optimizer.zero_grad()
        with precise(subject.precision, device):
            loss = module.training_step(sample, 0)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _sample(subject: TrainingSubject) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(subject.batch, 3, subject.size, subject.size, generator=generator).to(_device())
    index = torch.arange(subject.batch, device=images.device)
    return Batch(images, index % subject.num_classes, index, torch.ones_like(index, dtype=torch.bool))


def _rates(steps: Mapping[str, Callable[[], None]], batch: int, rounds: int, device: torch.device) -> dict[str, Figure]:
    def measure(step: Callable[[], None]) -> float:
        return batch / seconds_of(step, device)

    return alternate({name: partial(measure, step) for name, step in steps.items()}, rounds, "images/s")


def madrylab_step(model: PlainClassifier, sample: Batch, attack: PGD, every_gradient: bool) -> Callable[[], None]:
    """Return a step that takes the passes of ``attacker.py`` and ``train.py`` there, without their logging.

    Single precision and torch's memory layout; the gradient of the batch mean; the image of highest loss kept, for
    which the last iterate needs a pass more; then one step of SGD.

    Args:
        model: what is trained.
        sample: the batch of every step.
        attack: norm, eps, step size and steps.
        every_gradient: compute the gradients of all weights in each step of the attack, too, as torch did when that
            code was written; today ``autograd.grad`` leaves them out.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    weights = list(model.parameters()) if every_gradient else []

    def step() -> None:
        model.eval()
        clean, images = sample.image, sample.image.clone()
        best, best_losses = images, torch.full_like(sample.label, -torch.inf, dtype=torch.float32)
        for number in range(attack.steps + 1):
            images = images.detach().requires_grad_(True)
            losses = F.cross_entropy(model(images), sample.label, reduction="none")
            higher = losses > best_losses
            best = torch.where(higher.view(-1, 1, 1, 1), images, best).detach()
            best_losses = torch.where(higher, losses, best_losses).detach()
            if number == attack.steps:
                break
            gradient = torch.autograd.grad(losses.mean(), [images, *weights])[0]
            images = _move(attack, clean, images.detach(), gradient)
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(best), sample.label).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _move(attack: PGD, clean: Tensor, images: Tensor, gradient: Tensor) -> Tensor:
    if attack.norm == "linf":
        moved = images + attack.step * gradient.sign()
        return (clean + (moved - clean).clamp(-attack.eps, attack.eps)).clamp(0, 1)
    length = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    offset = images + attack.step * gradient / (length + 1e-10) - clean
    projected: Tensor = clean + offset.renorm(p=2, dim=0, maxnorm=attack.eps)
    return projected.clamp(0, 1)
