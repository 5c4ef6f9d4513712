"""Parts of a batch: the rows that were asked for, and no copy where that is all of them."""

import weakref

import torch

from lit_robust.core.batch import Batch


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
