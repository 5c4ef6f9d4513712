"""Coverage of intervals, against SciPy's binomial, and by worlds whose intervals hold always, never or in between."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from lit_robust.bench import coverage
from lit_robust.bench.coverage import WORLDS, coverage_table, paired_coverage, wilson_coverage, world_coverage
from lit_robust.cli import main


@pytest.mark.parametrize(("share", "count"), [(0.02, 50), (0.5, 37), (0.9, 200)])
def test_wilsons_is_the_sum_over_the_binomial_distribution(share, count):
    held = [binomtest(right, count).proportion_ci(0.95, "wilson") for right in range(count + 1)]
    expected = sum(binom.pmf(k, count, share) for k, ends in enumerate(held) if ends.low <= share <= ends.high)
    assert wilson_coverage(share, count) == pytest.approx(expected, abs=1e-9)


def test_a_paired_difference_is_held_by_its_intervals():
    assert 0.93 < paired_coverage(0.2, 0.1, 100, 4000, 0) < 0.97
    assert paired_coverage(0.2, 0.1, 100, 50, 0) == paired_coverage(0.2, 0.1, 100, 50, 0)


def normal(scale, random, name, draws):
    """The mean of 25 samples, whose bootstrap draws are ``scale`` as wide as they ought to be."""
    value = 0.5 + random.normal() / 100
    return {"mean": value}, {
        "mean": value + scale * np.random.default_rng([0, *name.encode()]).normal(size=draws) / 100
    }


def test_what_is_too_narrow_is_seen():
    expected = {0.2: 0.305, 1.0: 0.95, 5.0: 1.0}  # Of the normal distribution within 1.96 scale.
    for scale, share in expected.items():
        found = world_coverage(lambda *words, scale=scale: normal(scale, *words), "x", 4000, 400, 0)["mean"]
        assert found == pytest.approx(share, abs=0.04)


def test_every_world_has_draws_of_its_measures(monkeypatch, capsys):
    monkeypatch.setattr(coverage, "TRUTHS", 2)
    for world in WORLDS.values():
        found, drawn = world(np.random.default_rng(0), "x", 40)
        for key, value in found.items():
            assert abs(np.mean(drawn[key]) - value) < 6 * np.std(drawn[key])
    monkeypatch.setattr(coverage, "WORLDS", dict(list(WORLDS.items())[:1]))
    assert main(["bench", "intervals", "--repeats", "3", "--draws", "20"]) == 0
    table = capsys.readouterr().out.strip()
    assert table == coverage_table(3, 20, 0)
    assert "| aupr | a fifth are positives | 200 | " in table
    assert "| fraction, Wilson | truth 0.5 | 500 | 94.6, exact |" in table
