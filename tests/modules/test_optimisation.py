import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, StepLR

from lit_robust.modules.optimisation import Optimisation, build_optimizer, rate_factor

STEPS, EPOCHS = 10, 12  # An epoch has 10 steps.


def rates(make_scheduler, rate=0.4):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate, momentum=0.9)
    scheduler = make_scheduler(optimizer)
    seen = []
    for _ in range(STEPS * EPOCHS):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def ours(settings):
    return rates(lambda opt: LambdaLR(opt, lambda step: rate_factor(settings, step / STEPS, EPOCHS)))


def test_step_is_torchs():
    peer = rates(lambda opt: StepLR(opt, step_size=5 * STEPS, gamma=0.1))
    assert ours(Optimisation(schedule="step", step_epochs=5)) == pytest.approx(peer)


def test_cosine_is_torchs():
    peer = rates(lambda opt: CosineAnnealingLR(opt, T_max=EPOCHS * STEPS))
    assert ours(Optimisation(schedule="cosine")) == pytest.approx(peer)


def test_one_cycle_is_torchs_but_for_its_ends():
    peer = rates(
        lambda opt: OneCycleLR(
            opt, max_lr=0.4, total_steps=EPOCHS * STEPS + 1, pct_start=0.3, anneal_strategy="linear",
            cycle_momentum=False,
        )
    )  # fmt: skip
    rising = slice(0, 35)
    # torch places its peak at 0.3 * total - 1, one step before ours.
    assert ours(Optimisation(schedule="one_cycle"))[rising] == pytest.approx(peer[rising], rel=0.04)
    seen = ours(Optimisation(schedule="one_cycle"))
    assert max(seen) == pytest.approx(0.4)
    assert seen[-1] < 0.001


def test_warmup_rises_linearly():
    seen = ours(Optimisation(schedule="constant", warmup_epochs=2))
    assert seen[:20] == pytest.approx([0.4 * step / 20 for step in range(20)])
    assert seen[20:] == pytest.approx([0.4] * 100)


def test_only_matrices_decay_without_norm_decay():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    groups = build_optimizer(Optimisation(weight_decay=0.1, norm_decay=False), network.parameters()).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.1), (3, 0.0)]
    groups = build_optimizer(Optimisation(weight_decay=0.1), network.parameters()).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(4, 0.1)]
