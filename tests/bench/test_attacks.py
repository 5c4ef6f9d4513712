"""The attack benchmark: all contenders attack alike, and the table says so. No time is asserted."""

import re

import pytest
import torch

from lit_robust.attacks import PGD
from lit_robust.bench.attacks import bench_attacks
from lit_robust.bench.measuring import PlainClassifier, read_images
from lit_robust.core.errors import UserError
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.models import Network, build_classifier

WHOLE = EvaluationCrop(None, None)
NETWORK = Network("lit_robust/resnet_tiny", 8)


@pytest.mark.parametrize(("norm", "eps"), [("l2", [0.2, 0.4]), ("linf", [0.005, 0.01])])
def test_all_contenders_reach_the_same_accuracies(toy, norm, eps):
    attack = PGD(norm=norm, eps=eps[-1], step_size=eps[-1] / 3, steps=3)
    torch.manual_seed(0)
    text = bench_attacks(toy / "imagenet", "val", WHOLE, NETWORK, attack, eps, 40, 16, 1, "fp32")
    curves = {
        name: [float(value) for value in values.split(", ")]
        for name, values in re.findall(r"\| ([^|]+?): accuracy ([\d., ]+) %", text)
    }
    assert len(curves) == 6
    single = [curves["lit_robust, fp32"], curves["Foolbox"], curves["torchattacks"]]
    # Half a point of 40 images is less than one: the same images fall.
    assert single[0] == single[1] == single[2]
    last, first, peer = (
        curves["lit_robust, fp32, broken at the last iterate"],
        curves["lit_robust, fp32, broken at any step"],
        curves["Foolbox, broken at the last iterate"],
    )
    assert last == peer
    assert all(a <= b for a, b in zip(first, last, strict=True))
    assert last[-1] == single[0][0]
    assert text.count("images/s") == 6


def test_peers_get_the_same_network(toy):
    ours = build_classifier(NETWORK).eval()
    images, labels = read_images(toy / "imagenet", "val", 5, WHOLE)
    assert (images.dtype, images.shape, labels.shape) == (torch.float32, (5, 3, 48, 48), (5,))
    assert 0 <= images.min() < images.max() <= 1
    with torch.no_grad():
        torch.testing.assert_close(PlainClassifier(ours).eval()(images), ours(images), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="has 41 images in val, fewer than 42"):
        read_images(toy / "imagenet", "val", 42, WHOLE)


def test_a_norm_without_peers_is_refused(tmp_path):
    with pytest.raises(UserError, match="Foolbox alone attacks in l1, .* set the attack's norm to l2 or linf"):
        bench_attacks(tmp_path, "val", WHOLE, NETWORK, PGD(norm="l1", eps=12.0), [12.0], 40, 16, 1, "fp32")
