"""The training benchmark: its peer finds the images that MadryLab's recipe finds, and its counts fit the arithmetic.

No time is asserted.
"""

import re

import pytest
import torch

from lit_robust.attacks import PGD
from lit_robust.bench import measuring, training
from lit_robust.bench.measuring import PlainClassifier, count_operations, product_rate
from lit_robust.bench.training import TrainingSubject, build_step, madrylab_step
from lit_robust.models import Network, build_classifier

NETWORK = Network("lit_robust/resnet_tiny", 8)
SUBJECT = TrainingSubject(NETWORK.name, NETWORK.num_classes, 32, 4, PGD(eps=0.5, step_size=0.2, steps=3), "fp32")


def test_the_table_has_every_scheme_and_both_peers(monkeypatch):
    # A process of its own for each weight takes half a minute to import torch.
    monkeypatch.setattr(training, "peak_memory", lambda _, step: {"standard": 200.0, "madry": 210.0}[step[0]])
    products = []
    monkeypatch.setattr(training, "product_rate", lambda _, precision: products.append(precision) or 1e12)
    text = training.bench_training(NETWORK.name, 8, 32, 4, SUBJECT.attack, 1, "bf16")
    for name in ("standard", "madry", "advprop-pgd1", "trades", "MadryLab's recipe, fp32, autograd as of its time"):
        assert len(re.findall(rf"^\| {name}", text, re.MULTILINE)) == 2
    assert "1.050 times as much" in text
    assert products == ["bf16"]
    assert "A matrix product in bf16 reaches 1 Tflop/s" in text
    assert text.count("images/s") == 6
    assert re.search(r"^\| standard, bf16 \| 1\.00 \| 1\.00 \|", text, re.MULTILINE)


def test_a_scheme_takes_the_operations_that_its_passes_add_up_to():
    """With F a forward pass, G the input's gradient and W the weights': G is that of all layers, the first included."""
    model = build_classifier(NETWORK)
    images = torch.rand(4, 3, 32, 32)

    def forward():
        return model(images)

    def both():
        model(images.requires_grad_()).sum().backward()

    def inputs():
        torch.autograd.grad(model(images.requires_grad_()).sum(), images)

    whole, attack, pass_ = count_operations(both), count_operations(inputs), count_operations(forward)
    standard = count_operations(build_step("standard", SUBJECT))
    # The standard step needs no gradient of the images, so of all gradients the first layer's is not computed.
    assert pass_ < standard < whole
    assert count_operations(build_step("madry", SUBJECT)) == 3 * attack + standard
    assert count_operations(build_step("advprop-pgd1", SUBJECT)) == attack + 2 * standard
    assert count_operations(build_step("trades", SUBJECT)) == 3 * attack + 2 * standard + pass_
    assert count_operations(build_step("madrylab-today", SUBJECT)) == 3 * attack + pass_ + standard
    assert count_operations(build_step("madrylab", SUBJECT)) == 3 * whole + pass_ + standard


def test_a_product_of_two_matrices_has_a_rate():
    assert product_rate(torch.device("cpu"), "fp32") > 1e8


def test_the_peer_takes_the_step_of_pgd_that_keeps_the_best():
    torch.manual_seed(0)
    expected = build_classifier(NETWORK)
    torch.manual_seed(0)
    peer = PlainClassifier(build_classifier(NETWORK))
    sample = training._sample(SUBJECT)
    madrylab_step(peer, sample, SUBJECT.attack, every_gradient=True)()
    attacked = PGD(eps=0.5, step_size=0.2, steps=3, keep="best").perturb(expected, sample.image, sample.label)
    optimizer = torch.optim.SGD(expected.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    torch.nn.functional.cross_entropy(expected.train()(attacked), sample.label).backward()
    optimizer.step()
    for name, tensor in expected.network.state_dict().items():
        torch.testing.assert_close(peer.network.state_dict()[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def hold(mebibytes):
    """Return a step that writes so many MiB and keeps half of them."""
    kept = []

    def step():
        kept[:] = [torch.ones(mebibytes * 2**17), torch.ones(mebibytes * 2**17)][:1]

    return step


def test_a_weight_is_that_of_the_work_and_not_of_the_process_that_asks():
    """Within 20 MiB, for what the imports of a first step bring."""
    ours = torch.ones(200 * 2**18)  # As many as the work, in the process that asks.
    found = measuring.peak_memory(hold, (100,))
    # The first step's half is still held while the second writes both of its own.
    assert found == pytest.approx(150, abs=20)
    del ours


def test_a_weighed_step_runs():
    assert measuring.weigh(build_step, ("madry", SUBJECT)) >= 0


def test_where_bf16_is_slow_nothing_is_computed_in_it(monkeypatch):
    """A product of 2,048 rows would take minutes there."""
    kinds = []
    monkeypatch.setattr(training, "peak_memory", lambda *_: 1.0)
    monkeypatch.setattr(training, "choose_precision", lambda choice, _: {"auto": "fp32"}[choice])
    monkeypatch.setattr(measuring, "seconds_of", lambda work, _: kinds.append(work().dtype) or 1.0)
    monkeypatch.setattr(training, "seconds_of", lambda work, _: 1.0)
    text = training.bench_training(NETWORK.name, 8, 32, 4, SUBJECT.attack, 1, "auto")
    assert set(kinds) == {torch.float32}
    assert "bf16 " not in text.split("\n", 1)[1]
    assert "| madry, fp32 |" in text
