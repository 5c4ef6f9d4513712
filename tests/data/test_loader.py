"""The loaders' order, counts and state, on a set of samples that are drawn instead of read."""

import dataclasses
import io
import multiprocessing
import os
import signal
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from lit_robust.core.batch import Batch
from lit_robust.core.errors import DataError, UserError
from lit_robust.data.loading.blocks import batch_memory
from lit_robust.data.loading.loader import PlannedLoader
from lit_robust.data.loading.order import EvaluationOrder, GlobalShuffle, Request
from lit_robust.data.loading.samples import Encoded, EvaluationSamples, Source, TrainingSamples
from lit_robust.data.loading.transforms import EvaluationCrop, TrainingCrop

WHOLE = EvaluationCrop(resize=None, crop=None)


class Drawn(Source):
    """Images whose pixels are their number; some broken, some wider."""

    def __init__(self, broken=(), wider=()):
        self.broken = broken
        self.wider = wider

    def fetch(self, request):
        numbers = request.numbers.tolist()
        return Encoded(
            read=lambda place: self.file(numbers[place]),
            name=lambda place: f"sample{numbers[place]}",
            label=request.numbers % 3,
        )

    def file(self, number):
        if number in self.broken:
            return b"\xff\xd8\xffno image"
        file = io.BytesIO()
        Image.new("RGB", (2 + (number in self.wider), 2), (number,) * 3).save(file, "PNG")
        return file.getvalue()


class OneBatch(Dataset):
    """One batch, again and again."""

    def __init__(self, batch):
        self.batch = batch

    def __getitem__(self, number):
        return self.batch

    def __len__(self):
        return 1


def shuffle(count=10, batch_size=4):
    return GlobalShuffle(count=count, batch_size=batch_size, seed=0, rank=0, world=1)


def in_order(count, batch_size):
    return EvaluationOrder(numbers=np.arange(count), batch_size=batch_size, rank=0, world=1)


def loader(plan, workers=0, source=None, on_error="error", start_method=None):
    samples = EvaluationSamples(source or Drawn(), WHOLE, on_error)
    return PlannedLoader(samples, plan, workers, False, keeps_workers=True, start_method=start_method)


