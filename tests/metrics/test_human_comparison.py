"""Nearness to people: the numbers that bethgelab/model-vs-human prints, from counts of its decisions, and by hand.

``model_vs_human_counts.csv`` counts its ``raw-data`` (commit 93ee676): of every set and condition that enters its
means, how often each network and each person, and each two people, are right and wrong on the same images.
"""

import csv
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from lit_robust.core.errors import UserError
from lit_robust.metrics.human_comparison import MEASURES, closeness, closeness_draws, pairs_of, tables_with
from lit_robust.reference import human_conditions, human_sets
from lit_robust.report.published import published_results

# latex-report/assets/benchmark_table_accuracy.tex and benchmark_table_humanlike.tex.
PRINTED = {
    "simclr_resnet50x1": (0.596, 0.080, 0.667, 0.179),
    "resnet50": (0.559, 0.087, 0.665, 0.208),
    "bagnet33": (0.398, 0.156, 0.567, 0.137),
}


def counted():
    """Return set and observer to tables ``[people, conditions, 2, 2]``; of all pairs of people under ``people``."""
    found = defaultdict(lambda: defaultdict(dict))
    with (Path(__file__).parent / "model_vs_human_counts.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            pair = row["observer"], row["person"]
            name = row["observer"] if row["observer"] in PRINTED else "people"
            cells = [int(row[c]) for c in ("both_wrong", "person_right", "observer_right", "both_right")]
            found[row["set"], name][pair][row["condition"]] = torch.tensor(cells).view(2, 2)
    return {
        key: torch.stack([torch.stack(list(conditions.values())) for conditions in pairs.values()])
        for key, pairs in found.items()
    }


def over_the_sets(name):
    means = [closeness(tables).means() for (_, observer), tables in counted().items() if observer == name]
    assert len(means) == 17
    return {measure: float(torch.stack([mean[measure] for mean in means]).mean()) for measure in MEASURES}


@pytest.mark.parametrize("network", PRINTED)
def test_the_figures_that_model_vs_human_prints(network):
    found = over_the_sets(network)
    assert tuple(round(found[measure], 3) for measure in MEASURES) == PRINTED[network][1:]
    shares = [tables[0, :, 1].sum() / tables[0].sum() for (_, name), tables in counted().items() if name == network]
    assert round(float(torch.stack(shares).mean()), 3) == PRINTED[network][0]


def test_published_rows_are_those_figures():
    for network, row in PRINTED.items():
        results = published_results(network.replace("simclr_", "simclr-"))
        values = {one.metric: one.value for one in results if one.dataset == "model-vs-human"}
        assert tuple(values[name] for name in ("accuracy_among_categories", *MEASURES)) == row
    people = {one.metric: one.value for one in published_results("humans") if one.dataset == "model-vs-human"}
    assert {name: people[name] for name in MEASURES} == pytest.approx(over_the_sets("people"), abs=5e-5)


def test_the_conditions_that_count_are_those_of_the_counts():
    seen = defaultdict(set)
    with (Path(__file__).parent / "model_vs_human_counts.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            seen[row["set"]].add(row["condition"])
    assert set(seen) == set(human_sets())
    for name, conditions in seen.items():
        assert conditions == set(human_conditions(name, in_mean=True) or ["0"])
        assert conditions < set(human_conditions(name)) or conditions == {"0"}


def test_tables_are_counts_of_a_loop():
    random = torch.Generator().manual_seed(1)
    correct = torch.randint(2, (300,), generator=random)
    observed = torch.randint(-1, 2, (4, 300), generator=random)
    conditions = torch.randint(3, (300,), generator=random)
    expected = torch.zeros(4, 3, 2, 2, dtype=torch.int64)
    for person in range(4):
        for n in range(300):
            if observed[person, n] >= 0:
                expected[person, conditions[n], correct[n], observed[person, n]] += 1
    assert torch.equal(tables_with(correct, observed, conditions, 3), expected)
    pairs = pairs_of(observed, conditions, 3)
    both = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    assert len(pairs) == len(both)
    for tables, (a, b) in zip(pairs, both, strict=True):
        seen = observed[a] >= 0
        assert torch.equal(tables, tables_with(observed[a, seen], observed[b : b + 1, seen], conditions[seen], 3)[0])


def test_full_agreement_is_a_kappa_of_one():
    """As ``analyses.py`` has it; where both are always right, chance alone would do."""
    found = closeness(torch.tensor([[[[0, 0], [0, 5]], [[3, 0], [0, 2]], [[0, 0], [4, 0]]]]))
    assert found.error_consistency.tolist() == [[1, 1, 0]]
    assert found.accuracy_difference.tolist() == [[0, 0, 1]]
    with pytest.raises(UserError, match=r"tables has the shape \[2, 2\]"):
        closeness(torch.ones(2, 2))


def test_draws_lie_about_the_value_and_are_the_same_again():
    random = torch.Generator().manual_seed(2)
    correct = torch.randint(2, (400,), generator=random)
    observed = torch.where(torch.rand(3, 400, generator=random) < 0.7, correct, 1 - correct)
    conditions = torch.arange(400) % 2
    draws = closeness_draws(correct, observed, conditions, 2, "a test")
    means = closeness(tables_with(correct, observed, conditions, 2)).means()
    for name in MEASURES:
        assert len(draws[name]) == 1000
        assert abs(draws[name].mean() - float(means[name])) < 0.02
    again = closeness_draws(correct, observed, conditions, 2, "a test")
    assert (again["error_consistency"] == draws["error_consistency"]).all()
    # The spread of an observed consistency of 3 x 400 trials on 400 images.
    assert 0.01 < draws["observed_consistency"].std() < 0.03
