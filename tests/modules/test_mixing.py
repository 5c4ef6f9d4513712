"""Mixup, CutMix and Moment Exchange: closed forms, and training with each."""

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback
from test_modules import NETWORK, SETTINGS, Loader, fit
from torch import nn
from torch.nn import functional as F

from lit_robust.core.batch import Batch
from lit_robust.core.errors import UserError
from lit_robust.core.seeds import stream_seed
from lit_robust.models import build_classifier
from lit_robust.modules import AugMixModule, CutMix, Mixup, MoEx, StandardModule
from lit_robust.modules.mixing import Mixed, exchange_moments, random_patch

SCHEMES = [Mixup(alpha=0.7), CutMix(), MoEx(layer="layers.0")]


class Seen(nn.Module):
    """Stands for a network, and keeps what it was given."""

    def forward(self, images):
        self.images = images
        return images.flatten(1)[:, :4]


def mixed(scheme, images, seed=0):
    model = Seen()
    before = images.clone()
    result = scheme(model, images, np.random.default_rng(seed))
    assert torch.equal(images, before), "the batch's images are left as they are"
    return model.images, result


def test_mixup_is_the_weighted_mean():
    images = torch.rand(5, 3, 8, 8)
    seen, result = mixed(Mixup(alpha=1.0), images)
    assert sorted(result.partner.tolist()) == list(range(5))
    assert 0 < result.share < 1
    for place, partner in enumerate(result.partner.tolist()):
        torch.testing.assert_close(seen[place], result.share * images[place] + (1 - result.share) * images[partner])


def test_mixup_shares_follow_beta():
    shares = np.array([mixed(Mixup(0.2), torch.rand(2, 3, 1, 1), seed)[1].share for seed in range(3000)])
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)); five standard deviations of each estimate.
    assert abs(shares.mean() - 0.5) < 5 * 0.42 / 3000**0.5
    assert abs(shares.var() - 1 / 5.6) < 0.01


def test_cutmix_replaces_one_box_and_shares_by_its_pixels():
    images = torch.rand(5, 3, 20, 30)
    shares = set()
    for seed in range(40):
        seen, result = mixed(CutMix(), images, seed)
        for place, partner in enumerate(result.partner.tolist()):
            if place == partner:
                continue
            changed = (seen[place] != images[place]).any(0)
            rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
            assert changed.sum() == len(rows) * len(columns), "a box"
            assert result.share == pytest.approx(1 - changed.float().mean().item())
            assert torch.equal(seen[place][:, changed], images[partner][:, changed])
            shares.add(round(result.share, 3))
    assert len(shares) > 25


def test_patches_have_the_drawn_area_and_reach_every_pixel():
    random = np.random.default_rng(0)
    covered = np.zeros((40, 60), dtype=int)
    for _ in range(500):
        top, bottom, left, right = random_patch(40, 60, 0.75, random)
        assert 0 <= top < bottom <= 40
        assert 0 <= left < right <= 60
        assert bottom - top <= 20
        assert right - left <= 30
        if top > 0 and bottom < 40 and left > 0 and right < 60:
            assert (bottom - top, right - left) == (20, 30), "a quarter of the area, in the image's aspect"
        covered[top:bottom, left:right] += 1
    assert covered.min() > 0


