from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchattacks
from torch import Tensor, nn
from torch.nn import functional as F

from lit_robust.attacks import APGD, FAB, PGD, Attack, Square
from lit_robust.attacks.ascent import Ball, ascent_step, best_iterate, last_iterate, loss_gradient
from lit_robust.attacks.norms import L1, L2, Linf, Norm
from lit_robust.core.errors import UserError

WEIGHTS = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))


def linear(images: Tensor) -> Tensor:
    """One logit."""
    return (images * WEIGHTS).sum((1, 2, 3))[:, None]


def itself(logits: Tensor) -> Tensor:
    return logits[:, 0]


def test_one_l2_step_up_a_linear_loss_moves_by_step_along_the_gradient() -> None:
    clean = torch.full((5, 3, 4, 4), 0.5)
    moved, here = ascent_step(linear, itself, clean, Ball(clean, L2(), 1.0), 0.3)
    # 0.3 over 48 values never leaves [0, 1] here; fp32 gives 7 digits of numbers near 0.5.
    torch.testing.assert_close(moved - clean, (0.3 * WEIGHTS / WEIGHTS.norm()).expand_as(clean), rtol=0, atol=1e-7)
    torch.testing.assert_close(here.losses, itself(linear(clean)))


def test_long_search_up_a_linear_loss_ends_at_the_ball_s_highest_point() -> None:
    clean = torch.full((2, 3, 4, 4), 0.5)
    found = last_iterate(linear, itself, clean, Ball(clean, L2(), 0.4), 0.15, 10).images
    # Highest point of a linear function on a ball: its centre plus the radius along the gradient.
    torch.testing.assert_close(found - clean, (0.4 * WEIGHTS / WEIGHTS.norm()).expand_as(clean), rtol=0, atol=2e-7)
    found = last_iterate(linear, itself, clean, Ball(clean, Linf(), 0.1), 0.03, 10).images
    torch.testing.assert_close(found - clean, (0.1 * WEIGHTS.sign()).expand_as(clean), rtol=0, atol=1e-7)


def test_ball_projects_first_and_clamps_second() -> None:
    clean = torch.tensor([0.9, 0.5]).view(1, 1, 1, 2)
    entered = Ball(clean, L2(), 1.0).enter(clean + torch.tensor([3.0, 4.0]).view(1, 1, 1, 2))
    # Offset (3, 4) shrinks to (0.6, 0.8); the sum (1.5, 1.3) is clamped. Clamping first would give (0.9 + 0.1, 1.0).
    assert entered.flatten().tolist() == [1.0, 1.0]
    entered = Ball(clean, L2(), 0.5).enter(clean + torch.tensor([-3.0, 4.0]).view(1, 1, 1, 2))
    torch.testing.assert_close(entered.flatten(), torch.tensor([0.9 - 0.3, 0.5 + 0.4]))


def test_best_iterate_finds_the_highest_point_on_the_way() -> None:
    # A hill at 0.55 that steps of 0.1 from 0.5 jump over: to 0.6, back to 0.5, and so on.
    def hill(images: Tensor) -> Tensor:
        return -(images - 0.52).square().sum((1, 2, 3))[:, None]

    clean = torch.full((3, 1, 1, 1), 0.5)
    ball = Ball(clean, Linf(), 1.0)
    assert last_iterate(hill, itself, clean, ball, 0.1, 1).images.flatten().tolist() == pytest.approx([0.6] * 3)
    assert torch.equal(best_iterate(hill, itself, clean, ball, 0.1, 1).images, clean)
    assert torch.equal(best_iterate(hill, itself, clean, ball, 0.1, 0).images, clean)


def test_best_iterate_is_chosen_image_by_image(
    bumpy: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor
) -> None:
    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")

    ball = Ball(images, L2(), 3.0)
    path = [images]
    for _ in range(6):
        path.append(ascent_step(bumpy, loss, path[-1], ball, 2.5)[0])
    losses = torch.stack([loss(bumpy(point)).detach() for point in path])
    best = best_iterate(bumpy, loss, images, ball, 2.5, 6).images
    assert torch.equal(best, torch.stack(path)[losses.argmax(0), torch.arange(8)])
    assert len(set(losses.argmax(0).tolist())) > 1, "steps this long should overshoot for some images"


