"""TRADES against its formula, taken one step by a plain loop."""

import copy

import pytest
import torch
from pytorch_lightning import seed_everything
from test_modules import NETWORK, SETTINGS, Loader, fit
from torch.nn import functional as F

from lit_robust.attacks import PGD
from lit_robust.core.errors import UserError
from lit_robust.modules import TradesModule
from lit_robust.modules.trades import kl_divergence

ATTACK = PGD(norm="l2", eps=0.5, step_size=0.25, steps=3, start="sphere", loss="kl")


def test_divergence_is_the_mean_of_p_log_p_over_q():
    p, q = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0)).double()
    expected = (p.softmax(1) * (p.softmax(1) / q.softmax(1)).log()).sum(1).mean()
    # The function computes in float32.
    torch.testing.assert_close(kl_divergence(p, q).double(), expected, rtol=1e-5, atol=1e-6)
    assert kl_divergence(p, p).item() == pytest.approx(0, abs=1e-6)


def test_a_step_is_the_formula_s(tmp_path, monkeypatch):
    seed_everything(2)
    module = TradesModule(NETWORK, SETTINGS, ATTACK, beta=3.0)
    network = copy.deepcopy(module.model)
    kept = []
    search = PGD.search

    def remember(self, model, images, labels, *, generator=None):
        found = search(self, model, images, labels, generator=generator)
        kept.append(found.images)
        return found

    monkeypatch.setattr(PGD, "search", remember)
    trainer = fit(module, tmp_path, limit_train_batches=1)

    batch = next(iter(Loader()))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    network.eval()
    with torch.no_grad():
        answers, attacked = network(batch.image).softmax(1), network(kept[0]).softmax(1)
        start = network(batch.image + 1e-3 * torch.randn(batch.image.shape)).softmax(1)
    divergence = (answers * (answers / attacked).log()).sum(1)
    assert (divergence > 10 * (answers * (answers / start).log()).sum(1)).all(), "the attack raises the divergence"
    network.train()
    clean, attacked = network(batch.image), network(kept[0])
    p, q = clean.softmax(1), attacked.softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    # It is small, and the difference of larger numbers.
    assert float(trainer.callback_metrics["train/divergence"]) == pytest.approx(float(divergence), rel=1e-3)
    loss = F.cross_entropy(clean, batch.label, label_smoothing=0.1) + 3.0 * divergence
    loss.backward()
    optimizer.step()
    for name, tensor in module.model.state_dict().items():
        torch.testing.assert_close(tensor, network.state_dict()[name], rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize(("attack", "beta"), [(PGD(), 6.0), (ATTACK, -1.0)])
def test_another_attack_loss_or_a_negative_weight_is_refused(attack, beta):
    with pytest.raises(UserError, match="its attack raises kl and beta is 0 or more"):
        TradesModule(NETWORK, SETTINGS, attack, beta=beta)


def test_a_checkpoint_builds_the_module_again(tmp_path):
    fit(TradesModule(NETWORK, SETTINGS, ATTACK, beta=3.0), tmp_path).save_checkpoint(tmp_path / "module.ckpt")
    again = TradesModule.load_from_checkpoint(tmp_path / "module.ckpt")
    assert (again.attack, again.beta, again.optimisation) == (ATTACK, 3.0, SETTINGS)
