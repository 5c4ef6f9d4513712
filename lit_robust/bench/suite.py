"""`lit-robust bench suite`: what `eval/suite.yaml` costs on the whole of ImageNet's sets, here and on one H200.

Nothing of that size is run. Passes follow from the sets' sizes and the attack's settings, seconds from a network's rate
on a few images here, and from peak rates and stated shares of them elsewhere.
"""

from dataclasses import dataclass, replace

import torch

from lit_robust.attacks import PGD
from lit_robust.attacks.attack import score
from lit_robust.attacks.losses import LOSSES
from lit_robust.bench.measuring import alternate, count_operations, machine, precise, seconds_of
from lit_robust.core.precision import PrecisionChoice, choose_precision
from lit_robust.models import Network, build_classifier

IMAGES = {
    "cue-conflict": 1_280,
    "imagenet-o": 2_000,
    "imagenet-a": 7_500,
    "stylized-imagenet": 50_000,
    "imagenet": 50_000,
    "imagenet-c": 75 * 50_000,  # 15 corruptions at 5 severities.
}
STEPS = 7
WITHSTOOD = (0.579, 0.5442, 0.5067, 0.4304)
"""Shares of the images that are attacked at eps 0.5, 1, 2 and 3: right clean, and right at each smaller eps.

Of a robust ResNet-50, the dear case: clean as Chen et al. 2020 print it, the others as MadryLab/robustness does.
"""

H200_FP32, H200_BF16 = 67e12, 989e12
"""Peak operations a second, dense (NVIDIA's data sheet of the H200)."""
SHARE_FP32, SHARE_BF16 = 0.6, 0.25
"""Of the peaks: an assumption, as nothing was measured on a GPU."""
DECODED = 12 * 630.0
"""Images a second that 12 processes load, each at the rate of one core in `RESULTS.md`."""


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second.

    Attributes:
        scored: forward passes in fp32.
        stepped: attack steps, each one forward and one backward pass, in the attack's precision.
        loaded: images loaded, next to both.
    """

    scored: float
    stepped: float
    loaded: float


@dataclass(frozen=True)
class Cost:
    """What a set takes.

    Attributes:
        name: of the set.
        images: each decoded once.
        scored: forward passes in fp32: one an image for all measures together, and one for each attack's verdict.
        steps: attack steps.
    """

    name: str
    images: int
    scored: int
    steps: int

    def seconds(self, rates: Rates) -> float:
        """Return the longer of computing and of loading, which happen at once."""
        return max(self.scored / rates.scored + self.steps / rates.stepped, self.images / rates.loaded)


def suite_costs(withstood: tuple[float, ...] = WITHSTOOD, steps: int = STEPS) -> list[Cost]:
    """Return the cost of each set, the cheapest first.

    Args:
        withstood: shares of ImageNet's images that are attacked at each eps.
        steps: of the attack.
    """
    costs = [Cost(name, images, images, 0) for name, images in IMAGES.items()]
    attacked = round(IMAGES["imagenet"] * sum(withstood))
    costs = [
        replace(cost, scored=cost.images + attacked, steps=steps * attacked) if cost.name == "imagenet" else cost
        for cost in costs
    ]
    return sorted(costs, key=lambda cost: cost.scored + 2 * cost.steps)


def bench_suite(network: str, size: int, batch: int, rounds: int, choice: PrecisionChoice) -> str:
    """Measure a network's rates, and return the table of what the suite takes at these and on one H200.

    Args:
        network: name, such as ``torchvision/resnet50``, with random weights, which cost as much as trained ones.
        size: side of the images, pixels.
        batch: images at once.
        rounds: measurements of each, at least 1.
        choice: the attack's precision.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = choose_precision(choice, device.type)
    model = build_classifier(Network(network)).to(device).eval()
    images = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.arange(batch, device=device)
    attack = PGD(norm="l2", eps=3.0, step_size=0.5, steps=2)

    def verdict() -> None:
        score(model, images, labels, LOSSES["margin"])

    def steps() -> None:
        with precise(precision, device):
            attack.perturb(model, images, labels)

    operations = count_operations(verdict) / batch
    steps()  # Also the warm-up.
    figures = alternate(
        {
            "scored": lambda: batch / seconds_of(verdict, device),
            "stepped": lambda: attack.steps * batch / seconds_of(steps, device),
        },
        rounds,
        "1/s",
    )
    here = Rates(figures["scored"].value, figures["stepped"].value, DECODED)
    there = Rates(SHARE_FP32 * H200_FP32 / operations, SHARE_BF16 * H200_BF16 / (2 * operations), DECODED)
    return f"{machine(('torch', 'torchvision'))}\n\n{_table(network, size, here, there, operations)}"


def _table(network: str, size: int, here: Rates, there: Rates, operations: float) -> str:
    costs = suite_costs()
    total = Cost("all", *(sum(getattr(cost, name) for cost in costs) for name in ("images", "scored", "steps")))
    lines = [
        f"### `eval/suite.yaml` for {network} at {size} px, the cheapest set first",
        "",
        "| | images, decoded once | forward passes, fp32 | attack steps | hours here | hours on an H200, computed |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for cost in [*costs, total]:
        parts = costs if cost is total else [cost]
        hours = [sum(part.seconds(rates) for part in parts) / 3600 for rates in (here, there)]
        counts = f"{cost.images:,} | {cost.scored:,} | {cost.steps:,}"
        lines.append(f"| {cost.name} | {counts} | {hours[0]:.3g} | {hours[1]:.2g} |")
    return "\n".join(
        [
            *lines,
            "",
            f"Attacked are {', '.join(f'{100 * share:.1f}' for share in WITHSTOOD)} % of ImageNet's images at the four "
            "eps: a robust ResNet-50's, as published. A step is one forward and one backward pass.",
            f"Here: {here.scored:.3g} passes/s and {here.stepped:.3g} steps/s as measured. H200, assumed: a pass is "
            f"{operations / 1e9:.2f} Gflop, at {100 * SHARE_FP32:.0f} % of {H200_FP32 / 1e12:.0f} Tflop/s in fp32 and "
            f"{100 * SHARE_BF16:.0f} % of {H200_BF16 / 1e12:.0f} in bf16. Both: 12 processes load {DECODED:,.0f} "
            "images/s next to the work.",
        ]
    )
