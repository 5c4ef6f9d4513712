"""Fused networks: the probabilities are the mixture's, the ends are the parts, and the gradient is the fused one's."""

import pytest
import torch
from torch import nn

from lit_robust.attacks import PGD
from lit_robust.core.errors import UserError
from lit_robust.models import Network, build_classifier
from lit_robust.models.fusion import WEIGHTS, Fusion, best_weight, fused

IMAGES = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
PART = {"name": "lit_robust/resnet_tiny"}


def parts():
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks.append(build_classifier(Network("lit_robust/resnet_tiny", 4)).eval())
    return networks


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_a_weight_mixes_probabilities(weight):
    standard, robust = parts()
    found = Fusion(standard, robust, weight=weight)(IMAGES).exp().double()
    expected = weight * standard(IMAGES).double().softmax(1) + (1 - weight) * robust(IMAGES).double().softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_the_ends_are_the_parts_under_attack_too():
    standard, robust = parts()
    labels = torch.tensor([0, 1, 2, 3, 0])
    attack = PGD(eps=0.5, steps=3)
    for weight, part in ((1, standard), (0, robust)):
        ours, theirs = (attack(model, IMAGES, labels) for model in (Fusion(standard, robust, weight=weight), part))
        torch.testing.assert_close(ours.images, theirs.images)
        assert torch.equal(ours.success, theirs.success)


@pytest.mark.parametrize("rule", ["weight", "confidence"])
def test_the_gradient_is_that_of_the_fused_answer(rule):
    standard, robust = (part.double() for part in parts())
    network = Fusion(standard, robust, rule, 0.3)
    image = IMAGES[:1].double().requires_grad_(True)
    direction = torch.randn(image.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (slope,) = torch.autograd.grad(network(image)[0, 1], image)
    h = 1e-6
    with torch.no_grad():
        quotient = (network(image + h * direction)[0, 1] - network(image - h * direction)[0, 1]) / (2 * h)
    assert float((slope * direction).sum()) == pytest.approx(float(quotient), rel=1e-5)


def test_the_more_confident_one_decides():
    class Says(nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.logits = torch.tensor(logits)

        def forward(self, images):
            return self.logits

    standard = Says([[4.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    robust = Says([[0.0, 1.0], [0.0, 3.0], [0.0, 2.0]])
    network = Fusion(standard, robust, "confidence")
    assert network.decided(IMAGES).tolist() == [False, True, False]  # The last two are equally sure.
    assert network(IMAGES).argmax(1).tolist() == [0, 1, 0]


def test_the_weight_of_most_right_answers_is_chosen():
    labels = torch.tensor([0, 0, 1])
    standard = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]]).log()
    robust = torch.tensor([[0.6, 0.4], [0.3, 0.7], [0.02, 0.98]]).log()
    counts = {one: int((fused(standard, robust, one).argmax(1) == labels).sum()) for one in WEIGHTS}
    # Image 2 is right where .9w + .3(1-w) > .5, w > 1/3; image 3 where .1w + .98(1-w) > .5, w < .545.
    assert [weight for weight, count in counts.items() if count == 3] == [0.35, 0.4, 0.45, 0.5]
    assert best_weight(counts) == 0.4
    torch.testing.assert_close(fused(standard, robust, 0.4).exp().sum(1), torch.ones(3))


def test_it_is_a_network_by_its_name():
    arguments = {"standard": PART, "robust": {**PART, "mean": [0.5, 0.5, 0.5]}, "weight": 0.75}
    spec = Network("lit_robust.models.fusion:fuse", num_classes=4, arguments=arguments)
    network = build_classifier(spec).eval()
    inner = network.network
    torch.testing.assert_close(network(IMAGES), fused_by_hand(inner))
    assert inner.robust.mean.flatten().tolist() == [0.5, 0.5, 0.5]


def fused_by_hand(fusion):
    return (0.75 * fusion.standard(IMAGES).softmax(1) + 0.25 * fusion.robust(IMAGES).softmax(1)).log()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weight": 1.5}, "weight is 1.5"),
        ({"rule": "confident"}, "did you mean confidence"),
        ({"robust": {"nam": "x"}}, r"no setting 'nam' \(did you mean name\?\)"),
        ({"standard": "resnet"}, "give a network's settings"),
    ],
)
def test_mistakes(change, sentence):
    arguments = {"standard": PART, "robust": PART, **change}
    with pytest.raises(UserError, match=sentence):
        build_classifier(Network("lit_robust.models.fusion:fuse", num_classes=4, arguments=arguments))


def test_networks_of_other_classes_are_no_pair():
    other = build_classifier(Network("lit_robust/resnet_tiny", 5)).eval()
    with pytest.raises(UserError, match="4 and 5 classes"):
        Fusion(parts()[0], other)(IMAGES)
