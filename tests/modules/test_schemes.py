"""What holds for every training scheme: accumulated gradients, clipping, and going on from a checkpoint."""

from dataclasses import replace

import pytest
import torch
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint
from test_modules import NETWORK, SETTINGS, Loader, fit

from lit_robust.attacks import PGD
from lit_robust.core.batch import Batch
from lit_robust.models import Network
from lit_robust.modules import AdversarialModule, AdvPropModule, Optimisation, StandardModule, TradesModule

ATTACK = PGD(norm="l2", eps=0.5, step_size=0.25, steps=2, start="sphere")
SCHEMES = {
    "standard": lambda network, settings, attack: StandardModule(network, settings),
    "adversarial": lambda network, settings, attack: AdversarialModule(network, settings, attack),
    "advprop": lambda network, settings, attack: AdvPropModule(network, settings, attack),
    "trades": lambda network, settings, attack: TradesModule(network, settings, replace(attack, loss="kl")),
}


class Halves:
    """The batches of `Loader`, each in two."""

    def __iter__(self):
        for batch in Loader():
            for half in (slice(0, 2), slice(2, 4)):
                yield Batch(batch.image[half], batch.label[half], batch.index[half], batch.valid[half])

    def __len__(self):
        return 6


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_resumed_run_ends_with_the_weights_of_one_that_never_stopped(tmp_path, scheme):
    def run(folder, epochs, checkpoint=None):
        seed_everything(4)
        module = SCHEMES[scheme](NETWORK, SETTINGS, ATTACK)
        keep = ModelCheckpoint(tmp_path / folder, save_last=True)
        options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(max_epochs=epochs, callbacks=[keep], default_root_dir=tmp_path, **options)
        trainer.fit(module, Loader(), ckpt_path=checkpoint, weights_only=True)
        return module.model.state_dict()

    straight = run("straight", 2)
    run("halted", 1)
    resumed = run("halted", 2, tmp_path / "halted" / "last.ckpt")
    assert straight.keys() == resumed.keys()
    for name, tensor in straight.items():
        assert torch.equal(resumed[name], tensor), name


@pytest.mark.parametrize("scheme", ["standard", "adversarial", "advprop"])
def test_two_accumulated_halves_are_a_whole_batch(tmp_path, scheme):
    """For a network without batch norm, and without random starts, which are drawn a batch."""
    smooth = Network("timm/convnext_atto", num_classes=4)
    settings = Optimisation(learning_rate=0.01, schedule="constant")
    weights = []
    for loader, accumulate in ((Loader(), 1), (Halves(), 2)):
        seed_everything(4)
        module = SCHEMES[scheme](smooth, settings, replace(ATTACK, start="none"))
        options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(
            max_epochs=1,
            accumulate_grad_batches=accumulate,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
            **options,
        )
        trainer.fit(module, loader)
        assert trainer.global_step == 3
        weights.append(module.model.state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_clipping_bounds_the_step(tmp_path, scheme):
    settings = Optimisation(learning_rate=1.0, momentum=0.0, weight_decay=0.0, schedule="constant")
    seed_everything(4)
    module = SCHEMES[scheme](NETWORK, settings, ATTACK)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    fit(module, tmp_path, limit_train_batches=1, gradient_clip_val=0.01)
    moved = torch.cat([(new - old).flatten() for new, old in zip(module.parameters(), before, strict=True)])
    # At rate 1 the step is the clipped gradient, whose norm was more than 0.01.
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)