def test_a_loss_cut_off_from_the_images_is_refused() -> None:
    clean = torch.full((1, 3, 4, 4), 0.5)
    with pytest.raises(UserError, match="no gradient to the images"):
        ascent_step(lambda images: linear(images.detach()), itself, clean, Ball(clean, L2(), 1.0), 0.1)


@pytest.mark.parametrize(("norm", "eps"), [(L1(), 0.5), (L2(), 0.02), (Linf(), 1 / 255)])
def test_rounding_carries_no_image_out_of_its_ball(norm: Norm, eps: float) -> None:
    # Images of one colour, 64 shades: every pixel of one rounds alike.
    clean = (0.5 + torch.arange(64) / 255 / 2).view(-1, 1, 1, 1).expand(-1, 3, 48, 48).contiguous()
    ball = Ball(clean, norm, eps)
    images = ball.enter(clean + 1)
    tight = ball.tighten(images)
    length = norm.length(tight.double() - clean.double()).flatten()
    assert (length <= eps * (1 + 1e-6) + 6e-8).all()
    before = norm.length(images.double() - clean.double()).flatten()
    inside = before <= eps * (1 + 9e-7) + 6e-8
    assert torch.equal(tight[inside], images[inside])
    if not isinstance(norm, Linf):
        assert before.max() > eps * (1 + 1.5e-6), "rounding has to carry some image out"
        # What is drawn in stays near the wall: a pixel moves by one step of its grid.
        assert (length > eps * (1 - 2e-3)).all()


@pytest.mark.parametrize(
    "attack",
    [
        PGD(eps=0.02, steps=3),
        PGD(eps=0.02, steps=3, keep="first"),
        PGD(eps=0.02, steps=3, start="sphere", keep="best"),
        APGD("l2", 0.02, 4),
        Square("l2", 0.02, 4),
    ],
    ids=lambda attack: f"{type(attack).__name__}-{getattr(attack, 'keep', '')}",
)
def test_no_attack_returns_an_image_beyond_eps(attack: Attack) -> None:
    clean = (0.5 + torch.arange(32) / 255).view(-1, 1, 1, 1).expand(-1, 3, 48, 48).contiguous()

    def brightness(images: Tensor) -> Tensor:
        height = images.mean((1, 2, 3))
        return torch.stack([height, 0.7 - height, 0 * height], 1)

    labels = brightness(clean).argmax(1)
    result = attack(brightness, clean, labels, generator=torch.Generator().manual_seed(0))
    length = (result.images.double() - clean.double()).flatten(1).norm(dim=1)
    assert length.max() <= 0.02 * (1 + 1e-6) + 6e-8
    assert length.max() > 0.0199


@pytest.mark.parametrize("sharpness", [1.0, 30.0])
def test_in_fp32_it_is_autograd_s_own(network: nn.Module, images: Tensor, labels: Tensor, sharpness: float) -> None:
    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(sharpness * logits, labels, reduction="none")

    found = loss_gradient(network, loss, images)
    leaf = images.clone().requires_grad_(True)
    logits = network(leaf)
    (expected,) = torch.autograd.grad(loss(logits).sum(), leaf)
    assert torch.equal(found.logits, logits)
    assert torch.equal(found.losses, loss(logits))
    # Factors that are powers of two round nothing, unless what they rescue has fallen below 1e-38.
    torch.testing.assert_close(found.gradient, expected, rtol=0, atol=1e-37)


