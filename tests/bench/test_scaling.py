"""A loader on more cores, simulated: closed forms of a queue."""

import pytest

from lit_robust.bench.scaling import Costs, scaling_table, simulate


@pytest.mark.parametrize("processes", [1, 3, 8, 64])
@pytest.mark.parametrize("taken", [0.0, 0.01, 0.3])
def test_the_slower_side_sets_the_rate(processes, taken):
    """Batches that all cost the same come as fast as all processes make them, or as the main one takes them."""
    found = simulate(Costs([0.2], taken, 64), processes, 20_000)
    assert found == pytest.approx(64 / max(0.2 / processes, taken), rel=0.01)


def test_a_slow_batch_holds_up_those_behind_it_for_two_batches_at_most():
    """Of two processes one is three times as slow: batches are taken in order, so the slow one sets the pace of both.

    Were they taken as they come, the rate would be that of 1 / 0.1 + 1 / 0.3 batches a second.
    """
    found = simulate(Costs([0.1, 0.3], 0.0, 1), 2, 20_000)
    assert found == pytest.approx(2 / 0.3, rel=0.01)


def test_the_table_names_its_assumptions_and_what_a_node_needs():
    said = scaling_table(Costs([0.064, 0.064], 0.001, 64))  # 1 ms an image, 1000 images/s a core.
    assert "an image costs 1 ms of a core, a batch of 64 1 ms of the main process" in said
    assert "| 1 | 985 | 100 % |" in said or "| 1 | 1,000 | 100 % |" in said
    assert "a standard training takes 20,800 images/s and 24 loading processes" in said
    assert "Madry's of 7 steps takes 3,671 images/s and 8 loading processes" in said
    assert "Assumed: a core for each process" in said
