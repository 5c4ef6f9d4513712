"""What schemes with an attack share: the warm-up of eps, and validation under attack."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from test_modules import ATTACK, NETWORK, SETTINGS, Loader

from lit_robust.attacks import PGD
from lit_robust.attacks.pgd import Moved
from lit_robust.core.errors import UserError
from lit_robust.core.seeds import stream_seed
from lit_robust.modules import AdversarialModule, AdvPropModule, TradesModule
from lit_robust.modules.adversarial import AttackSchedule


def fit(module, tmp_path, epochs, every=50):
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options["log_every_n_steps"] = every
    trainer = Trainer(max_epochs=epochs, default_root_dir=tmp_path, enable_model_summary=False, **options)
    trainer.fit(module, Loader(), Loader())
    return trainer


def test_eps_grows_linearly_over_the_warmup(tmp_path, monkeypatch):
    used = []

    def remember(self, model, images, labels, *, generator=None):
        used.append((self.eps, self.step_size, model.training))
        return Moved(images, labels < 0)

    monkeypatch.setattr(PGD, "search", remember)
    module = AdversarialModule(NETWORK, SETTINGS, ATTACK, AttackSchedule(warmup_epochs=1.5, validate_every=0))
    fit(module, tmp_path, epochs=2)
    # Three steps an epoch: after 1 of 4.5 steps 2/9 of eps, at the fifth and sixth all of it.
    shares = [min(1, step / 4.5) for step in range(1, 7)]
    assert [eps for eps, _, _ in used] == pytest.approx([0.5 * share for share in shares])
    assert [step for _, step, _ in used] == pytest.approx([0.25 * share for share in shares])


def accuracy_under(attack, module):
    """What is right of the twelve images when the network is attacked as it is tested."""
    module.eval()
    right = 0
    for batch in Loader():
        attacked = attack.perturb(module.model, batch.image, batch.label)
        right += int((module.model(attacked).argmax(1) == batch.label).sum())
    return right / 12


@pytest.mark.parametrize("scheme", [AdversarialModule, AdvPropModule])
def test_validation_under_attack_is_the_attack_on_the_network_as_tested(tmp_path, scheme):
    seed_everything(3)
    module = scheme(NETWORK, SETTINGS, ATTACK)
    trainer = fit(module, tmp_path, epochs=1)
    assert float(trainer.callback_metrics["val/adversarial_top1"]) == pytest.approx(accuracy_under(ATTACK, module))
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_validation_may_have_an_attack_of_its_own(tmp_path):
    stronger = PGD(norm="l2", eps=4.0, step_size=1.0, steps=5)
    module = AdversarialModule(NETWORK, SETTINGS, ATTACK, AttackSchedule(validation_attack=stronger))
    trainer = fit(module, tmp_path, epochs=1)
    assert float(trainer.callback_metrics["val/adversarial_top1"]) == pytest.approx(accuracy_under(stronger, module))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    again = AdversarialModule.load_from_checkpoint(tmp_path / "end.ckpt")
    assert again.schedule.validation_attack == stronger


def test_validation_starts_from_the_named_stream_of_each_sample(tmp_path, monkeypatch):
    seeds, search = [], PGD.search

    def remember(self, model, images, labels, *, generator=None):
        if isinstance(generator, list):
            seeds.extend(one.initial_seed() for one in generator)
        return search(self, model, images, labels, generator=generator)

    monkeypatch.setattr(PGD, "search", remember)
    seed_everything(4)
    schedule = AttackSchedule(validation_attack=replace(ATTACK, start="ball"))
    fit(AdversarialModule(NETWORK, SETTINGS, ATTACK, schedule), tmp_path, epochs=1)
    named = [stream_seed(4, "attack start, validation", number) for number in range(12)]
    assert seeds[-12:] == named


class Nameless(Checkpoint):
    """A checkpoint of somebody's own, which watches no value."""


def test_a_checkpoint_that_watches_nothing_is_no_hindrance(tmp_path):
    module = AdversarialModule(NETWORK, SETTINGS, ATTACK, AttackSchedule(validate_every=0))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, callbacks=[Nameless()], **quiet)
    trainer.fit(module, Loader(), Loader())
    assert trainer.global_step == 3


