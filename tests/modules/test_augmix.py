"""AugMix: each operation against Pillow's, views as convex combinations, and the divergence against scipy's."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.spatial.distance import jensenshannon
from test_modules import NETWORK, SETTINGS, fit

from lit_robust.core.errors import UserError
from lit_robust.modules import AugMix, AugMixModule
from lit_robust.modules import augmix as ops
from lit_robust.modules.augmix import jensen_shannon


def picture(height=50, width=70, seed=0):
    small = np.random.default_rng(seed).integers(20, 230, (6, 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def tensor(*images):
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()


def affine(image, matrix):
    return Image.fromarray(image).transform(
        (image.shape[1], image.shape[0]), Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR
    )


def applied(images, operations, amounts):
    return ops.apply(images, ops.plan(operations[None], amounts[None], images)[0])


PEERS = {
    ops.AUTOCONTRAST: lambda image, _: ImageOps.autocontrast(Image.fromarray(image)),
    ops.EQUALIZE: lambda image, _: ImageOps.equalize(Image.fromarray(image)),
    ops.POSTERIZE: lambda image, level: ImageOps.posterize(
        Image.fromarray(image), max(4 - int(abs(level) * 4 / 10), 1)
    ),
    ops.SOLARIZE: lambda image, level: ImageOps.solarize(Image.fromarray(image), 256 - int(abs(level) * 256 / 10)),
    ops.ROTATE: lambda image, level: Image.fromarray(image).rotate(int(level * 3), resample=Image.Resampling.BILINEAR),
    ops.SHEAR_X: lambda image, level: affine(image, (1, level * 0.03, 0, 0, 1, 0)),
    ops.SHEAR_Y: lambda image, level: affine(image, (1, 0, 0, level * 0.03, 1, 0)),
    ops.TRANSLATE_X: lambda image, level: affine(image, (1, 0, int(level * image.shape[1] / 30), 0, 1, 0)),
    ops.TRANSLATE_Y: lambda image, level: affine(image, (1, 0, 0, 0, 1, int(level * image.shape[0] / 30))),
}


@pytest.mark.parametrize("operation", range(ops.OPERATIONS))
# With 2.6 and 7.6 a step of posterising is reached by little.
@pytest.mark.parametrize("amount", [-9.3, -0.7, 1.0, 2.6, 4.4, 7.6, 10.0])
def test_an_operation_is_pillows(operation, amount):
    image = picture()
    ours = applied(tensor(image), np.array([operation]), np.array([amount]))[0].permute(1, 2, 0)
    expected = np.array(PEERS[operation](image, amount), dtype=np.float32)
    difference = np.abs(ours.numpy() - expected)
    # Pillow cuts fractions of a level off, we round; on the border of what came from outside, floating point decides.
    assert np.mean(difference > 1) < 0.003
    assert np.array_equal(ours, ours.round())


def test_pictures_with_hardly_any_levels_stay():
    flat, nearly, next_to = (np.full((50, 70, 3), 77, dtype=np.uint8) for _ in range(3))
    nearly[0, 0] = 80
    next_to[0, 0] = 78
    for image in (flat, nearly, next_to):
        for operation in (ops.AUTOCONTRAST, ops.EQUALIZE):
            ours = applied(tensor(image), np.array([operation]), np.array([1.0]))[0].permute(1, 2, 0)
            assert np.array_equal(ours, np.array(PEERS[operation](image, 1.0)))


def test_each_image_gets_its_own_operation():
    images = tensor(*(picture(seed=seed) for seed in range(10)))
    operations = np.array([*range(9), ops.NOTHING])
    amounts = np.linspace(-8, 8, 10)
    together = applied(images, operations, amounts)
    for place in range(10):
        alone = applied(images[place : place + 1], operations[place : place + 1], amounts[place : place + 1])
        assert torch.equal(together[place], alone[0])
    assert torch.equal(together[9], images[9])


def test_a_plan_of_many_steps_is_that_of_each_alone():
    images = tensor(*(picture(seed=seed) for seed in range(12)))
    random = np.random.default_rng(0)
    operations, amounts = random.integers(-1, ops.OPERATIONS, (7, 12)), random.uniform(-10, 10, (7, 12))
    for step, changes in enumerate(ops.plan(operations, amounts, images)):
        assert torch.equal(ops.apply(images, changes), applied(images, operations[step], amounts[step]))


def test_a_plan_is_copied_to_the_device_in_two_parts(monkeypatch):
    copied = []
    monkeypatch.setattr(torch, "from_numpy", lambda array: copied.append(array.shape) or torch.as_tensor(array))
    AugMix().view(torch.rand(8, 3, 16, 16), np.random.default_rng(0))
    # The chains' shares, and settings and rows of three chains of three steps.
    assert copied == [(4, 8), (9, 8, 8), (9, 8)]


def test_a_view_is_a_convex_combination_of_what_the_chains_make(monkeypatch):
    images = torch.rand(6, 3, 16, 16)
    view = AugMix(severity=10).view(images, np.random.default_rng(0))
    assert view.dtype == torch.float32
    assert 0 <= view.min() <= view.max() <= 1
    # Where every operation gives white, a view lies on the line from the image to white, with one weight an image.
    monkeypatch.setattr("lit_robust.modules.augmix.apply", lambda pixels, *_: torch.full_like(pixels, 255))
    view = AugMix().view(images, np.random.default_rng(0))
    levels = (images * 255).round() / 255
    weight = ((view - levels) / (1 - levels)).flatten(1).nan_to_num()
    # Close to white the quotient is that of two small numbers.
    keep = (levels < 0.9).flatten(1)
    for row, kept in zip(weight, keep, strict=True):
        assert row[kept].max() - row[kept].min() < 1e-4
        assert -1e-5 <= row[kept].min() <= row[kept].max() <= 1 + 1e-5


def test_chains_that_change_nothing_give_the_image(monkeypatch):
    """The shares of an image and of its chains are above 0, and their sum is 1."""
    images = torch.rand(6, 3, 16, 16)
    monkeypatch.setattr("lit_robust.modules.augmix.apply", lambda pixels, *_: pixels)
    view = AugMix().view(images, np.random.default_rng(0))
    torch.testing.assert_close(view, (images * 255).round() / 255, rtol=0, atol=1e-6)


def test_each_image_weighs_its_chains_by_itself(monkeypatch):
    """Each chain gives a colour of its own to black images, so that a view's colour is the chains' weights."""
    calls = iter(range(100))

    def colour(pixels, _):
        return torch.eye(3)[next(calls) // ops.DEEPEST].view(1, 3, 1, 1).expand_as(pixels) * 255

    monkeypatch.setattr("lit_robust.modules.augmix.apply", colour)
    weights = AugMix().view(torch.zeros(2000, 3, 1, 1), np.random.default_rng(0))[:, :, 0, 0].numpy()
    shares = weights / weights.sum(1, keepdims=True)
    # Dirichlet(1, 1, 1): each of mean 1/3 and variance 1/18; Beta(1, 1): mean 1/2, variance 1/12.
    assert np.abs(shares.mean(0) - 1 / 3).max() < 5 * (1 / 18 / 2000) ** 0.5
    assert shares.var(0) == pytest.approx(np.full(3, 1 / 18), rel=0.15)
    assert weights.sum(1).mean() == pytest.approx(0.5, abs=5 * (1 / 12 / 2000) ** 0.5)
    assert weights.sum(1).var() == pytest.approx(1 / 12, rel=0.15)


def test_a_view_follows_from_its_generator_and_leaves_the_images():
    images = torch.rand(4, 3, 16, 16)
    before = images.clone()
    one, two, other = (AugMix(severity=3).view(images, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(images, before)


def test_a_view_is_the_same_under_autocast():
    images = torch.rand(16, 3, 24, 24)
    plain = AugMix(severity=10).view(images, np.random.default_rng(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(AugMix(severity=10).view(images, np.random.default_rng(0)), plain)


def test_depth_and_operations_are_drawn_evenly(monkeypatch):
    seen = []

    def record(operations, amounts, images):
        seen.append((operations, amounts))
        return [[]] * len(operations)

    monkeypatch.setattr("lit_robust.modules.augmix.plan", record)
    AugMix(severity=3, width=2).view(torch.rand(6000, 3, 1, 1), np.random.default_rng(0))
    [(operations, amounts)] = seen
    operations, amounts = operations.reshape(2, 3, 6000), np.abs(amounts)
    lengths = np.bincount((operations != ops.NOTHING).sum(1).ravel(), minlength=4) / 12000
    # Five standard deviations of a share of 12,000 draws are 0.022.
    assert np.abs(lengths - [0, 1 / 3, 1 / 3, 1 / 3]).max() < 0.022
    shares = np.bincount(operations[operations >= 0], minlength=9) / (operations >= 0).sum()
    assert np.abs(shares - 1 / 9).max() < 0.015
    assert 0.1 <= amounts.min() < 0.11
    assert 2.99 < amounts.max() <= 3


def test_divergence_is_scipys():
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)) * 3
    expected = np.mean([jensenshannon(*pair) ** 2 for pair in zip(*logits.double().softmax(-1).numpy(), strict=True)])
    # fp32 sums of seven terms.
    assert float(jensen_shannon(logits)) == pytest.approx(expected, rel=1e-5)


def test_divergence_of_three_is_the_entropys_formula():
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)) * 3
    answers = logits.double().softmax(-1)

    def entropy(p):
        return -(p * p.log()).sum(-1)

    expected = (entropy(answers.mean(0)) - entropy(answers).mean(0)).mean()
    assert float(jensen_shannon(logits)) == pytest.approx(float(expected), rel=1e-5)


def test_divergence_at_its_bounds():
    same = torch.randn(1, 4, 5).expand(3, 4, 5)
    assert float(jensen_shannon(same)) == pytest.approx(0, abs=1e-6)
    apart = torch.eye(3)[:, None].expand(3, 4, 3) * 1e4
    apart = apart.clone().requires_grad_(True)
    loss = jensen_shannon(apart)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3), rel=1e-6)
    assert apart.grad.isfinite().all()


def test_a_run_repeats_itself_and_a_checkpoint_builds_the_module_again(tmp_path):
    def train(seed):
        torch.manual_seed(3)
        module = AugMixModule(NETWORK, SETTINGS, AugMix(severity=3))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PL_GLOBAL_SEED", str(seed))
            trainer = fit(module, tmp_path)
        return module, trainer

    module, trainer = train(1)
    assert torch.equal(train(1)[0].model.network.fc.weight, module.model.network.fc.weight)
    assert not torch.equal(train(2)[0].model.network.fc.weight, module.model.network.fc.weight)
    assert trainer.callback_metrics["train/divergence"] > 0
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    again = AugMixModule.load_from_checkpoint(tmp_path / "module.ckpt")
    assert (again.augmix, again.optimisation, again.network) == (AugMix(severity=3), SETTINGS, module.network)


@pytest.mark.parametrize(
    "settings", [{"severity": 0.5}, {"severity": 11}, {"width": 0}, {"depth": 0}, {"alpha": 0}, {"consistency": -1}]
)
def test_settings_out_of_range(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        AugMix(**settings)


def test_settings_at_the_ends_of_their_ranges():
    for settings in ({"severity": 1}, {"severity": 10}, {"width": 1}, {"depth": 1}, {"consistency": 0}):
        AugMix(**settings)
