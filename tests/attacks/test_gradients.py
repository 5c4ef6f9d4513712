"""Gradients against autograd's own, and attacks in fp16 against the same in fp32."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_robust.attacks import APGD, FAB, PGD, Attack
from lit_robust.attacks.gradients import slope
from lit_robust.core.errors import UserError


@pytest.mark.parametrize("sharpness", [1.0, 30.0])
def test_in_fp32_it_is_autograd_s_own(network: nn.Module, images: Tensor, labels: Tensor, sharpness: float) -> None:
    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(sharpness * logits, labels, reduction="none")

    found = slope(network, loss, images)
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
    assert 0.3 < sure.float().mean() < 0.9, "cross-entropy has to have little slope at many images"
    wide = attack(network, images, labels, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.float16):
        narrow = attack(network, images, labels, generator=torch.Generator().manual_seed(0))
    assert 0.1 < wide.success.float().mean() < 0.9
    moved = (narrow.images - images).abs().amax((1, 2, 3)) > 0
    # FAB gives back the clean image where it finds nothing within eps.
    assert torch.equal(moved, narrow.success) if isinstance(attack, FAB) else bool(moved.all())
    # 3 images of 200 at the edge may go either way: half precision turns a gradient by about a degree.
    assert abs(int(wide.success.sum()) - int(narrow.success.sum())) <= 3


def test_what_overflows_fp16_is_no_slope_and_spoils_no_other_image() -> None:
    weights = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1)) + 0.5
    images = torch.full((3, 3, 4, 4), 0.5)
    steep = torch.tensor([1.0, 1e3, 1.0]).view(-1, 1, 1, 1)

    def model(images: Tensor) -> Tensor:
        # Going back, the second image's gradient passes 1e6 in half precision: 1024 times 1e3.
        halves = ((images - 0.5) * weights).half() * steep.half()
        return halves.sum((1, 2, 3))[:, None]

    with torch.autocast("cpu", torch.float16):
        found = slope(model, lambda logits: logits[:, 0], images).gradient
    assert not found[1].any()
    # Half precision has 11 bits.
    torch.testing.assert_close(found[::2], weights.expand(2, 3, 4, 4), rtol=1e-3, atol=0)


def test_an_undefined_gradient_in_fp32_is_not_hidden() -> None:
    images = torch.zeros(1, 3, 4, 4)
    found = slope(lambda images: images.sqrt().sum((1, 2, 3))[:, None] * 0, lambda logits: logits[:, 0], images)
    assert bool(found.gradient.isnan().all())


def test_logits_that_do_not_depend_on_the_images_are_refused() -> None:
    weight = torch.ones(1, requires_grad=True)
    for model in (lambda images: images.detach().mean((2, 3)), lambda images: weight.expand(len(images), 1)):
        with pytest.raises(UserError, match="no gradient to the images"):
            slope(model, lambda logits: logits[:, 0], torch.zeros(2, 3, 4, 4))