@pytest.mark.parametrize(
    "attack",
    [
        PGD("l2", 0.5, 0.25, 3),
        PGD("l2", 0.5, 0.25, 3, keep="first"),
        PGD("linf", 0.02, 0.005, 7),
        PGD("l2", 0.5, 0.25, 3, start="ball", loss="kl"),
        APGD("l2", 0.4, 10, loss="dlr"),
        FAB("linf", 0.02, 10, 3),
    ],
    ids=lambda attack: f"{type(attack).__name__}-{attack.norm}-{getattr(attack, 'keep', '')}",
)
def test_in_fp16_every_image_moves_and_as_many_break(trained: tuple[nn.Module, Tensor, Tensor], attack: Attack) -> None:
    network, images, labels = trained
    with torch.no_grad():
        sure = network(images).softmax(1).amax(1) > 0.9999
    assert 0.3 < sure.float().mean() < 0.9, "cross-entropy has to have a small gradient at many images"
    wide = attack(network, images, labels, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.float16):
        narrow = attack(network, images, labels, generator=torch.Generator().manual_seed(0))
    assert 0.1 < wide.success.float().mean() < 0.9
    moved = (narrow.images - images).abs().amax((1, 2, 3)) > 0
    # FAB gives back the clean image where it finds nothing within eps.
    assert torch.equal(moved, narrow.success) if isinstance(attack, FAB) else bool(moved.all())
    # 3 images of 200 at the edge may go either way: half precision turns a gradient by about a degree.
    assert abs(int(wide.success.sum()) - int(narrow.success.sum())) <= 3


def test_what_overflows_fp16_is_a_gradient_of_zero_and_spoils_no_other_image() -> None:
    weights = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1)) + 0.5
    images = torch.full((3, 3, 4, 4), 0.5)
    steep = torch.tensor([1.0, 1e3, 1.0]).view(-1, 1, 1, 1)

    def model(images: Tensor) -> Tensor:
        # Going back, the second image's gradient passes 1e6 in half precision: 1024 times 1e3.
        halves = ((images - 0.5) * weights).half() * steep.half()
        return halves.sum((1, 2, 3))[:, None]

    with torch.autocast("cpu", torch.float16):
        found = loss_gradient(model, lambda logits: logits[:, 0], images).gradient
    assert not found[1].any()
    # Half precision has 11 bits.
    torch.testing.assert_close(found[::2], weights.expand(2, 3, 4, 4), rtol=1e-3, atol=0)


def test_an_undefined_gradient_is_one_of_zero_that_is_counted_and_spoils_no_other_image() -> None:
    def model(images: Tensor) -> Tensor:
        # The root's derivative at 0 is infinite, and undefined where it is multiplied by 0.
        return images[:, :, :2].sqrt().sum((1, 2, 3))[:, None] + 0 * images[:, :, 2:].sqrt().sum((1, 2, 3))[:, None]

    images = torch.full((3, 3, 4, 4), 0.25)
    images[0, 0, 0, 0], images[1, 0, 3, 3] = 0, 0
    found = loss_gradient(model, lambda logits: logits[:, 0], images)
    assert found.vanished.tolist() == [True, True, False]
    assert not found.gradient[:2].any()
    assert torch.equal(found.gradient[2, :, :2], torch.ones(3, 2, 4))


def test_logits_that_do_not_depend_on_the_images_are_refused() -> None:
    weight = torch.ones(1, requires_grad=True)
    for model in (lambda images: images.detach().mean((2, 3)), lambda images: weight.expand(len(images), 1)):
        with pytest.raises(UserError, match="no gradient to the images"):
            loss_gradient(model, lambda logits: logits[:, 0], torch.zeros(2, 3, 4, 4))


SETTINGS: dict[str, Any] = {"eps": 0.4, "step_size": 0.05, "steps": 8}


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in range(count)]


