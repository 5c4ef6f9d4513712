"""The training benchmark: its peer loop finds the images that MadryLab's recipe finds. No time is asserted."""

import torch

from lit_robust.attacks import PGD
from lit_robust.bench import training
from lit_robust.models import Network, build_classifier

ATTACK = PGD(eps=0.5, step_size=0.2, steps=3)
SUBJECT = ("lit_robust/resnet_tiny", 8, 32, 4, ATTACK)


def test_the_table_has_every_scheme_and_both_peers(monkeypatch):
    # A process of its own for each weight takes half a minute to import torch.
    monkeypatch.setattr(training, "_peak", lambda name, *_: {"standard": 200.0, "madry": 210.0}[name])
    text = training.bench_training(*SUBJECT, 1, "bf16")
    for name in ("standard", "madry", "advprop-pgd1", "trades", "MadryLab's recipe, fp32, autograd as of its time"):
        assert f"| {name}" in text
    assert "1.050 times as much" in text
    assert text.count("images/s") == 6
    assert text.count("times a standard step's time") == 5


def test_the_peer_takes_the_step_of_pgd_that_keeps_the_best(monkeypatch):
    seen = []
    build = build_classifier

    def keep(spec: Network):
        torch.manual_seed(0)
        classifier = build(spec)
        seen.append(classifier)
        return classifier

    monkeypatch.setattr(training, "build_classifier", keep)
    expected = keep(Network("lit_robust/resnet_tiny", 8))
    step = training._madrylab_step(*SUBJECT, every_gradient=True)
    step()
    sample = training._sample(4, 32, 8, torch.device("cpu"))
    attacked = PGD(eps=0.5, step_size=0.2, steps=3, keep="best").perturb(expected, sample.image, sample.label)
    optimizer = torch.optim.SGD(expected.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    torch.nn.functional.cross_entropy(expected.train()(attacked), sample.label).backward()
    optimizer.step()
    for name, tensor in expected.network.state_dict().items():
        torch.testing.assert_close(seen[1].network.state_dict()[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_a_weighed_step_runs_and_counts_mebibytes():
    assert training._weigh("madry", *SUBJECT, "fp32") > 50
