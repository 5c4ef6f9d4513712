"""`lit-robust bench autoattack`: the cascade against its authors' own code, in time and in verdicts."""

import copy
import importlib
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lit_robust.attacks import AutoAttack, AutoAttackResult
from lit_robust.attacks.attack import score
from lit_robust.attacks.losses import LOSSES
from lit_robust.bench.measuring import PlainClassifier, machine, precise, read_images, synchronise
from lit_robust.core.errors import UserError
from lit_robust.core.precision import Precision
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.models import Network, build_classifier

PEER = "https://github.com/fra31/auto-attack"
NORMS = {"l2": "L2", "linf": "Linf"}


@dataclass
class Contender:
    """One that attacks batches, and what came of it so far.

    Attributes:
        name: of the line.
        attack: images, labels and the place of the first of them to which were broken, bool ``[B]``.
        seconds: of all batches.
        broken: a tensor a batch.
    """

    name: str
    attack: Callable[[Tensor, Tensor, int], Tensor]
    seconds: float
    broken: list[Tensor]


def bench_autoattack(
    folder: Path, split: str, crop: EvaluationCrop, network: Network, attack: AutoAttack, images: int, batch: int
) -> str:
    """Attack the same images once by each, batch by batch in turn, and return the table.

    The authors' code gets the network as its documentation shows it, in single precision and torch's memory layout.
    Both draw random starts, which differ; so may the verdict on an image at the edge. All verdicts are in fp32.

    Args:
        folder: shards of one set.
        split: its split.
        crop: of the images.
        network: which network with which weights.
        attack: norm, eps and version.
        images: how many.
        batch: images attacked at once.

    Raises:
        UserError: the authors' code is not installed.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pixels, labels = (part.to(device) for part in read_images(folder, split, images, crop))
    ours = build_classifier(network).to(device).eval()
    plain = PlainClassifier(copy.deepcopy(ours)).to(device).eval()
    counted: dict[str, int] = {}

    def own(precision: Precision) -> Callable[[Tensor, Tensor, int], Tensor]:
        def run(some: Tensor, truth: Tensor, first: int) -> Tensor:
            draws = [torch.Generator().manual_seed(first + number) for number in range(len(some))]
            with precise(precision, device):
                result = attack(ours, some, truth, generator=draws)
            if precision == "fp32":
                _count(counted, result)
            return result.success

        return run

    def theirs(some: Tensor, truth: Tensor, first: int) -> Tensor:
        with torch.no_grad():
            classes = plain(some[:1]).shape[1]
        peer = _peer(plain, attack, device, first, min(9, classes - 1))
        found = peer.run_standard_evaluation(some, truth, bs=len(some))
        return score(plain, found, truth, LOSSES["margin"]).success

    contenders = [
        Contender("lit_robust, fp32", own("fp32"), 0.0, []),
        Contender("lit_robust, bf16", own("bf16"), 0.0, []),
        Contender("its authors' code, fp32", theirs, 0.0, []),
    ]
    score(plain, pixels[:batch], labels[:batch], LOSSES["margin"])  # The first pass chooses algorithms.
    for precision in ("fp32", "bf16"):
        with precise(precision, device), torch.no_grad():
            ours(pixels[:batch])
    for first in tqdm(range(0, images, batch), desc="attacking", leave=False):
        some, truth = pixels[first : first + batch], labels[first : first + batch]
        for contender in contenders:
            synchronise(device)
            begin = time.perf_counter()
            contender.broken.append(contender.attack(some, truth, first))
            synchronise(device)
            contender.seconds += time.perf_counter() - begin
    title = f"{network.name}, {images} images of {pixels.shape[-1]} px in batches of {batch}, AutoAttack {attack.norm}"
    return f"{machine(('torch',))}\n\n{_table(f'{title} eps {attack.eps:.4g}', contenders, counted, images)}"


def _table(title: str, contenders: list[Contender], counted: dict[str, int], images: int) -> str:
    verdicts = [torch.cat(contender.broken) for contender in contenders]
    first, peer = contenders[0], contenders[-1]
    lines = [
        f"### {title}",
        "",
        "| | seconds | accuracy | verdicts unlike the authors' | their seconds / these |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for contender, broken in zip(contenders, verdicts, strict=True):
        unlike = int((broken != verdicts[-1]).sum())
        stood = f"{100 * (1 - float(broken.float().mean())):.1f} % | {unlike} of {images}"
        lines.append(
            f"| {contender.name} | {contender.seconds:.1f} | {stood} | {peer.seconds / contender.seconds:.2f} |"
        )
    found = ", ".join(f"{name} {count}" for name, count in counted.items())
    return "\n".join([*lines, "", f"Broken by, {first.name.split(', ')[1]}: {found}."])


def _count(counted: dict[str, int], result: AutoAttackResult) -> None:
    for number, name in enumerate(result.names):
        counted[name] = counted.get(name, 0) + int((result.code == number).sum())


def _peer(model: PlainClassifier, attack: AutoAttack, device: torch.device, seed: int, targets: int) -> Any:
    maker = importlib.import_module("autoattack").AutoAttack  # It says nothing of its types.
    settings = {"version": attack.version, "seed": seed, "device": str(device), "verbose": False}
    peer = maker(model, norm=NORMS[attack.norm], eps=attack.eps, **settings)
    # It asks for 9 wrong classes, also of a network that has fewer.
    peer.apgd_targeted.n_target_classes = peer.fab.n_target_classes = targets
    return peer


def check_peer() -> None:
    """Refuse to compare with what is not there.

    Raises:
        UserError: the authors' code is not installed.
    """
    if importlib.util.find_spec("autoattack") is None:
        raise UserError(f"The peer is missing: run `pip install git+{PEER}`.")