@pytest.fixture
def answers(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = network(images).argmax(1)
    return found


@pytest.mark.parametrize("start", ["none", "sphere"])
def test_first_is_the_first_broken_iterate_of_the_whole_search(
    network: nn.Module, images: Tensor, answers: Tensor, start: str
) -> None:
    first = PGD(keep="first", start=start, **SETTINGS)(network, images, answers, generator=generators(8))  # type: ignore[arg-type]
    # Brute force: the iterate after n steps is where a search of n steps ends.
    ends = []
    for steps in range(SETTINGS["steps"] + 1):
        attack = PGD(start=start, **SETTINGS)  # type: ignore[arg-type]
        object.__setattr__(attack, "steps", steps)  # Nobody may ask for no step; the iterate before the first has none.
        ends.append(attack(network, images, answers, generator=generators(8)))
    broken = torch.stack([end.success for end in ends])
    assert 0 < broken[-1].sum() < 8, "some images have to break and some to withstand"
    when = torch.where(broken.any(0), broken.int().argmax(0), SETTINGS["steps"])
    assert torch.equal(first.success, broken.any(0))
    expected = torch.stack([end.images for end in ends])[when, torch.arange(8)]
    # Batches that shrink round otherwise, and eight steps carry that on.
    torch.testing.assert_close(first.images, expected, rtol=0, atol=1e-5)
    # The gradient at the broken iterate was computed by the pass that gave its answer.
    assert first.steps.tolist() == torch.where(broken.any(0), (when + 1).clamp_max(8), 8).tolist()


def test_work_shrinks_as_images_break(network: nn.Module, images: Tensor, answers: Tensor) -> None:
    sizes: list[tuple[bool, int]] = []
    network.register_forward_hook(lambda _, inputs, __: sizes.append((torch.is_grad_enabled(), len(inputs[0]))))
    result = PGD(keep="first", **SETTINGS)(network, images, answers)
    assert sum(size for graded, size in sizes if graded) == int(result.steps.sum())
    assert min(size for graded, size in sizes if graded) < 8


def test_a_mistake_at_the_start_ends_the_search_there(network: nn.Module, images: Tensor, answers: Tensor) -> None:
    wrong = (answers + 1) % 10
    result = PGD(keep="first", **SETTINGS)(network, images, wrong)
    assert torch.equal(result.images, images)
    assert result.success.all()
    assert result.steps.tolist() == [1] * 8


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "dlr"])
def test_targeted_search_ends_at_the_target_and_not_at_any_mistake(
    network: nn.Module, images: Tensor, answers: Tensor, loss: Any
) -> None:
    targets = (answers + 3) % 10
    attack = PGD(eps=3.0, step_size=0.3, steps=20, keep="first", loss=loss)
    found = attack.towards(network, images, answers, targets)
    with torch.no_grad():
        says = network(found.images).argmax(1)
    assert (says == targets).sum() >= 6, "a radius of 3 is far more than most of these images need"
    assert torch.equal(found.success, says != answers)


def test_least_likely_is_the_lowest_logit_of_another_class(network: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        logits = network(images)
    lowest, second = logits.sort(1).indices[:, :2].unbind(1)
    labels = torch.where(torch.arange(8) < 4, lowest, logits.argmax(1))
    targets = torch.where(torch.arange(8) < 4, second, lowest)
    attack = PGD(target="least_likely", eps=1.0, step_size=0.25, steps=4)
    expected = attack.towards(network, images, labels, targets)
    assert torch.equal(attack(network, images, labels).images, expected.images)


def test_towards_a_target_is_torchattacks_least_likely_pgd(network: nn.Module, images: Tensor, answers: Tensor) -> None:
    peer = torchattacks.PGDL2(network, eps=0.8, alpha=0.2, steps=6, random_start=False)
    peer.set_mode_targeted_least_likely(quiet=True)
    ours = PGD(target="least_likely", eps=0.8, step_size=0.2, steps=6).perturb(network, images, answers)
    # The tolerance of the other comparisons with peers: 1/40 of a grey level.
    torch.testing.assert_close(ours, peer(images, answers), rtol=0, atol=1e-4)


def test_one_step_is_torchattacks_fgsm(network: nn.Module, images: Tensor, answers: Tensor) -> None:
    ours = PGD(norm="linf", eps=0.03, step_size=0.03, steps=1).perturb(network, images, answers)
    torch.testing.assert_close(ours, torchattacks.FGSM(network, eps=0.03)(images, answers), rtol=0, atol=1e-6)


def test_a_false_alarm_in_half_precision_is_no_success(
    make_network: Callable[[], nn.Module], images: Tensor, answers: Tensor
) -> None:
    network = make_network().eval()

    class Liar(nn.Module):
        """Says something else in passes with gradients, as a coarse precision may."""

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = network(images)
            return logits.roll(1, 1) if torch.is_grad_enabled() else logits

    result = PGD(keep="first", eps=0.01, step_size=1e-3, steps=3)(Liar(), images, answers)
    assert not result.success.any()
    assert result.steps.tolist() == [3] * 8
