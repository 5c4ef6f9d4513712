"""Several processes that open the same shards at once: one scans, nobody hangs."""

import multiprocessing
import os
import signal
import threading
import time

import pytest
from shard_making import entries, write_tar

from lit_robust.shards import ShardIndex
from lit_robust.shards import index as index_module
from lit_robust.shards.index import cache_paths, one_at_a_time

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write_tar(folder / "x-val-0.tar", entries(4))
    return folder


@pytest.fixture
def slow_scans(monkeypatch, tmp_path):
    """Make every scan last, and leave a file for each."""
    scans = tmp_path / "scans"
    scans.mkdir()

    def slow(*args, scan=index_module.scan_shards):
        (scans / str(os.getpid())).touch()
        time.sleep(0.5)
        return scan(*args)

    monkeypatch.setattr(index_module, "scan_shards", slow)
    return scans


def open_at_once(folder, start, results):
    start.wait()
    results.put(ShardIndex.open(folder, "val").digest)


@pytest.mark.parametrize("place", ["beside the shards", "in the user's cache", "nowhere"])
def test_one_of_many_scans(folder, slow_scans, monkeypatch, tmp_path, place):
    if place != "beside the shards":
        (folder / ".lit_robust").touch()
    if place == "nowhere":
        monkeypatch.setenv("LIT_ROBUST_CACHE", str(folder / ".lit_robust"))
    start, results = FORK.Event(), FORK.Queue()
    processes = [FORK.Process(target=open_at_once, args=(folder, start, results)) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    digests = {results.get(timeout=30) for _ in processes}
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert len(digests) == 1
    # With no place to keep an index, each has to make its own.
    assert len(list(slow_scans.iterdir())) == (4 if place == "nowhere" else 1)


def hold(place, held):
    with one_at_a_time([place]):
        held.set()
        time.sleep(60)


def test_a_killed_holder_lets_go(folder):
    held = FORK.Event()
    holder = FORK.Process(target=hold, args=(cache_paths(folder, "val")[0], held))
    holder.start()
    assert held.wait(30)
    found = []
    waiter = threading.Thread(target=lambda: found.append(ShardIndex.open(folder, "val")))
    waiter.start()
    time.sleep(0.3)
    assert not found
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(30)
    waiter.join(30)
    assert len(found[0]) == 4


def test_a_kept_index_needs_no_lock(folder):
    ShardIndex.open(folder, "val")
    with one_at_a_time(cache_paths(folder, "val")):
        assert len(ShardIndex.open(folder, "val")) == 4


def test_an_error_within_lets_go(tmp_path):
    place = tmp_path / "a.index"
    with pytest.raises(KeyError), one_at_a_time([place]):
        raise KeyError
    with one_at_a_time([place]):
        pass
