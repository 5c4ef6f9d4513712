"""Memory that a worker fills again: never while anybody still has the batch, and soon afterwards."""

import fcntl
import mmap
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from torch.utils.data import DataLoader, Dataset

from lit_robust.core.errors import UserError
from lit_robust.data.loading import blocks
from lit_robust.data.loading.blocks import KEPT, Block, Blocks, batch_memory, locks_follow_mappings


def locks_follow_memory():
    """Return what the system itself does: a fault in the code under test must not leave out that code's tests."""
    if not hasattr(os, "memfd_create"):
        return False
    own = os.memfd_create("probe")
    os.ftruncate(own, 1)
    try:
        other = os.open(f"/proc/self/fd/{own}", os.O_RDWR)
        fcntl.flock(other, fcntl.LOCK_SH)
        with mmap.mmap(other, 1):
            os.close(other)
            with pytest.raises(BlockingIOError):
                fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, pytest.fail.Exception):
        return False
    finally:
        os.close(own)
    return True


pytestmark = pytest.mark.skipif(not locks_follow_memory(), reason="the system cannot say who has a block")
SHAPE = (2, 3, 5, 7)


class Numbered(Dataset):
    """Batches whose pixels all are their number; the batch's second part says how many blocks the worker keeps."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        memory = batch_memory(SHAPE)
        memory.pixels.fill_(number)
        return memory.finished(), len(blocks._blocks(os.getpid()).kept)


def load(count):
    return DataLoader(Numbered(count), batch_size=None, num_workers=1, multiprocessing_context="fork")


def file_of(tensor):
    descriptor, _ = tensor.untyped_storage()._share_fd_cpu_()
    return os.fstat(descriptor).st_ino


@pytest.mark.parametrize(
    "alias",
    [lambda batch: batch[2:3], lambda batch: batch.numpy()[::2], lambda batch: batch.untyped_storage()],
    ids=["view", "array", "storage"],
)
def test_a_block_is_in_use_until_the_last_alias_is_gone(alias):
    block = Block(64)
    assert block.is_free()
    batch = block.hand_over()
    other = alias(batch)
    assert not block.is_free()
    del batch
    assert not block.is_free()
    del other
    assert block.is_free()


def test_each_batch_of_a_block_counts_by_itself():
    block = Block(64)
    first, second = block.hand_over(), block.hand_over()
    del first
    assert not block.is_free()
    del second
    assert block.is_free()


def test_what_was_written_is_what_is_handed_over():
    block = Block(64)
    block.content.copy_(torch.arange(64, dtype=torch.uint8))
    assert torch.equal(block.hand_over(), torch.arange(64, dtype=torch.uint8))


def hold(received, answers):
    batch = received.get()
    answers.put("have it")
    received.get()
    answers.put(int(batch.sum()))


def test_a_batch_in_another_process_is_never_overwritten():
    context = torch.multiprocessing.get_context("fork")
    received, answers = context.Queue(), context.Queue()
    process = context.Process(target=hold, args=(received, answers))
    process.start()
    kept = Blocks()
    block = kept.free(64)
    block.content.fill_(1)
    received.put(block.hand_over())
    assert answers.get(timeout=60) == "have it"
    assert not block.is_free()
    kept.free(64).content.fill_(2)
    received.put("go on")
    assert answers.get(timeout=60) == 64
    process.join(60)
    assert process.exitcode == 0
    assert block.is_free()


def test_a_forked_process_keeps_what_it_inherits():
    block = Block(64)
    batch = block.hand_over()
    context = multiprocessing.get_context("fork")
    end = context.Event()
    process = context.Process(target=end.wait, args=(60,))
    process.start()
    del batch
    assert not block.is_free()
    end.set()
    process.join(60)
    assert block.is_free()


def test_blocks_are_few_and_of_the_right_size():
    kept = Blocks()
    batches = [kept.free(64).hand_over() for _ in range(3 * KEPT)]
    assert len(kept.kept) == KEPT
    assert len({file_of(batch) for batch in batches}) == 3 * KEPT
    del batches
    used = kept.kept[0]
    assert kept.free(64) is used
    assert kept.free(65).size == 65
    assert len(kept.kept) == KEPT


def test_descriptors_are_closed():
    before = len(list(Path("/proc/self/fd").iterdir()))
    kept = Blocks()
    for size in range(1, 50):
        kept.free(size).hand_over()
    del kept
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_batches_that_are_kept_stay_as_they_were():
    batches = list(load(20))
    assert [int(batch.unique()) for batch, _ in batches] == list(range(20))
    assert max(count for _, count in batches) == KEPT


def test_a_worker_fills_the_same_memory_again():
    files, seen = set(), []
    for batch, _ in load(60):
        seen.append(int(batch.unique()))
        files.add(file_of(batch))
        del batch
    assert seen == list(range(60))
    assert len(files) <= KEPT


def test_some_batches_kept_at_random_are_right_and_the_others_too():
    random = np.random.default_rng(0)
    held = {}
    for number, (batch, _) in enumerate(load(200)):
        assert int(batch.unique()) == number
        if random.random() < 0.3:
            held[number] = batch
        elif held and random.random() < 0.5:
            held.pop(int(random.choice(list(held))))
        assert all(int(kept.unique()) == other for other, kept in held.items())


@pytest.mark.parametrize("why", ["locks", "strategy"])
def test_where_blocks_do_not_fit_memory_is_new_for_each_batch(why, monkeypatch):
    if why == "locks":
        monkeypatch.setattr(blocks, "locks_follow_mappings", lambda: False)
    else:
        monkeypatch.setattr(torch.multiprocessing, "_sharing_strategy", "file_system")
    found = list(load(8))
    assert [int(batch.unique()) for batch, _ in found] == list(range(8))
    assert all(batch.is_shared() and count == 0 for batch, count in found)


def test_a_worker_hands_over_what_was_written_and_fills_free_memory_again(monkeypatch):
    monkeypatch.setattr(blocks, "get_worker_info", lambda: "a worker's")
    blocks._blocks.cache_clear()
    first = batch_memory(SHAPE)
    first.pixels.fill_(3)
    batch = first.finished()
    assert (batch.dtype, tuple(batch.shape), batch.unique().tolist()) == (torch.uint8, SHAPE, [3])
    file = file_of(batch)
    second = batch_memory(SHAPE)
    second.pixels.fill_(4)
    assert file_of(second.finished()) != file
    assert batch.unique().tolist() == [3]
    del batch
    assert file_of(batch_memory(SHAPE).finished()) == file
    monkeypatch.setattr(blocks, "get_sharing_strategy", lambda: "file_system")
    memory = batch_memory(SHAPE)
    assert (memory.pixels.dtype, tuple(memory.pixels.shape)) == (torch.uint8, SHAPE)
    assert memory.pixels.is_shared()
    assert memory.finished() is memory.pixels


def test_of_memory_that_is_not_there_a_sentence_tells_and_of_nothing_else(monkeypatch):
    def refuse(self, size):
        raise OSError(size, "Cannot allocate memory" if size == 60 else "Too many open files")

    monkeypatch.setattr(blocks, "get_worker_info", lambda: "a worker's")
    monkeypatch.setattr(Blocks, "free", refuse)
    with pytest.raises(UserError, match="no memory for a batch of 1 images of 5 x 4 px, 0.0 GB"):
        batch_memory((1, 4, 5, 3))
    with pytest.raises(OSError, match="Too many open files"):
        batch_memory((2, 4, 5, 3))


def test_a_block_that_was_not_made_closes_nothing(monkeypatch):
    def refuse(name, flags):
        raise OSError(24, "Too many open files")

    closed = []
    monkeypatch.setattr(os, "memfd_create", refuse)
    monkeypatch.setattr(os, "close", closed.append)
    with pytest.raises(OSError, match="Too many"):
        Block(8)
    assert closed == []


def test_this_system_is_taken_for_what_it_is():
    assert locks_follow_mappings()


def test_a_system_without_such_files_is_noticed(monkeypatch):
    def refuse(name, flags):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert not locks_follow_mappings.__wrapped__()
    monkeypatch.delattr(os, "memfd_create")
    assert not locks_follow_mappings.__wrapped__()


def test_a_system_that_unlocks_too_early_is_noticed(monkeypatch):
    monkeypatch.setattr(Block, "is_free", lambda block: True)
    assert not locks_follow_mappings.__wrapped__()


def test_in_the_main_process_it_is_plain_memory():
    memory = batch_memory(SHAPE)
    assert memory.finished() is memory.pixels
    assert not memory.pixels.is_shared()
    assert memory.pixels.shape == SHAPE
