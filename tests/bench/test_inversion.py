"""The inversion benchmark: both search alike, and the peer's loop is the plain one. No time is asserted."""

import re

import torch

from lit_robust.analysis.ascent import Match, Settings, ascend, noise_starts
from lit_robust.analysis.representation import Representation
from lit_robust.bench.inversion import _last_linear, bench_inversion, madrylab
from lit_robust.bench.measuring import PlainClassifier
from lit_robust.models import Network, build_classifier

NETWORK = Network("lit_robust/resnet_tiny", 8)


def test_both_come_as_near():
    text = bench_inversion(NETWORK, 16, 3, 4, 1)
    near = {name: float(value) for name, value in re.findall(r"\| ([^|]+): relative distance ([\d.]+)", text)}
    assert len(near) == 3
    assert abs(near["lit_robust, fp32"] - near["MadryLab's attacker with a custom loss, fp32"]) < 1e-3
    assert text.count("image-steps/s") == 3


def test_our_search_goes_where_the_peers_goes():
    torch.manual_seed(0)
    network = build_classifier(NETWORK).eval()
    starts, targets = noise_starts((3, 16, 16), [0, 1, 2], 0), noise_starts((3, 16, 16), [0, 1, 2], 5)
    represent = Representation.of(network, starts[:1], straight_through=False)
    goals = represent(targets).detach()
    ours = ascend(represent, Match(goals), starts, Settings(step_size=0.5, steps=6)).images
    plain = PlainClassifier(network).eval()
    torch.testing.assert_close(ours, madrylab(plain, _last_linear(plain), goals, starts, 0.5, 6), rtol=0, atol=1e-4)
