"""Plans of batches, against what must hold of any order: counts, coverage, and what it may depend on."""

import tracemalloc
from itertools import islice, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_robust.core.seeds import stream_seed
from lit_robust.data.loading.order import BlockShuffle, EvaluationOrder, EvaluationStretches, GlobalShuffle, Lanes

SHARDS = [[40], [7, 33], [9, 11, 8, 2, 10], [1] * 40]


def shuffles(lengths, batch_size, world, seed=3, lanes=12, block=8):
    """Return the plans of all ranks, one list a kind of shuffle."""
    lengths = np.array(lengths)
    count = int(lengths.sum())
    ranks = range(world)
    return [
        [GlobalShuffle(count=count, batch_size=batch_size, seed=seed, rank=rank, world=world) for rank in ranks],
        [
            BlockShuffle(
                lengths=lengths,
                batch_size=batch_size,
                block=block,
                seed=seed,
                lanes=Lanes(lanes, 2),
                rank=rank,
                world=world,
            )
            for rank in ranks
        ],
    ]


@pytest.mark.parametrize(("lengths", "world", "batch_size"), list(product(SHARDS, (1, 2, 3), (1, 4, 6))))
def test_training_gives_every_rank_the_same_number_of_full_batches_of_different_samples(lengths, world, batch_size):
    for plans in shuffles(lengths, batch_size, world):
        drawn = [plan.of_epoch(1) for plan in plans]
        assert {numbers.shape for numbers, _ in drawn} == {(40 // (batch_size * world), batch_size)}
        assert all(mask.all() for _, mask in drawn)
        together = np.concatenate([numbers.ravel() for numbers, _ in drawn])
        assert len(set(together.tolist())) == len(together)
        assert set(together.tolist()) <= set(range(40))


def test_training_order_follows_from_seed_and_epoch_alone():
    for first, again, other in zip(
        shuffles([20, 20], 4, 1), shuffles([20, 20], 4, 1), shuffles([20, 20], 4, 1, seed=4), strict=True
    ):
        orders = [first[0].of_epoch(epoch)[0].tolist() for epoch in range(5)]
        assert orders == [again[0].of_epoch(epoch)[0].tolist() for epoch in range(5)]
        assert len({str(order) for order in orders}) == 5
        assert other[0].of_epoch(0)[0].tolist() != orders[0]
        assert first[0].order != other[0].order


def test_an_order_is_that_of_its_named_stream():
    """Else a checkpoint of the middle of an epoch would go on with other samples than those that are left."""
    one = {"batch_size": 10, "seed": 3, "rank": 0, "world": 1}
    expected = np.random.Generator(np.random.PCG64(stream_seed(3, "order", 2)))
    assert GlobalShuffle(count=10, **one).of_epoch(2)[0][0].tolist() == expected.permutation(10).tolist()
    expected = np.random.Generator(np.random.PCG64(stream_seed(3, "order", 2)))
    shards = BlockShuffle(lengths=np.ones(10, dtype=int), block=1, lanes=Lanes(1, 1), **one).of_epoch(2)[0][0]
    assert shards.tolist() == expected.permutation(10).tolist()


def test_two_ranks_cut_the_global_shuffle_as_one_rank_does():
    whole = GlobalShuffle(count=64, batch_size=8, seed=1, rank=0, world=1).of_epoch(0)[0]
    halves = [GlobalShuffle(count=64, batch_size=4, seed=1, rank=rank, world=2).of_epoch(0)[0] for rank in range(2)]
    for batch, left, right in zip(whole, *halves, strict=True):
        assert sorted(batch.tolist()) == sorted([*left.tolist(), *right.tolist()])


def block_shuffle(lengths, batch_size, block=2048, lanes=12, rank=0, world=1):
    one = {"batch_size": batch_size, "rank": rank, "world": world}
    return BlockShuffle(lengths=np.array(lengths), block=block, seed=0, lanes=Lanes(lanes, 1), **one)


def test_a_lane_keeps_to_few_shards_at_a_time():
    plan = block_shuffle([100] * 60, batch_size=10, block=200, lanes=4)
    numbers, _ = plan.of_epoch(0)
    for lane in range(4):
        shards = [set((numbers[place] // 100).tolist()) for place in range(lane, len(numbers), 4)]
        # 200 neighbours lie in two groups at most, of two shards each.
        assert all(len(set().union(*shards[begin : begin + 20])) <= 4 for begin in range(len(shards)))
        # A lane passes each shard once.
        seen = {shard: [i for i, found in enumerate(shards) if shard in found] for shard in set().union(*shards)}
        assert all(places[-1] - places[0] < 20 for places in seen.values())


def together(plan):
    """Return the largest part of a batch that shares a batch in the next epoch, too; the mean over all batches."""
    first, second = plan.of_epoch(0)[0], plan.of_epoch(1)[0]
    places = np.full(max(first.max(), second.max()) + 1, len(second))
    places[second] = np.arange(len(second))[:, None]
    return np.mean([np.bincount(row)[: len(second)].max() / len(row) for row in places[first]])


@pytest.mark.parametrize(
    ("shards", "samples", "batch_size", "largest"),
    [
        # An order that mixes everything has 0.13, 0.12, 0.04 and 0.01.
        (1, 700, 64, 0.16),
        (2, 500, 64, 0.16),
        (13, 1000, 64, 0.08),
        (1281, 1000, 256, 0.08),
    ],
)
def test_other_samples_share_a_batch_in_every_epoch(shards, samples, batch_size, largest):
    assert together(block_shuffle([samples] * shards, batch_size)) < largest
    assert together(block_shuffle([samples] * shards, batch_size // 2, world=2)) < largest * 2


def test_no_two_blocks_are_shuffled_alike():
    plan = block_shuffle([500] * 4, batch_size=10, block=500, lanes=1)
    numbers = plan.of_epoch(0)[0].reshape(4, 500)
    # In a shuffled block neighbours follow each other about once.
    assert all(np.mean(np.diff(block) == 1) < 0.02 for block in numbers)
    assert len({tuple(block % 500) for block in numbers}) == 4
    assert len({block[0] // 500 for block in numbers}) == 4


@pytest.mark.parametrize(("lanes", "block_batches"), [(12, 12), (12, 4), (3, 9), (4, 1)])
def test_the_lanes_come_to_their_new_blocks_in_turn(lanes, block_batches):
    cut = Lanes(lanes, block_batches)
    turns = range(1, 4 * block_batches)
    begun = [
        sum(cut.block(turn * lanes + lane).start == turn * lanes + lane for lane in range(lanes)) for turn in turns
    ]
    assert set(begun) == {lanes // block_batches or int(lanes < block_batches), *([0] if lanes < block_batches else [])}


@given(count=st.integers(1, 60), lanes=st.integers(1, 12), block=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_every_batch_is_in_one_block_of_its_lane(count, lanes, block):
    cut = Lanes(lanes, block)
    for place in range(count):
        places = cut.block(place)
        assert place in places
        assert len(places) <= block
        assert all(other % lanes == place % lanes for other in places)
        assert all(cut.block(other) == places for other in places)


@pytest.mark.parametrize(
    ("count", "world", "batch_size", "lanes"), list(product((1, 2, 5, 23, 24, 25), (1, 2, 3), (1, 4, 7), (1, 3, 12)))
)
def test_evaluation_counts_every_sample_once(count, world, batch_size, lanes):
    kinds = [
        [
            EvaluationOrder(numbers=np.arange(count), batch_size=batch_size, rank=rank, world=world)
            for rank in range(world)
        ],
        [
            EvaluationStretches(count=count, batch_size=batch_size, rank=rank, world=world, lanes=Lanes(lanes, 1))
            for rank in range(world)
        ],
    ]
    for plans in kinds:
        drawn = [plan.of_epoch(0) for plan in plans]
        assert {numbers.shape for numbers, _ in drawn} == {(plans[0].batches, batch_size)}
        counted = np.concatenate([numbers[mask] for numbers, mask in drawn])
        assert sorted(counted.tolist()) == list(range(count))
        assert all(numbers.min() >= 0 and numbers.max() < count for numbers, _ in drawn)
    assert kinds[0][0].batches == -(-count // (batch_size * world)), "no batch holds copies alone"


def test_the_global_order_is_told_from_one_with_other_steps():
    orders = [shuffles([40], batch_size, world)[0][0].order for batch_size, world in ((4, 3), (6, 2), (4, 2))]
    # Four samples on each of three ranks and six on each of two are the same steps.
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] == {"samples": 40, "samples_a_step": 12, "seed": 3, "shuffle": "global"}


def test_requests_go_on_where_they_are_told_to():
    plan = shuffles([40], 4, 1)[0][0]
    whole = list(plan.requests(2))
    assert [request.place for request in whole] == list(range(10))
    rest = list(plan.requests(2, start=7))
    assert [r.numbers.tolist() for r in rest] == [r.numbers.tolist() for r in whole[7:]]
    assert {request.epoch for request in rest} == {2}


@pytest.mark.parametrize("kind", ["global", "block", "evaluation", "stretches"])
def test_an_epoch_of_a_million_batches_takes_little_memory(kind):
    lengths = np.full(1024, 1251)  # ImageNet in timm's 1,024 shards, at batch size 1.
    one = {"batch_size": 1, "rank": 0, "world": 1}
    plan = {
        "global": GlobalShuffle(count=int(lengths.sum()), seed=0, **one),
        "block": BlockShuffle(lengths=lengths, block=2048, seed=0, lanes=Lanes(12, 1024), **one),
        "evaluation": EvaluationOrder(numbers=np.arange(int(lengths.sum())), **one),
        "stretches": EvaluationStretches(count=int(lengths.sum()), lanes=Lanes(12, 1), **one),
    }[kind]
    tracemalloc.start()
    try:
        served = sum(len(request.numbers) for request in islice(plan.requests(0), 1000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert served == 1000
    # Few arrays of 10 MB each; a list of all requests alone is above 400 MB.
    assert peak < 80e6


def test_the_state_of_an_order_in_blocks_tells_shards_of_other_lengths():
    orders = [shuffles(lengths, 4, 1)[1][0].order for lengths in ([7, 33], [7, 33], [33, 7], [7, 30, 3])]
    assert orders[0] == orders[1]
    assert len({str(order) for order in orders}) == 3
