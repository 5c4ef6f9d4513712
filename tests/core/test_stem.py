"""The gradient of a first convolution, against torch's own in float64; and whose is taken so."""

import pytest
import torch
from torch import nn

from lit_robust.attacks.attack import frozen
from lit_robust.core.stem import image_gradient, quick_stems


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [
        ((7, 7), 2, 3, (32, 30)),
        ((3, 3), 2, 0, (33, 24)),  # The last row and column may meet no weight.
        ((3, 3), 1, 1, (9, 12)),
        ((11, 11), 4, 2, (43, 50)),
        ((4, 4), 4, 0, (17, 16)),
        ((1, 1), 2, 0, (8, 9)),
        ((3, 5), 2, 1, (16, 17)),
        ((2, 2), 3, 0, (13, 14)),  # Between two places lie pixels that none sees.
        ((3, 3), 2, 4, (10, 10)),
    ],
)
def test_it_is_what_torch_passes_back(kernel, stride, padding, size):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(3, 5, kernel, stride, padding).double()
    images = torch.rand(2, 3, *size, generator=generator, dtype=torch.float64, requires_grad=True)
    out = layer(images)
    gradient = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad(out, images, gradient)
    found = image_gradient(gradient, layer.weight.detach(), stride, padding, size)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_frozen_convolution_on_images_takes_it(bf16):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 64, 7, 2, 3)
    images = torch.rand(2, 3, 20, 20)

    def answer_and_gradient():
        given = images.clone().requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = layer(given)
            (gradient,) = torch.autograd.grad(out.float().square().sum(), given)
        assert gradient.dtype == torch.float32
        return type(out.grad_fn).__name__, out, gradient

    with frozen(layer):
        usual, out, expected = answer_and_gradient()
        with quick_stems([layer, nn.Linear(2, 2)]):
            name, mine, found = answer_and_gradient()
            with torch.no_grad():
                assert not layer(images).requires_grad
        assert name == "_StemBackward"
        assert usual != name
        assert torch.equal(mine, out)
        torch.testing.assert_close(found, expected, rtol=0.05 if bf16 else 1e-4, atol=0.05 if bf16 else 1e-4)
    # Weights that learn need a gradient, too.
    with quick_stems([layer]):
        assert answer_and_gradient()[0] == usual
    assert "forward" not in vars(layer)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(16, 64, 7, 2),
        nn.Conv2d(3, 66, 7, 2, groups=3),
        nn.Conv2d(3, 64, 7, 2, dilation=2),
        nn.Conv2d(3, 64, 7, 2, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 64, 7, padding="same"),
        nn.Conv2d(3, 64, 7, stride=(1, 2)),
        nn.Conv2d(3, 64, 7),
        nn.Conv2d(3, 16, 3, 2),
    ],
    ids=["features", "grouped", "dilated", "reflected", "same", "two strides", "stride 1", "small"],
)
def test_others_are_left_alone(layer):
    with quick_stems([layer]):
        assert "forward" not in vars(layer)
