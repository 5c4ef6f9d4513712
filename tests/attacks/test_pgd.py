import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torch.nn import functional as F

from lit_robust.attacks import PGD, Attack, CachePaperAttack
from lit_robust.core.errors import UserError

LINF = PGD(norm="linf", eps=8 / 255, step_size=2 / 255, steps=5)
L2 = PGD(eps=1.0, step_size=0.3, steps=5)


def generators(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + index) for index in range(count)]


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize(
    ("norm", "eps", "start"),
    [("l2", 1.0, "none"), ("l2", 1.0, "sphere"), ("l2", 1.0, "ball"), ("linf", 0.05, "ball"), ("l1", 6.0, "ball")],
)
def test_result_is_what_its_fields_say(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    norm: Literal["l1", "l2", "linf"],
    eps: float,
    start: Literal["none", "sphere", "ball"],
    keep: Literal["last", "best"],
) -> None:
    attack = PGD(norm=norm, eps=eps, step_size=eps / 4, steps=5, start=start, keep=keep)
    result = attack(network, images, labels, generator=generators(8))
    assert result.images.dtype == torch.float32
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    offset = (result.images - images).flatten(1).double()
    length = offset.norm(dim=1, p={"l1": 1, "l2": 2, "linf": float("inf")}[norm])
    # Adding the offset to a pixel near 1 rounds to 6e-8.
    assert length.max() <= eps * (1 + 1e-6) + 6e-8
    with torch.no_grad():
        logits = network(result.images)
    assert torch.equal(result.success, logits.argmax(1) != labels)
    assert torch.equal(result.loss, F.cross_entropy(logits, labels, reduction="none"))
    assert result.steps.tolist() == [5] * 8
    assert result.steps.dtype == torch.int64
    assert torch.equal(attack.perturb(network, images, labels, generator=generators(8)), result.images)
    with torch.no_grad():
        assert (result.loss > F.cross_entropy(network(images), labels, reduction="none")).all()


def test_perturb_runs_the_network_once_a_step_and_a_call_once_more(
    network: nn.Module, images: Tensor, labels: Tensor
) -> None:
    calls: list[bool] = []
    network.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    L2.perturb(network, images, labels)
    assert calls == [True] * 5
    calls.clear()
    L2(network, images, labels)
    assert calls == [True] * 5 + [False]


@pytest.mark.parametrize("attack", [L2, PGD(eps=1.0, step_size=0.3, steps=5, start="ball", keep="best", restarts=2)])
def test_an_image_s_result_does_not_depend_on_its_batch(
    network: nn.Module, images: Tensor, labels: Tensor, attack: PGD
) -> None:
    together = attack(network, images[:6], labels[:6], generator=generators(6))
    for index, source in enumerate(generators(6)):
        here = slice(index, index + 1)
        alone = attack(network, images[here], labels[here], generator=[source])
        # Another batch size picks other convolution kernels, whose sums round differently: 1e-5 after five steps.
        torch.testing.assert_close(alone.images, together.images[here], rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.loss, together.loss[here], rtol=1e-4, atol=1e-5)
        assert torch.equal(alone.success, together.success[here])


def test_a_faint_gradient_takes_a_whole_step_whatever_the_batch() -> None:
    # Gradients near 1e-10, where the 1e-10 that is added to the norm would halve the step.
    def faint(images: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(images)), 2e-10 * images[:, 0, 0, 0]], 1)

    attack = PGD(eps=0.5, step_size=0.4, steps=1)
    clean = torch.full((8, 3, 2, 2), 0.5)
    for count in (1, 8):
        moved = attack.perturb(faint, clean[:count], torch.zeros(count, dtype=torch.int64))
        assert (moved - clean[:count])[:, 0, 0, 0].tolist() == pytest.approx([0.4] * count, rel=1e-5)


def flat(images: Tensor) -> Tensor:
    """A network whose gradient is zero everywhere."""
    return images.flatten(1)[:, :10] * 0.0


@pytest.mark.parametrize("start", ["sphere", "ball"])
def test_without_a_gradient_images_stay_at_their_random_start(labels: Tensor, start: Literal["sphere", "ball"]) -> None:
    grey = torch.full((8, 3, 12, 12), 0.5)
    attack = PGD(eps=0.5, step_size=0.1, steps=1, start=start)
    length = (attack.perturb(flat, grey, labels, generator=generators(8)) - grey).flatten(1).norm(dim=1)
    if start == "sphere":
        torch.testing.assert_close(length, torch.full((8,), 0.5), rtol=1e-5, atol=0)
    else:
        assert (length < 0.5 * (1 - 1e-5)).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_random_starts_are_clamped_to_the_pixel_range(labels: Tensor, norm: Literal["l2", "linf"]) -> None:
    white = torch.ones(8, 3, 12, 12)
    start = PGD(norm=norm, eps=0.9, steps=1, start="ball").perturb(flat, white, labels, generator=generators(8))
    assert start.max() == 1
    assert 0.3 < (start == 1).float().mean() < 0.7, "half of the draws point out of the range"