def test_moments_are_exchanged_exactly():
    features = torch.randn(4, 16, 5, 6, dtype=torch.float64).float() * 3 + 1
    partner = torch.tensor([2, 0, 3, 1])
    exchanged = exchange_moments(features, partner)
    for place, other in enumerate(partner.tolist()):
        torch.testing.assert_close(exchanged[place].mean(0), features[other].mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(exchanged[place].std(0), features[other].std(0), rtol=1e-4, atol=1e-5)
        own = (features[place] - features[place].mean(0)) / features[place].std(0)
        kept = (exchanged[place] - exchanged[place].mean(0)) / exchanged[place].std(0)
        torch.testing.assert_close(kept, own, rtol=1e-3, atol=1e-3)
    # With oneself, or twice there and back, nothing changes.
    torch.testing.assert_close(exchange_moments(features, torch.arange(4)), features)
    back = exchange_moments(exchanged, torch.argsort(partner))
    torch.testing.assert_close(back, features, rtol=1e-3, atol=1e-3)
    assert exchange_moments(features.bfloat16(), partner).dtype == torch.bfloat16


def test_moex_changes_the_named_layer_and_leaves_no_hook():
    torch.manual_seed(0)
    model = build_classifier(NETWORK).eval()
    images = torch.rand(4, 3, 32, 32)
    result = MoEx(layer="layers.0", share=0.8)(model, images, np.random.default_rng(1))
    with torch.no_grad():
        inner = model.network
        seen = inner.layers[0](inner.relu(inner.bn1(inner.conv1((images - model.mean) / model.std))))
        after = inner.layers[1:](exchange_moments(seen, result.partner))
        expected = inner.fc(inner.avgpool(after).flatten(1))
    torch.testing.assert_close(result.logits, expected)
    assert result.share == 0.8
    assert not torch.allclose(result.logits, model(images))
    assert not inner.layers[0]._forward_hooks
    with pytest.raises(UserError, match="has no layer 'stem'.*layers"):
        MoEx(layer="stem")(model, images, np.random.default_rng(1))
    with pytest.raises(UserError, match="'fc' gives .4, 4.: name one"):
        MoEx(layer="fc")(model, images, np.random.default_rng(1))
    assert not inner.fc._forward_hooks


@pytest.mark.parametrize("scheme", [CutMix, MoEx])
def test_batches_are_mixed_with_the_stated_probability(scheme):
    images, model = torch.rand(3, 3, 8, 8), Seen()
    model.network = nn.Module()
    result = scheme(probability=0.0)(model, images, np.random.default_rng(0))
    assert torch.equal(model.images, images)
    assert result.share == 1
    assert result.partner.tolist() == [0, 1, 2]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_cross_entropy_with_the_soft_labels(smoothing):
    torch.manual_seed(0)
    logits, labels, partner = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 1, 1]), torch.randperm(6)
    module = StandardModule(NETWORK, type(SETTINGS)(label_smoothing=smoothing))
    found = module._mixed_loss(Mixed(logits, partner, 0.3), labels)
    target = 0.3 * F.one_hot(labels, 4) + 0.7 * F.one_hot(labels[partner], 4)
    target = (1 - smoothing) * target + smoothing / 4
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: type(scheme).__name__)
def test_a_checkpoint_builds_the_module_again(tmp_path, scheme):
    trainer = fit(StandardModule(NETWORK, SETTINGS, scheme), tmp_path, limit_train_batches=1)
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    torch.load(tmp_path / "module.ckpt", weights_only=True)
    again = StandardModule.load_from_checkpoint(tmp_path / "module.ckpt")
    assert again.mixing == scheme
    assert again.describe()["settings"]["mixing"]["class_path"].endswith(type(scheme).__name__)


@pytest.mark.parametrize("name", ["mixing", "augmix"])
def test_each_batch_of_each_epoch_has_a_stream_of_its_own(tmp_path, monkeypatch, name):
    """Of the run's seed, a name, the epoch, the batch and the rank, whatever images it holds."""
    asked = []

    def stream(*parts):
        asked.append(parts)
        return stream_seed(*parts)

    module = StandardModule(NETWORK, SETTINGS, Mixup(0.7)) if name == "mixing" else AugMixModule(NETWORK, SETTINGS)
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    monkeypatch.setattr(f"{type(module).__module__}.stream_seed", stream)
    fit(module, tmp_path, max_epochs=2)
    assert asked == [(7, name, epoch, batch, 0) for epoch in range(2) for batch in range(3)]


class Shares(Callback):
    """Keeps every weight as it is after each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(outputs["loss"].item())


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: type(scheme).__name__)
def test_draws_follow_from_seed_epoch_and_batch(tmp_path, scheme):
    """Rate 0: the losses differ by what is drawn alone. A run that starts in epoch 1 draws that epoch's."""
    frozen = type(SETTINGS)(learning_rate=1e-30, schedule="constant", weight_decay=0)

    def losses(**options):
        torch.manual_seed(3)
        recorder = Shares()
        module = StandardModule(NETWORK, frozen, scheme)
        trainer = fit(module, tmp_path, callbacks=[recorder], **options)
        return recorder.seen, trainer, module

    whole, _, _ = losses(max_epochs=2)
    _, trainer, _ = losses(max_epochs=1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    torch.manual_seed(3)
    recorder, module = Shares(), StandardModule(NETWORK, frozen, scheme)
    again = type(trainer)(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[recorder],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    again.fit(module, Loader(), ckpt_path=tmp_path / "half.ckpt")
    assert recorder.seen == whole[3:]
    assert whole[:3] != whole[3:]


def test_copies_of_unreadable_images_are_not_trained():
    batch = next(iter(Loader()))
    assert batch.readable() is batch
    broken = torch.tensor([False, True, False, True])
    marked = Batch(batch.image, batch.label, batch.index, ~broken, broken=broken)
    assert marked.readable().index.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("scheme", "settings", "says"),
    [
        (Mixup, {"alpha": 0.0}, "alpha is 0.0"),
        (CutMix, {"alpha": -1.0}, "alpha is -1.0"),
        (CutMix, {"probability": 1.5}, "probability is 1.5"),
        (MoEx, {"probability": -0.1}, "probability is -0.1"),
        (MoEx, {"share": 2.0}, "share is 2.0"),
    ],
)
def test_settings_out_of_range(scheme, settings, says):
    with pytest.raises(UserError, match=says):
        scheme(**settings)


def test_settings_at_the_ends_of_their_ranges():
    for share, probability in ((0.0, 0.0), (1.0, 1.0)):
        MoEx(share=share, probability=probability)
        CutMix(probability=probability)
