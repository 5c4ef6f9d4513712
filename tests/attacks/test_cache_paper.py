"""The cache paper's attack against a second implementation: a plain loop over single images, in float64."""

import pytest
import torch
from torch import Tensor, nn

from lit_robust.attacks import CachePaperAttack
from lit_robust.attacks.norms import draw_uniform
from lit_robust.core.errors import UserError


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in range(count)]


def one_by_one(network: nn.Module, images: Tensor, labels: Tensor, attack: CachePaperAttack) -> Tensor:
    """Foolbox 1.8's loop with early return, as its released code reads, for the targets and starts of our draws."""
    network = network.double()
    found = []
    for image, label, source in zip(images, labels.tolist(), generators(len(images)), strict=True):
        target = int(draw_uniform((1,), [source], image.device) * 9)
        target += target >= label
        eps = attack.eps * (float(image.max()) if attack.eps_unit == "image_maximum" else 1.0)
        start = (2 * draw_uniform((1, *image.shape), [source], image.device)[0] - 1) * eps
        x, result = image.double() + start, image
        for _ in range(attack.steps):
            x = x.detach().requires_grad_(True)
            loss = nn.functional.cross_entropy(network(x[None]), torch.tensor([target]))
            (gradient,) = torch.autograd.grad(loss, x)
            x = x.detach() - attack.step_size * gradient.sign()
            x = (image + (x - image).clamp(-eps, eps)).clamp(0, 1)
            if int(network(x[None]).argmax()) == target:
                result = x.float()
                break
        found.append(result)
    return torch.stack(found)


@pytest.mark.parametrize("eps_unit", ["range", "image_maximum"])
def test_same_images_as_the_loop(network: nn.Module, images: Tensor, eps_unit: str) -> None:
    images = 0.7 * images
    attack = CachePaperAttack(eps=0.1, eps_unit=eps_unit)  # type: ignore[arg-type]
    with torch.no_grad():
        labels = network(images).argmax(1)
    result = attack(network, images, labels, generator=generators(8))
    expected = one_by_one(network, images, labels, attack)
    moved = (result.images - images).abs().amax((1, 2, 3)) > 0
    assert 0 < moved.sum() < 8, "some have to reach their target, and some have to be given back clean"
    assert torch.equal(moved, result.success)
    # A gradient near 0 may have another sign in float64: a pixel in a thousand is allowed to differ.
    assert ((result.images - expected).abs() > 1e-5).float().mean() < 1e-3


def test_given_back_clean_where_it_fails(network: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        labels = network(images).argmax(1)
    result = CachePaperAttack(eps=1e-4, step_size=1e-4)(network, images, labels, generator=generators(8))
    assert torch.equal(result.images, images)
    assert not result.success.any()
    assert result.steps.tolist() == [10] * 8


def test_step_stays_in_a_sweep_and_needs_random_numbers(network: nn.Module, images: Tensor) -> None:
    assert CachePaperAttack(eps=0.06).with_eps(0.1) == CachePaperAttack(eps=0.1)
    with pytest.raises(UserError, match="draws targets and starts"):
        CachePaperAttack()(network, images, torch.zeros(8, dtype=torch.int64))
    with pytest.raises(UserError, match="did you mean 8/255"):
        CachePaperAttack(eps=8)
    assert CachePaperAttack()(network, images[:0], torch.zeros(0, dtype=torch.int64), generator=[]).success.shape == (
        0,
    )