def indices(batches):
    return [batch.index.tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_follow_the_plan_in_every_epoch(workers):
    planned = loader(shuffle(), workers)
    for epoch in (0, 1, 0):
        planned.sampler.set_epoch(epoch)
        assert indices(planned) == shuffle().of_epoch(epoch)[0].tolist()


def test_batches_hold_the_samples_labels_and_pixels():
    batch = next(iter(loader(shuffle())))
    assert torch.equal(batch.label, batch.index % 3)
    assert torch.equal(batch.image[:, 0, 0, 0].long(), batch.index)
    assert batch.image.dtype == torch.uint8
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    assert batch.valid.all()
    assert batch.broken is None


class Unnamed(Drawn):
    """Images whose name nobody may ask for."""

    def fetch(self, request):
        return dataclasses.replace(super().fetch(request), name=lambda place: 1 / 0)


def test_names_are_composed_for_errors_alone():
    assert len(next(iter(loader(shuffle(), source=Unnamed())))) == 4
    with pytest.raises(ZeroDivisionError):
        list(loader(shuffle(), source=Unnamed(broken=range(10))))


@pytest.mark.parametrize("parts", [("group",), ("texture", "broken")])
def test_a_batch_from_a_worker_has_every_part(parts):
    mask = torch.tensor([True, False])
    columns = {"group": torch.tensor([7, 8]), "texture": torch.tensor([9, -1]), "broken": ~mask}
    image = torch.arange(24, dtype=torch.uint8).view(2, 2, 2, 3).permute(0, 3, 1, 2)
    given = {part: columns[part] for part in parts}
    sent = Batch(image=image, label=torch.tensor([3, -1]), index=torch.tensor([1 << 40, 0]), valid=mask, **given)
    loader = DataLoader(OneBatch(sent), batch_size=None, num_workers=1, multiprocessing_context="fork")
    found = next(iter(loader))
    for field in dataclasses.fields(Batch):
        expected, part = getattr(sent, field.name), getattr(found, field.name)
        assert (part is None) == (expected is None)
        if part is not None:
            assert part.dtype == expected.dtype
            assert torch.equal(part, expected)
            assert part.is_shared() == (field.name == "image")
            part[0] = part[1]  # Only the main process has it now.
    assert found.image.stride() == image.stride()


@pytest.mark.parametrize("kept", [1, 12])
def test_workers_batches_are_those_of_the_main_process(kept):
    plan = shuffle(50)
    expected = list(loader(plan))
    recent = []
    for number, batch in enumerate(loader(plan, workers=2)):
        recent = [*recent, (number, batch)][-kept:]
        for place, held in recent:
            assert torch.equal(held.image, expected[place].image)
            assert torch.equal(held.label, expected[place].label)
            assert torch.equal(held.index, expected[place].index)
            assert held.image.stride() == expected[place].image.stride()


@pytest.mark.parametrize("workers", [(0, 0), (0, 2), (2, 0)])
def test_resumes_at_the_very_next_batch(workers):
    whole = loader(shuffle(40), workers[0])
    whole.sampler.set_epoch(3)
    iterator = iter(whole)
    before = [next(iterator).index.tolist() for _ in range(4)]
    state = whole.state_dict()
    rest = indices(iterator)
    assert state == {"epoch": 3, "batches": 4, "samples": 40, "samples_a_step": 4, "seed": 0, "shuffle": "global"}
    resumed = loader(shuffle(40), workers[1])
    resumed.load_state_dict(state)
    # Lightning sets the epoch after it has made the iterator.
    iterator = iter(resumed)
    resumed.sampler.set_epoch(3)
    assert indices(iterator) == rest
    resumed.sampler.set_epoch(4)
    assert indices(resumed) == shuffle(40).of_epoch(4)[0].tolist()
    assert len(before) + len(rest) == len(whole)


def test_a_finished_epoch_is_followed_by_the_next():
    first = loader(shuffle(40))
    indices(first)
    resumed = loader(shuffle(40))
    resumed.load_state_dict(first.state_dict())
    assert resumed.sampler.epoch == 1
    assert indices(resumed) == shuffle(40).of_epoch(1)[0].tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_workers_error_is_one_sentence(workers):
    planned = loader(in_order(20, 4), workers, Drawn(broken=[13]))
    with pytest.raises(DataError) as caught:
        indices(planned)
    assert str(caught.value).startswith("The image of sample13 is none of JPEG")
    assert "\n" not in str(caught.value)


def test_a_batch_that_no_memory_holds_is_a_sentence():
    with pytest.raises(
        UserError, match=r"no memory for a batch of 1000000000 images of 224 x 224 px, 150528.0 GB: make"
    ):
        batch_memory((10**9, 224, 224, 3))


def test_images_of_two_sizes_are_refused():
    samples = EvaluationSamples(Drawn(wider=[14]), WHOLE)
    with pytest.raises(DataError, match="sample14 is 3 x 2 px: set resize and crop"):
        samples[Request(0, 0, np.array([11, 14]), np.array([True, True]))]


@pytest.mark.parametrize("on_error", ["error", "skip"])
@pytest.mark.parametrize(
    ("crop", "expected"),
    [
        ("none", "The image sample14 is 3 x 2 px, but without a crop all training images must be 2 x 2 px: set"),
        ("padded", "The image sample11 is 2 x 2 px, too small for a crop of 16 px after 2 px of padding: set"),
    ],
)
def test_training_images_of_a_wrong_size_are_named(crop, expected, on_error):
    training = TrainingCrop(crop, size=2 if crop == "none" else 16)
    samples = TrainingSamples(Drawn(wider=[14]), training, 0, on_error)
    # A setting that does not fit the images is no broken image: it is never passed over.
    with pytest.raises(DataError, match=expected):
        samples[Request(0, 0, np.array([11, 14]), np.array([True, True]))]


def test_broken_images_are_left_out_when_asked_for_and_counted(caplog):
    planned = loader(in_order(10, 4), 0, Drawn(broken=[0, 6, 9]), on_error="skip")
    batches = list(planned)
    valid = [number for batch in batches for number in batch.index[batch.valid].tolist()]
    assert valid == [1, 2, 3, 4, 5, 7, 8]
    assert sum(int(batch.broken.sum()) for batch in batches) == 3
    assert "3 images of epoch 0 could not be read" in caplog.text
    # A copy of a good image of the batch stands where a broken one was, with that image's label.
    assert batches[0].image[0, 0, 0, 0] == 1
    assert batches[0].label[0] == 1
    # Padding is not counted as broken: sample 9 fills up the last batch twice more.
    assert batches[2].broken.tolist() == [False, True, False, False]


def test_a_batch_of_broken_images_counts_for_nothing():
    batches = list(loader(in_order(8, 4), 0, Drawn(broken=range(4, 8)), on_error="skip"))
    assert batches[1].broken.all()
    assert not batches[1].valid.any()
    assert batches[1].image.shape == (4, 3, 224, 224)


def test_a_training_batch_of_broken_images_is_an_error_all_the_same():
    samples = TrainingSamples(Drawn(broken=range(4, 8)), TrainingCrop(crop="none", size=2), 0, "skip")
    with pytest.raises(DataError, match="No image of a whole batch can be read, the first is sample4"):
        samples[Request(0, 0, np.arange(4, 8), np.ones(4, dtype=bool))]


def test_a_state_of_another_batch_size_is_refused():
    first = loader(shuffle(40, 4))
    next(iter(first))
    with pytest.raises(UserError, match="samples_a_step 4, but this run has 8"):
        loader(shuffle(40, 8)).load_state_dict(first.state_dict())


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_every_way_to_start_a_process_gives_the_same(start_method):
    planned = loader(in_order(6, 2), 1, start_method=start_method)
    batches = list(planned)
    assert indices(batches) == [[0, 1], [2, 3], [4, 5]]
    assert batches[2].image[:, 0, 0, 0].tolist() == [4, 5]


def test_a_program_ends_with_a_loader_left_open():
    """Python's exit asks the loader's processes by a signal that they do not hear, and waits for them."""
    left = []

    def leave():
        left.append(iter(loader(shuffle(), workers=2)))
        next(left[0])

    program = multiprocessing.get_context("fork").Process(target=leave)
    program.start()
    program.join(30)
    code = program.exitcode
    program.kill()
    assert code == 0


def test_a_closed_loader_ends_its_processes_and_reads_again():
    before, threads = set(multiprocessing.active_children()), set(threading.enumerate())
    planned = loader(shuffle(), workers=2)
    iteration = iter(planned)
    assert next(iteration).index.tolist() == shuffle().of_epoch(0)[0].tolist()[0]
    assert len(set(multiprocessing.active_children()) - before) == 2
    planned.close()
    assert set(multiprocessing.active_children()) == before
    for thread in set(threading.enumerate()) - threads:
        thread.join(20)
        assert not thread.is_alive()
    with pytest.raises(UserError, match="A loader was closed while it was read, .*: begin to read it anew"):
        next(iteration)
    # Two at a time, of which one is given up; each has processes of its own.
    planned = PlannedLoader(EvaluationSamples(Drawn(), WHOLE), shuffle(), 1, False, False)
    first, second = iter(planned), iter(planned)
    assert next(first).index.tolist() == next(second).index.tolist()
    first.close()
    assert len(set(multiprocessing.active_children()) - before) == 1
    assert len(list(second)) == 1
    assert set(multiprocessing.active_children()) == before
    assert indices(planned) == shuffle().of_epoch(0)[0].tolist()
    planned.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_processes_of_a_loader_do_not_hear_what_their_parent_may_answer(number):
    """A terminal's Ctrl-C, and a queue's SIGTERM, reach every process of a job."""
    before = set(multiprocessing.active_children())
    planned = loader(shuffle(), workers=2)
    iteration = iter(planned)
    first = next(iteration)
    for process in set(multiprocessing.active_children()) - before:
        os.kill(process.pid, number)
    rest = [batch.index.tolist() for batch in iteration]
    assert [first.index.tolist(), *rest] == shuffle().of_epoch(0)[0].tolist()
    planned.close()
