import numpy as np
import pytest

from lit_robust.data.plan import evaluation_plan, training_plan


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 5, 31, 96, 97])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_evaluation_counts_every_sample_once(world, count, batch_size):
    plans = [evaluation_plan(count, batch_size, rank, world) for rank in range(world)]
    seen = np.concatenate([numbers[valid] for numbers, valid in plans])
    assert sorted(seen) == list(range(count))
    assert len({numbers.shape for numbers, _ in plans}) == 1
    assert all(numbers.max() < count for numbers, _ in plans)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_training_batches_are_equal_full_and_disjoint(world):
    plans = [training_plan(101, 8, seed=3, epoch=2, rank=rank, world=world) for rank in range(world)]
    assert {plan.shape for plan in plans} == {(101 // (8 * world), 8)}
    seen = np.concatenate([plan.ravel() for plan in plans])
    assert len(set(seen)) == len(seen)
    assert seen.max() < 101


def test_global_batches_do_not_depend_on_the_number_of_ranks():
    whole = training_plan(64, 8, seed=1, epoch=0, rank=0, world=1)
    halves = [training_plan(64, 4, seed=1, epoch=0, rank=rank, world=2) for rank in range(2)]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert sorted(batch) == sorted(np.concatenate(parts))


def test_order_follows_from_seed_and_epoch():
    def order(seed, epoch):
        return training_plan(50, 5, seed, epoch, rank=0, world=1).ravel().tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
