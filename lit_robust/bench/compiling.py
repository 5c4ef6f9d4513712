"""`lit-robust bench compile`: whether `torch.compile` pays for a verdict, an attack's gradient and a training step."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_robust.attacks.ascent import loss_gradient
from lit_robust.attacks.attack import frozen, score
from lit_robust.attacks.losses import LOSSES
from lit_robust.bench.measuring import alternate, machine, precise, ratio, seconds_of, table
from lit_robust.core.folding import folded
from lit_robust.core.precision import PrecisionChoice, choose_precision
from lit_robust.models import Network, build_classifier


def bench_compile(network: str, size: int, batch: int, rounds: int, choice: PrecisionChoice) -> str:
    """Time each with the network as it is and compiled, in turn, and return the table and what compiling took.

    As it is, an attack's gradient has the network's batch norms folded; compiled, torch fuses what it can.

    Args:
        network: name, such as ``torchvision/resnet18``, with random weights, which cost as much as trained ones.
        size: side of the images, pixels.
        batch: images at once.
        rounds: measurements of each, at least 1.
        choice: the precision of gradients and training; a verdict is in fp32.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = choose_precision(choice, device.type)
    images = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.arange(batch, device=device)
    works: dict[str, Callable[[], None]] = {}
    warm_up: dict[str, float] = {}
    for compiled in (False, True):
        model: nn.Module = build_classifier(Network(network)).to(device)
        if compiled:
            model = torch.compile(model)  # type: ignore[assignment]  # It is one that calls it.
        tasks = _tasks(model, images, labels)
        for name, task in tasks.items():

            def work(task: Callable[[], object] = task, verdict: bool = name == "verdict") -> None:
                with precise("fp32" if verdict else precision, device):
                    task()

            label = f"{name}, {'fp32' if name == 'verdict' else precision}{', compiled' if compiled else ''}"
            begin = time.perf_counter()
            work()
            warm_up[label] = time.perf_counter() - begin
            works[label] = work
    figures = alternate(
        {name: lambda work=work: batch / seconds_of(work, device) for name, work in works.items()},  # type: ignore[misc]
        rounds,
        "images/s",
    )
    ratios = {
        name: ratio(figures[name.removesuffix(", compiled")], figure)
        for name, figure in figures.items()
        if name.endswith(", compiled")
    }
    title = f"{network}, {batch} images of {size} px, as it is and compiled"
    waits = ", ".join(f"{warm_up[name]:.0f} s ({name.split(',')[0]})" for name in ratios)
    said = f"The first compiled call takes {waits}, and again for each size of batch that is new."
    return f"{machine(('torch', 'torchvision'))}\n\n{table(title, list(figures.values()), ratios)}\n\n{said}"


def _tasks(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Callable[[], object]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def gradient() -> object:
        with frozen(model), folded(model):
            return loss_gradient(model, lambda logits: LOSSES["cross_entropy"](logits, labels), images)

    def verdict() -> object:
        with frozen(model):
            return score(model, images, labels, LOSSES["margin"])

    def training() -> None:
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(images).float(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return {"verdict": verdict, "gradient of an attack": gradient, "training step": training}