def test_eps_zero_returns_the_clean_images(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    for attack in (L2, LINF, PGD(norm="l1", eps=6.0), PGD(eps=1.0, start="sphere", keep="best")):
        result = attack.with_eps(0.0)(network, images, labels, generator=generators(8))
        assert torch.equal(result.images, images)
        assert not result.success.any()


def test_restarts_keep_each_image_s_worst_case(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    settings: dict[str, Any] = {"eps": 0.4, "step_size": 0.02, "steps": 2, "start": "sphere"}
    several = PGD(restarts=4, **settings)(network, images, labels, generator=generators(8))
    sources = generators(8)
    runs = [PGD(**settings)(network, images, labels, generator=sources) for _ in range(4)]
    successes = torch.stack([run.success for run in runs])
    assert 0 < successes.any(0).sum() < 8
    assert successes.any(0).sum() > successes[0].sum(), "a restart has to matter here"
    # Brute force: the first success ends the search, and of failures alone the highest loss is returned.
    losses = torch.stack([run.loss for run in runs])
    first = successes.int().argmax(0)
    chosen = torch.where(successes.any(0), first, losses.argmax(0))
    assert len(set(chosen.tolist())) > 1
    assert torch.equal(several.success, successes.any(0))
    assert several.steps.tolist() == torch.where(successes.any(0), 2 * (first + 1), 8).tolist()
    # Other batch sizes round otherwise, and two steps carry that on.
    expected = torch.stack([run.images for run in runs])[chosen, torch.arange(8)]
    torch.testing.assert_close(several.images, expected, rtol=0, atol=1e-5)


def test_success_beats_a_higher_loss_among_restarts() -> None:
    # Three classes: near 0 the loss is high and the answer right; near 1 the answer is wrong at a lower loss.
    def two_faced(images: Tensor) -> Tensor:
        low = images.mean((1, 2, 3)) < 0.5
        right = torch.tensor([0.01, 0.0, 0.0])
        wrong = torch.tensor([0.0, 0.5, -9.0])
        return torch.where(low[:, None], right, wrong) + 0 * images.sum((1, 2, 3))[:, None]

    images = torch.full((60, 1, 1, 1), 0.5)
    labels = torch.zeros(60, dtype=torch.int64)
    attack = PGD(norm="linf", eps=0.4, step_size=0.1, steps=1, start="ball", restarts=2)
    sources = generators(60)
    single = replace(attack, restarts=1)
    singles = [single(two_faced, images, labels, generator=sources) for _ in range(2)]
    both = attack(two_faced, images, labels, generator=generators(60))
    differ = singles[0].success != singles[1].success
    assert differ.any()
    assert (torch.where(singles[0].success, singles[0].loss, singles[1].loss)[differ] < 1.09).all()
    assert torch.equal(both.success, singles[0].success | singles[1].success)


def test_best_is_never_below_last(bumpy: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> None:
    settings: dict[str, Any] = {"eps": 2.0, "step_size": 1.9, "steps": 6}
    last = PGD(keep="last", **settings)(bumpy, images, labels)
    best = PGD(keep="best", **settings)(bumpy, images, labels)
    assert (best.loss >= last.loss - 1e-6).all()
    assert (best.loss > last.loss).any()


@pytest.mark.parametrize("attack", [L2, PGD(eps=1.0, step_size=0.3, steps=5, start="ball", keep="best", restarts=2)])
def test_inference_mode_and_no_grad_change_nothing(
    make_network: Callable[[], nn.Module], images: Tensor, labels: Tensor, attack: PGD
) -> None:
    network = make_network()
    expected = attack(network, images, labels, generator=generators(8))
    with torch.no_grad():
        assert torch.equal(attack(network, images, labels, generator=generators(8)).images, expected.images)
    with torch.inference_mode():
        # Lightning's test loop hands out tensors made in inference mode.
        result = attack(network, images.clone(), labels.clone(), generator=generators(8))
        assert torch.is_inference_mode_enabled()
    for name in ("images", "success", "loss", "steps"):
        assert torch.equal(getattr(result, name), getattr(expected, name))
        assert not getattr(result, name).is_inference(), "results can be trained on"


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_bf16_autocast_reaches_the_network_and_nothing_else(
    make_network: Callable[[], nn.Module], images: Tensor, labels: Tensor, mode: Callable[[], Any]
) -> None:
    network = make_network().eval()
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    network.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    with mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        # A pass before the attack fills autocast's cache with weights the attack must not differentiate through.
        network(images.clone())
        seen.clear()
        result = L2(network, images.clone(), labels.clone())
    assert seen == [(torch.float32, torch.bfloat16)] * 5 + [(torch.float32, torch.float32)]
    offset = (result.images - images).flatten(1).double().norm(dim=1)
    # bf16 keeps 3 digits: a projection in it would miss the radius by up to 4e-3.
    assert offset.max() <= 1 + 1e-6
    with torch.no_grad():
        logits = network(result.images)
    assert torch.equal(result.loss, F.cross_entropy(logits, labels, reduction="none"))
    full = L2(network, images, labels)
    assert (result.loss - full.loss).abs().max() < 0.1 * full.loss.abs().max(), "about as strong as in fp32"


def test_training_in_the_same_autocast_still_reaches_every_weight(
    make_network: Callable[[], nn.Module], images: Tensor, labels: Tensor
) -> None:
    network = make_network()
    attack = PGD(eps=1.0, step_size=0.5, steps=2, start="sphere", keep="best", restarts=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attacked = attack.perturb(network, images, labels, generator=torch.Generator().manual_seed(0))
        F.cross_entropy(network(attacked), labels).backward()
    assert not attacked.requires_grad
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_channels_last_gives_the_same_images(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    expected = PGD(start="ball").perturb(network, images, labels, generator=generators(8))
    network = network.to(memory_format=torch.channels_last)
    last = images.to(memory_format=torch.channels_last)
    attacked = PGD(start="ball").perturb(network, last, labels, generator=generators(8))
    # Other kernels, other rounding.
    torch.testing.assert_close(attacked, expected, rtol=0, atol=1e-5)
    assert attacked.is_contiguous(memory_format=torch.channels_last)


def test_an_empty_batch_is_attacked_too(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    result = PGD(start="ball", restarts=2, keep="best")(network, images[:0], labels[:0], generator=[])
    assert result.images.shape == (0, 3, 12, 12)
    assert result.success.shape == (0,)


def test_with_eps_scales_the_step_and_keeps_the_rest() -> None:
    attack = PGD(eps=2.0, step_size=0.5, steps=9, start="ball", keep="best", restarts=3, loss="margin")
    other = attack.with_eps(0.5)
    assert (other.eps, other.step_size) == (0.5, 0.125)
    assert {**other.protocol(), "eps": 2.0, "step_size": 0.5} == attack.protocol()
    with pytest.raises(UserError, match="at eps 0"):
        attack.with_eps(0.0).with_eps(1.0)


def test_a_step_beyond_black_to_white_is_told_by_the_eps_of_the_sweep() -> None:
    attack = PGD(norm="linf", eps=0.01, step_size=0.02)
    assert attack.with_eps(0.5).step_size == 1.0
    with pytest.raises(UserError, match=r"step_size 0\.02 at eps 0\.01 is 1\.2 in proportion at eps 0\.6,.*smaller"):
        attack.with_eps(0.6)
    with pytest.raises(UserError, match="eps is 4 in linf"):
        attack.with_eps(4)


@pytest.mark.parametrize(("steps", "share"), [(1, 1.25), (5, 0.5), (20, 0.125)])
def test_a_step_size_that_is_not_given_follows_eps_and_steps(steps: int, share: float) -> None:
    for norm, eps in (("l1", 12.0), ("l2", 3.0), ("linf", 8 / 255)):
        attack = PGD(norm, eps, steps=steps)  # type: ignore[arg-type]
        assert attack.protocol()["step_size"] == attack.step == pytest.approx(share * eps)
        # Another eps and other steps have another one, whatever led to them.
        assert attack.with_eps(eps / 2).step == pytest.approx(share * eps / 2)
        assert attack.with_eps(0.0).with_eps(eps).step == attack.step
        assert replace(attack, steps=10).step == pytest.approx(0.25 * eps)


def test_a_step_size_that_is_not_given_raises_the_loss_as_far_as_a_given_one(
    network: nn.Module, images: Tensor, labels: Tensor
) -> None:
    short = {"norm": "linf", "eps": 8 / 255, "steps": 5}
    own = PGD(**short)(network, images, labels)  # type: ignore[arg-type]
    given = PGD(step_size=4 / 255, **short)(network, images, labels)  # type: ignore[arg-type]
    assert torch.equal(own.images, given.images)


@pytest.mark.parametrize(
    ("norm", "eps", "step"), [("l1", 12.0, 24.01), ("l2", 0.1, 0.5), ("linf", 8 / 255, 0.5), ("linf", 0.01, 0.0201)]
)
def test_a_step_that_crosses_the_whole_ball_is_refused(norm: Any, eps: float, step: float) -> None:
    with pytest.raises(UserError, match=rf"step_size is {step:g} at {norm} eps {eps:g}: a step above 2 eps = "):
        PGD(norm, eps, step)
    with pytest.raises(UserError, match="above 2 eps"):
        replace(PGD(norm, step, step), eps=eps)
    assert PGD(norm, eps, 2 * eps).step == 2 * eps
    assert PGD(norm, 0.0, 0.5).step == 0.5, "at eps 0 no step leads anywhere"
    with pytest.raises(UserError, match="step_size is 0: no image would move"):
        PGD(norm, eps, 0.0)
    with pytest.raises(
        UserError, match="CachePaperAttack step_size is 0.00784314 at linf eps 0.003: a step above 2 eps"
    ):
        CachePaperAttack(eps=0.003)


def test_protocol_is_plain_and_tells_all_settings_apart() -> None:
    protocol = PGD().protocol()
    assert json.loads(json.dumps(protocol)) == protocol
    others = [
        PGD(norm="linf", eps=0.5),
        PGD(eps=2.9),
        PGD(step_size=0.4),
        PGD(steps=8),
        PGD(start="ball"),
        PGD(loss="margin"),
        PGD(keep="best"),
        PGD(start="ball", restarts=2),
        PGD(target="least_likely"),
    ]
    described = [json.dumps(attack.protocol()) for attack in [PGD(), *others]]
    assert len(set(described)) == len(described)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"norm": "linf", "eps": 8}, "did you mean 8/255 = 0.03137"),
        ({"norm": "linf", "eps": 0.03, "step_size": 2}, "step_size is 2 in linf"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"eps": float("inf")}, "eps is inf"),
        ({"step_size": -0.5}, "step_size is -0.5"),
        ({"eps": "8"}, "eps is '8': give a number"),
        ({"steps": -1}, "steps is -1"),
        ({"restarts": 0}, "restarts is 0"),
        ({"restarts": 2}, "start to ball"),
        ({"norm": "l3"}, "choose one of l1, l2, linf"),
        ({"start": "random"}, "hoose one of none, sphere, ball"),
        ({"loss": "mse"}, "hoose one of cross_entropy, margin, dlr, kl"),
        ({"keep": "worst"}, "hoose one of last, best, first"),
        ({"target": "likely"}, "hoose one of none, random, least_likely"),
        ({"loss": "kl"}, "set start to ball and target to none"),
        ({"norm": "linf", "eps": 0.03, "start": "sphere"}, "sphere is for norm l2"),
        ({"norm": "l1", "start": "sphere"}, "in l1 use ball"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        PGD(**settings)


def test_a_wrong_call_is_refused_before_the_network_runs(images: Tensor, labels: Tensor) -> None:
    def untouched(images: Tensor) -> Tensor:
        raise AssertionError("the network ran")

    with pytest.raises(UserError, match="start ball needs random numbers"):
        PGD(start="ball")(untouched, images, labels)
    # 3 * 12 * 12 = 432 values, and its root is 20.78.
    with pytest.raises(UserError, match=r"L2 eps 765 is beyond 5.2,.* 765/255 = 3\."):
        PGD(eps=765.0)(untouched, images, labels)
    for call in (L2, L2.perturb):
        with pytest.raises(UserError, match=r"attacks take \[0, 1\]"):
            call(untouched, images * 2, labels)
        with pytest.raises(UserError, match=r"Images are torch\.uint8"):
            call(untouched, images.to(torch.uint8), labels)


def test_logits_that_are_not_numbers_are_no_verdict(images: Tensor, labels: Tensor) -> None:
    with pytest.raises(UserError, match="not a number for 8 of 8"):
        L2(lambda images: images.flatten(1)[:, :10] * float("nan"), images, labels)


def test_global_random_state_is_never_drawn_from(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    before = torch.get_rng_state()
    PGD(start="ball", restarts=2)(network, images, labels, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


class Scheme:
    def __init__(self, attack: PGD = PGD(), others: list[Attack] | None = None) -> None:
        self.attack, self.others = attack, others


def test_a_config_names_attacks_flat_or_by_class_path() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Scheme, "scheme")
    other = {"class_path": "lit_robust.attacks.PGD", "init_args": {"norm": "linf", "eps": 0.1, "step_size": 0.02}}
    parsed = parser.parse_object({"scheme": {"attack": {"eps": 1.0, "steps": 3}, "others": [other]}})
    scheme = parser.instantiate(parsed).scheme
    assert scheme.attack == PGD(eps=1.0, steps=3)
    assert scheme.others == [PGD(norm="linf", eps=0.1, step_size=0.02)]


def test_kl_has_no_target(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    attack = PGD(start="ball", loss="kl")
    with pytest.raises(UserError, match="to no target"):
        attack.towards(network, images, labels, (labels + 1) % 10, generator=generators(8))