def test_without_a_warmup_the_attack_is_whole_from_the_start():
    assert [AttackSchedule().strength(epochs) for epochs in (1e-6, 3.0)] == [1.0, 1.0]
    assert [AttackSchedule(2.0).strength(epochs) for epochs in (0.5, 2.0, 3.0)] == [0.25, 1.0, 1.0]


def test_validation_is_attacked_in_the_epochs_the_schedule_names():
    schedule = AttackSchedule(validate_every=3)
    assert [schedule.validates(epoch, last=epoch == 7) for epoch in range(8)] == [
        False, False, True, False, False, True, False, True,
    ]  # fmt: skip
    assert not AttackSchedule(validate_every=0).validates(7, last=True)


def test_without_attacked_validation_nothing_is_logged(tmp_path):
    module = AdversarialModule(NETWORK, SETTINGS, ATTACK, AttackSchedule(validate_every=0))
    trainer = fit(module, tmp_path, epochs=1)
    assert "val/adversarial_top1" not in trainer.callback_metrics
    assert "val/top1" in trainer.callback_metrics


@pytest.mark.parametrize(("scheme", "every"), [(AdversarialModule, 1), (AdvPropModule, 50), (TradesModule, 1)])
def test_an_attack_that_moves_nothing_is_logged_and_warned_of_once(tmp_path, scheme, every, monkeypatch):
    """Where loggers wait for the device, and at the end of a training that has fewer steps than that."""
    module = scheme(NETWORK, SETTINGS, PGD(eps=0.5, start="ball", loss="kl" if scheme is TradesModule else "margin"))
    trainer = fit(module, tmp_path, epochs=1)
    assert float(trainer.callback_metrics["train/unmoved"]) == float(trainer.callback_metrics["val/unmoved"]) == 0
    assert ("train/auxiliary_loss" in trainer.callback_metrics) == (scheme is AdvPropModule)
    # A layer of zeros that is not trained hides every gradient.
    torch.nn.init.zeros_(module.classifier.network.fc.weight).requires_grad_(False)
    looked = []
    own = scheme._warn_of

    def look(self, unmoved, what):
        looked.append((what, self.global_step))
        own(self, unmoved, what)

    monkeypatch.setattr(scheme, "_warn_of", look)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer = fit(module, tmp_path, epochs=2, every=every)
    assert [step for what, step in looked if what == "training"] == ([1, 2, 3, 4, 5, 6] if every == 1 else [6])
    assert float(trainer.callback_metrics["train/unmoved"]) == float(trainer.callback_metrics["val/unmoved"]) == 1
    warned = [str(one.message) for one in said if "never moved" in str(one.message)]
    assert sorted(sentence.split(" of the images")[0] for sentence in warned) == [
        "The training attack never moved 100.0%",
        "The validation attack never moved 100.0%",
    ]


def test_a_negative_schedule_is_refused():
    with pytest.raises(UserError, match=r"warmup_epochs is -1 .* 0 or more"):
        AttackSchedule(warmup_epochs=-1)
    for endless in (math.inf, math.nan):
        with pytest.raises(UserError, match=f"warmup_epochs is {endless} .* give a number of epochs"):
            AttackSchedule(warmup_epochs=endless)


def test_a_training_attack_that_does_nothing_is_refused():
    with pytest.raises(UserError, match="give eps above 0"):
        AdversarialModule(NETWORK, SETTINGS, PGD(eps=0.0))


@pytest.mark.parametrize(("every", "chosen", "fits"), [(1, 1, True), (2, 1, False), (0, 1, False), (2, 4, True)])
def test_a_checkpoint_is_not_chosen_by_a_value_that_epochs_lack(tmp_path, every, chosen, fits):
    module = AdversarialModule(NETWORK, SETTINGS, ATTACK, AttackSchedule(validate_every=every))
    keep = ModelCheckpoint(tmp_path, monitor="val/adversarial_top1", mode="max", every_n_epochs=chosen)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=chosen, callbacks=[keep], default_root_dir=tmp_path, **options)
    if fits:
        trainer.fit(module, Loader(), Loader())
        assert keep.best_model_path
    else:
        with pytest.raises(UserError, match="monitor val/top1"):
            trainer.fit(module, Loader(), Loader())
