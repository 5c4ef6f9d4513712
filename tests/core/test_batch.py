"""Parts of a batch: the rows that were asked for, and no copy where that is all of them."""

import weakref

import numpy as np
import pytest
import torch

from lit_robust.core.batch import Batch, as_batch
from lit_robust.core.errors import UserError


def batch(valid: list[bool]) -> Batch:
    index = torch.arange(len(valid))
    return Batch(torch.rand(len(valid), 3, 4, 4), index + 10, index, torch.tensor(valid), group=index + 20)


def test_a_part_holds_the_rows_of_every_field() -> None:
    whole = batch([True, False, True])
    part = whole.select(torch.tensor([False, True, True]))
    assert torch.equal(part.image, whole.image[1:])
    assert part.group is not None
    fields = [field.tolist() for field in (part.label, part.index, part.valid, part.group)]
    assert fields == [[11, 12], [1, 2], [False, True], [21, 22]]
    assert part.texture is None
    assert len(whole.select(torch.zeros(3, dtype=torch.bool))) == 0


def test_all_of_a_batch_is_the_batch_itself() -> None:
    whole = batch([True, True])
    assert whole.select(torch.ones(2, dtype=torch.bool)) is whole
    assert whole.valid_part is whole


def test_the_valid_part_is_taken_once_and_another_batch_has_its_own() -> None:
    whole = batch([True, False, True])
    assert whole.valid_part.index.tolist() == [0, 2]
    assert whole.valid_part is whole.valid_part
    assert whole.to("cpu").valid_part is not whole.valid_part


def test_a_batch_is_freed_with_its_last_use_and_not_by_a_later_collection() -> None:
    for valid in ([True, True], [True, False]):
        whole = batch(valid)
        assert len(whole.valid_part) == sum(valid)
        seen = weakref.ref(whole)
        del whole
        assert seen() is None


IMAGES = torch.rand(2, 3, 4, 4)


@pytest.mark.parametrize(
    "given",
    [
        (IMAGES, torch.tensor([5, 7])),
        [IMAGES, torch.tensor([5, 7], dtype=torch.uint8)],
        (IMAGES.double(), [5, 7], "path"),
        (list(IMAGES), (5, 7)),
        (IMAGES.numpy(), np.array([5, 7])),
        {"image": IMAGES, "label": torch.tensor([5, 7])},
        {"pixel_values": IMAGES, "labels": torch.tensor([5, 7]), "id": [1, 2]},
    ],
)
def test_what_loaders_give_is_numbered_as_it_comes(given) -> None:
    taken = as_batch(given, first=3)
    assert torch.equal(taken.image, IMAGES)
    assert (taken.label.tolist(), taken.index.tolist(), taken.valid.tolist()) == ([5, 7], [3, 4], [True, True])
    images, labels = taken
    assert images is taken.image
    assert labels is taken.label


def test_bytes_become_fractions_and_the_numbers_of_ranks_interlock() -> None:
    grey = torch.full((2, 3, 4, 4), 51, dtype=torch.uint8)
    first, second = (as_batch((grey, [0, 1]), first=2, rank=rank, world=2) for rank in (0, 1))
    assert first.image.unique().tolist() == [pytest.approx(0.2)]
    assert (first.index.tolist(), second.index.tolist()) == ([4, 6], [5, 7])
    assert as_batch(first, first=9) is first


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (IMAGES, "A batch is a Tensor, in which images and labels cannot be recognised"),
        ((IMAGES,), "A batch is a tuple"),
        ({"x": IMAGES, "label": [1, 2]}, "A batch has x, label: rename"),
        ((IMAGES.long(), [1, 2]), "images of torch.int64 and shape"),
        ((IMAGES[0], [1, 2]), r"shape \[3, 4, 4\]"),
        ((IMAGES, [1, 2, 3]), r"labels of torch.int64 and shape \[3\] for 2 images"),
        ((IMAGES, torch.eye(2)), "labels of torch.float32"),
        (([IMAGES[0], IMAGES[0, :, :2]], [1, 2]), "resize or crop"),
        ((["a", "b"], [1, 2]), "image is of type list: give a tensor"),
        ((torch.zeros(2, 8, 9, 3), [1, 2]), r"channels are last: give .* images.permute\(0, 3, 1, 2\)"),
    ],
)
def test_what_is_no_batch_is_refused(given, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        as_batch(given, first=0)
