"""The loaders' order, counts and state, on a set of samples that are drawn instead of read."""

import numpy as np
import pytest
import torch

from lit_robust.data.loader import PlannedLoader, Request, Samples
from lit_robust.data.plan import evaluation_plan, training_plan
from lit_robust.errors import DataError, UserError


class Reader:
    """Stands for an indexed reader."""

    def key(self, row):
        return f"sample{row}"

    name = key


class Drawn(Samples):
    """Images whose pixels are their number."""

    def _image(self, epoch, number):
        return torch.full((3, 2, 2), number, dtype=torch.uint8)

    def prepare(self, image, epoch, number):
        raise AssertionError


class Flawed(Drawn):
    """The same, but sample 13 is broken and sample 14 is wider."""

    def _image(self, epoch, number):
        if number == 13:
            raise DataError("sample13 is broken: draw it again.")
        return torch.full((3, 2, 2 + (number == 14)), number, dtype=torch.uint8)


def loader(count=10, batch_size=4, world=1, rank=0, workers=0):
    samples = Drawn(Reader(), np.arange(count), np.arange(count) % 3)

    def plan(epoch):
        every = np.ones(batch_size, dtype=bool)
        return [Request(epoch, n, every) for n in training_plan(count, batch_size, 0, epoch, rank, world)]

    return PlannedLoader(samples, plan, workers, False, keeps_workers=True, order={"samples_a_step": batch_size})


def indices(batches):
    return [batch.index.tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_follow_the_plan_in_every_epoch(workers):
    planned = loader(workers=workers)
    for epoch in (0, 1, 0):
        planned.sampler.set_epoch(epoch)
        assert indices(planned) == training_plan(10, 4, 0, epoch, 0, 1).tolist()


def test_batches_hold_the_samples_labels_and_pixels():
    batch = next(iter(loader()))
    assert torch.equal(batch.label, batch.index % 3)
    assert torch.equal(batch.image[:, 0, 0, 0].long(), batch.index)
    assert batch.image.dtype == torch.uint8
    assert batch.valid.all()


@pytest.mark.parametrize("workers", [(0, 0), (0, 2), (2, 0)])
def test_resumes_at_the_very_next_batch(workers):
    whole = loader(count=40, workers=workers[0])
    whole.sampler.set_epoch(3)
    iterator = iter(whole)
    before = [next(iterator).index.tolist() for _ in range(4)]
    state = whole.state_dict()
    rest = indices(iterator)
    assert state == {"epoch": 3, "batches": 4, "samples_a_step": 4}
    resumed = loader(count=40, workers=workers[1])
    resumed.load_state_dict(state)
    # Lightning sets the epoch after it has made the iterator.
    iterator = iter(resumed)
    resumed.sampler.set_epoch(3)
    assert indices(iterator) == rest
    resumed.sampler.set_epoch(4)
    assert indices(resumed) == training_plan(40, 4, 0, 4, 0, 1).tolist()
    assert len(before) + len(rest) == len(whole)


def test_a_finished_epoch_is_followed_by_the_next():
    first = loader(count=40)
    indices(first)
    resumed = loader(count=40)
    resumed.load_state_dict(first.state_dict())
    assert resumed.sampler.epoch == 1
    assert indices(resumed) == training_plan(40, 4, 0, 1, 0, 1).tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_workers_error_is_one_sentence(workers):
    samples = Flawed(Reader(), np.arange(20), np.arange(20))
    numbers, valid = evaluation_plan(20, 4, 0, 1)
    planned = PlannedLoader(
        samples, lambda epoch: [Request(epoch, *r) for r in zip(numbers, valid, strict=True)], workers, False, False, {}
    )
    with pytest.raises(DataError) as caught:
        indices(planned)
    assert str(caught.value) == "sample13 is broken: draw it again."


def test_images_of_two_sizes_are_refused():
    samples = Flawed(Reader(), np.arange(20), np.arange(20))
    with pytest.raises(DataError, match="sample14 is 3 x 2 px: set resize and crop"):
        samples[Request(0, np.array([11, 14]), np.array([True, True]))]


def test_a_state_of_another_batch_size_is_refused():
    first = loader(count=40, batch_size=4)
    next(iter(first))
    with pytest.raises(UserError, match="samples_a_step 4, but this run has 8"):
        loader(count=40, batch_size=8).load_state_dict(first.state_dict())
