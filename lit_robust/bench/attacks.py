"""`lit-robust bench attacks`: PGD, and sweeps over eps, against Foolbox and torchattacks."""

import copy
import importlib
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_robust.attacks import PGD, Sweep
from lit_robust.attacks.attack import score
from lit_robust.attacks.losses import LOSSES
from lit_robust.bench.measuring import (
    PlainClassifier,
    alternate,
    check_peers_norm,
    machine,
    precise,
    ratio,
    read_images,
    synchronise,
    table,
)
from lit_robust.core.errors import UserError
from lit_robust.core.precision import Precision, PrecisionChoice, choose_precision
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.models import Network, build_classifier

PACKAGES = ("torch", "torchvision", "foolbox", "torchattacks")


def bench_attacks(
    folder: Path,
    split: str,
    crop: EvaluationCrop,
    network: Network,
    attack: PGD,
    eps: Sequence[float],
    images: int,
    batch: int,
    rounds: int,
    choice: PrecisionChoice,
) -> str:
    """Time one attack and one sweep, ours and the peers', in turn; return the tables.

    Every contender has the same images, weights, eps, steps and step sizes, without a random start. The peers get the
    network as their documentation shows it: single precision, torch's memory layout, and weights that require
    gradients, which Foolbox then computes, too, for it calls ``backward``. Accuracies are scored in fp32.

    Args:
        folder: shards of one set.
        split: its split.
        crop: of the images.
        network: which network with which weights; accuracies mean something for a trained one.
        attack: the attack; its eps is that of the single attack.
        eps: radii of the sweep, in [0, 1] pixel units, whose step sizes are in proportion.
        images: how many.
        batch: images attacked at once.
        rounds: measurements of each contender, at least 1.
        choice: the precision of our attack; ``bf16`` is autocast, and verdicts stay in fp32.
    """
    check_peers_norm(attack)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = choose_precision(choice, device.type)
    pixels, labels = (part.to(device) for part in read_images(folder, split, images, crop))
    ours = build_classifier(network).to(device).eval()
    theirs = PlainClassifier(copy.deepcopy(ours)).to(device).eval()
    subject = _Subject(ours, theirs, pixels, labels, batch, precision)
    name = f"{network.name}, {images} images of {pixels.shape[-1]} px in batches of {batch}, PGD-{attack.norm}"
    single = _compare(
        f"{name} eps {attack.eps:.4g}, {attack.steps} steps of {attack.step:.4g}",
        {
            f"lit_robust, {precision}": lambda: subject.ours(attack),
            "Foolbox": lambda: subject.foolbox(attack, [attack.eps]),
            "torchattacks": lambda: subject.torchattacks(attack),
        },
        rounds,
        images,
        device,
    )
    radii = sorted(eps)
    several = _compare(
        f"{name} at {len(radii)} eps in one sweep, {', '.join(f'{value:.4g}' for value in radii)}",
        {
            f"lit_robust, {precision}, broken at the last iterate": lambda: subject.sweep(attack, radii),
            f"lit_robust, {precision}, broken at any step": lambda: subject.sweep(replace(attack, keep="first"), radii),
            "Foolbox, broken at the last iterate": lambda: subject.foolbox(attack, radii),
        },
        rounds,
        images,
        device,
    )
    right = float((score(ours, pixels, labels, LOSSES["margin"]).answer == labels).float().mean())
    return f"{machine(PACKAGES)}\n\nClean accuracy {100 * right:.1f} %\n\n{single}\n\n{several}"


class _Subject:
    """Network, images and labels, and each contender's way to attack them; every way returns a curve of accuracies."""

    def __init__(
        self, ours: nn.Module, theirs: nn.Module, images: Tensor, labels: Tensor, batch: int, precision: Precision
    ) -> None:
        self.model, self.plain = ours, theirs
        self.images, self.labels = images, labels
        self.batch, self.precision = batch, precision

    def ours(self, attack: PGD) -> list[float]:
        broken = []
        with precise(self.precision, self.images.device):
            for images, labels in self._batches():
                broken.append(attack(self.model, images, labels).success)
        return [1 - float(torch.cat(broken).float().mean())]

    def sweep(self, attack: PGD, eps: Sequence[float]) -> list[float]:
        attacks = [attack.with_eps(value) for value in eps]
        # Nothing is drawn without a random start: any generator does.
        sweep = Sweep(attacks, self.batch, self.model, None, lambda _: torch.Generator())
        withstood = torch.zeros(len(self.labels), dtype=torch.int64)
        found, first = [], 0
        with precise(self.precision, self.images.device):
            for images, labels in self._batches():
                right = ~score(self.model, images, labels, LOSSES["margin"]).success
                numbers = (first + right.nonzero()[:, 0]).tolist()
                found += sweep.add(numbers, images[right], labels[right])
                first += len(labels)
            found += sweep.finish()
        for verdicts in found:
            rows = torch.tensor(verdicts.numbers)[verdicts.final.cpu()]
            withstood[rows] = verdicts.withstood[verdicts.final].cpu()
        return [float((withstood > place).float().mean()) for place in range(len(eps))]

    def foolbox(self, attack: PGD, eps: Sequence[float]) -> list[float]:
        import foolbox

        makers = {"l2": foolbox.attacks.L2PGD, "linf": foolbox.attacks.LinfPGD}
        peer = makers[attack.norm](rel_stepsize=attack.step / attack.eps, steps=attack.steps, random_start=False)
        model = foolbox.PyTorchModel(self.plain, bounds=(0, 1), device=self.images.device)  # type: ignore[attr-defined]
        fooled = [peer(model, images, labels, epsilons=list(eps))[2] for images, labels in self._batches()]
        return [1 - float(row) for row in torch.cat(fooled, 1).float().mean(1)]

    def torchattacks(self, attack: PGD) -> list[float]:
        torchattacks = importlib.import_module("torchattacks")  # It says nothing of its types.
        settings = {"eps": attack.eps, "alpha": attack.step, "steps": attack.steps, "random_start": False}
        maker = {"l2": torchattacks.PGDL2, "linf": torchattacks.PGD}[attack.norm]
        peer = maker(self.plain, **settings)
        broken = [
            score(self.plain, peer(images, labels), labels, LOSSES["margin"]).success
            for images, labels in self._batches()
        ]
        return [1 - float(torch.cat(broken).float().mean())]

    def _batches(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(torch.split(self.images, self.batch), torch.split(self.labels, self.batch), strict=True))


def _compare(
    title: str,
    contenders: Mapping[str, Callable[[], list[float]]],
    rounds: int,
    images: int,
    device: torch.device,
) -> str:
    curves = {name: work() for name, work in contenders.items()}  # Also the warm-up.

    def rate(work: Callable[[], Any]) -> Callable[[], float]:
        def measure() -> float:
            synchronise(device)
            begin = time.perf_counter()
            work()
            synchronise(device)
            return images / (time.perf_counter() - begin)

        return measure

    figures = alternate({name: rate(work) for name, work in contenders.items()}, rounds, "images/s")
    named = [
        replace(figure, name=f"{name}: accuracy {', '.join(f'{100 * value:.1f}' for value in curves[name])} %")
        for name, figure in figures.items()
    ]
    first = named[0]
    return table(title, named, {figure.name: ratio(first, figure) for figure in named[1:]})


def check_peers() -> None:
    """Refuse to compare with what is not there.

    Raises:
        UserError: Foolbox or torchattacks is not installed.
    """
    missing = [name for name in ("foolbox", "torchattacks") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"The peers are missing: run `pip install {' '.join(missing)}`.")
