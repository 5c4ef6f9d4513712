"""The index of a split: kept while it holds, made once where several processes want it."""

import io
import json
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from shard_making import entries, write_tar

from lit_robust.core.errors import DataError
from lit_robust.shards import IndexedReader, ShardIndex
from lit_robust.shards import index as index_module
from lit_robust.shards import read as read_module
from lit_robust.shards.index import cache_paths, one_at_a_time


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write_tar(folder / "x-val-0.tar", entries(4, "a/"))
    write_tar(folder / "x-val-1.tar", entries(3, "b/"))
    return folder


@pytest.fixture
def scans(monkeypatch):
    """Count how often shards are scanned."""
    calls = []

    def counted(paths, rule, on_defect, progress, scan=index_module.scan_shards):
        calls.append(len(paths))
        return scan(paths, rule, on_defect, progress)

    monkeypatch.setattr(index_module, "scan_shards", counted)
    return calls


def arrays(index):
    return [index.shard, index.offset, index.length, index.extension, index.labels]


def test_the_second_opening_reads_the_kept_index(folder, scans):
    first, second = ShardIndex.open(folder, "val"), ShardIndex.open(folder, "validation")
    assert scans == [2]
    assert second.digest == first.digest
    assert all(np.array_equal(one, other) for one, other in zip(arrays(first), arrays(second), strict=True))
    assert [second.key(n) for n in range(7)] == [f"a/s{n:04d}" for n in range(4)] + [f"b/s{n:04d}" for n in range(3)]
    assert second.labels.dtype == np.int64
    assert not any(array.flags.writeable for array in arrays(second))
    assert sorted(path.name for path in (folder / ".lit_robust").iterdir()) == ["split-val.index"]


def rewrite(folder):
    write_tar(folder / "x-val-1.tar", entries(2, "b/"))


def touch(folder):
    os.utime(folder / "x-val-1.tar", ns=(0, 0))


def forge(folder, change=lambda name, body: (name, body.replace(b"1", b"2"))):
    """Other content under the same name, of the same size and time."""
    path = folder / "x-val-1.tar"
    before = path.stat()
    time.sleep(0.02)  # File systems count their own time in steps of some milliseconds.
    write_tar(path, [change(name, body) for name, body in entries(3, "b/")])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def rename(folder):
    """Other keys alone, of the same size and time."""
    forge(folder, lambda name, body: (name.replace("b/", "c/"), body))


def add(folder):
    write_tar(folder / "x-val-2.tar", entries(2, "c/"))


def describe(folder):
    info = {"splits": {"val": {"filenames": ["x-val-0.tar", "x-val-1.tar"], "num_classes": 7}}}
    (folder / "_info.json").write_text(json.dumps(info))


@pytest.mark.parametrize(("change", "count"), [(rewrite, 6), (touch, 7), (forge, 7), (add, 9), (describe, 7)])
def test_a_change_makes_it_anew(folder, scans, change, count):
    ShardIndex.open(folder, "val")
    change(folder)
    assert len(ShardIndex.open(folder, "val")) == count
    assert len(scans) == 2


def test_the_digest_tells_contents_apart(folder):
    digests = {ShardIndex.open(folder, "val").digest}
    touch(folder)
    assert ShardIndex.open(folder, "val").digest in digests
    for members in (
        entries(2, "b/"),
        entries(3, "c/"),
        [(n, b"1" if n.endswith("cls") else b) for n, b in entries(3, "b/")],
    ):
        write_tar(folder / "x-val-1.tar", members)
        digests.add(ShardIndex.open(folder, "val").digest)
    assert len(digests) == 4


def test_damaged_kept_indexes_are_made_anew(folder, scans):
    digest = ShardIndex.open(folder, "val").digest
    place = folder / ".lit_robust" / "split-val.index"
    content = place.read_bytes()
    damages = [content[:cut] for cut in (0, 4, 15, 100, len(content) // 2)] + [b"X" + content[1:], b"[]" * 600]
    for number, damaged in enumerate(damages):
        place.write_bytes(damaged)
        assert ShardIndex.open(folder, "val").digest == digest
        assert len(scans) == 2 + number
        assert place.read_bytes() == content


def test_no_flip_of_a_bit_in_a_kept_index_is_believed(folder, scans):
    first = ShardIndex.open(folder, "val")
    place = folder / ".lit_robust" / "split-val.index"
    content = place.read_bytes()
    for number, at in enumerate(np.random.default_rng(0).integers(0, 8 * len(content), 200).tolist()):
        damaged = bytearray(content)
        damaged[at // 8] ^= 1 << at % 8
        place.write_bytes(damaged)
        again = ShardIndex.open(folder, "val")
        assert len(scans) == 2 + number
        assert [again.key(n) for n in range(7)] == [first.key(n) for n in range(7)]
        assert all(np.array_equal(one, other) for one, other in zip(arrays(first), arrays(again), strict=True))


def refuse_beside(folder):
    """Make the shards' folder unwritable; modes do not hold back a test that runs as root."""
    (folder / ".lit_robust").touch()


def test_a_read_only_folder_is_kept_in_the_users_cache(folder, scans):
    refuse_beside(folder)
    first, second = ShardIndex.open(folder, "val"), ShardIndex.open(folder, "val")
    assert first.digest == second.digest
    assert scans == [2]
    assert (folder / ".lit_robust").is_file()
    assert pickle.loads(pickle.dumps(first)).digest == first.digest


def test_with_no_place_to_keep_it_the_arrays_travel(folder, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LIT_ROBUST_CACHE", str(tmp_path / "file"))
    refuse_beside(folder)
    index = ShardIndex.open(folder, "val")
    assert "LIT_ROBUST_CACHE" in caplog.text
    assert pickle.loads(pickle.dumps(index)).key(6) == "b/s0002"


def test_it_pickles_as_a_path(tmp_path):
    write_tar(tmp_path / "x-val-0.tar", [(f"sample-with-a-long-name-{n:08d}.jpg", b"1") for n in range(2000)])
    index = ShardIndex.open(tmp_path, "val")
    assert len(pickle.dumps(IndexedReader(index))) < 1000
    assert pickle.loads(pickle.dumps(index)).key(1999) == index.key(1999)


def in_place(folder):
    """Write a shard again at its size, the last sample first, into the file that a reader has open."""
    path = folder / "x-val-1.tar"
    members = entries(3, "b/")
    content = write_tar(folder / "other.part", [*members[6:], *members[3:6], *members[:3]]).read_bytes()
    (folder / "other.part").unlink()
    assert len(content) == path.stat().st_size
    path.write_bytes(content)
    os.utime(path, ns=(0, 0))


@pytest.mark.parametrize("change", [rewrite, in_place, touch, forge, rename])
@pytest.mark.parametrize("opened", [True, False])
def test_a_change_during_the_run_is_noticed(folder, change, opened):
    index = ShardIndex.open(folder, "val")
    pickled, reader = pickle.dumps(index), IndexedReader(index, max_open=8)
    if opened:
        reader.image_bytes(5)
    change(folder)
    with pytest.raises(DataError, match=r"x-val-1.tar has changed since it was indexed: start the run again"):
        reader.image_bytes(5)
    again = ShardIndex.open(folder, "val")
    if change is not touch:
        with pytest.raises(DataError, match="changed during the run"):
            pickle.loads(pickled)
    # The keys, classes and images of one process belong together, whatever it had open.
    read = IndexedReader(again)
    images = {name.removesuffix(".jpg"): body for name, body in entries(4) if name.endswith("jpg")}
    if change is forge:
        images = {key: body.replace(b"1", b"2") for key, body in images.items()}
    assert all(read.image_bytes(number) == images[read.key(number)[2:]] for number in range(4, len(again)))


def test_a_shard_is_read_ahead_once_and_from_beginning_to_end(folder, monkeypatch):
    asked, wanted = [], queue.SimpleQueue()
    monkeypatch.setattr(read_module, "_queue_of", lambda process: SimpleNamespace(put=asked.append))
    monkeypatch.setattr(read_module, "AHEAD", 1)
    reader = IndexedReader(ShardIndex.open(folder, "val"))
    for number in (0, 1, 3, 5, 0):
        reader.read_ahead(number)
    assert [path.name for path in asked] == ["x-val-0.tar", "x-val-1.tar", "x-val-0.tar"]

    content, done = io.BytesIO(bytes(read_module.CHUNK + 5)), threading.Event()
    content.close = done.set
    threading.Thread(target=read_module._read_through, args=(wanted,), daemon=True).start()
    wanted.put(folder / "not there")
    wanted.put(SimpleNamespace(open=lambda mode, buffering: content))
    assert done.wait(60)
    assert content.tell() == read_module.CHUNK + 5


def test_a_shard_that_is_replaced_while_it_is_open(folder):
    """What is open is the old file, to which the old index belongs; a new index opens the new file."""
    old = IndexedReader(ShardIndex.open(folder, "val"))
    before = [old.image_bytes(number) for number in range(7)]
    members = entries(3, "b/")
    write_tar(folder / "new.part", [*members[6:], *members[3:6], *members[:3]]).rename(folder / "x-val-1.tar")
    assert [old.image_bytes(number) for number in range(7)] == before
    new = IndexedReader(ShardIndex.open(folder, "val"))
    assert [new.image_bytes(number) for number in range(7)] == [*before[:4], *before[:3:-1]]
    assert [new.key(number) for number in range(4, 7)] == [old.key(number) for number in (6, 5, 4)]


def test_what_leaves_the_content_as_it_was_ends_no_run(folder):
    reader = IndexedReader(ShardIndex.open(folder, "val"), max_open=8)
    before = [reader.image_bytes(number) for number in range(4)]
    (folder / "x-val-0.tar").chmod(0o600)
    assert [reader.image_bytes(number) for number in range(4)] == before
    # Another inode of the same size and times, as some network file systems give one.
    path = folder / "x-val-1.tar"
    status = path.stat()
    (folder / "copy.part").write_bytes(path.read_bytes())
    (folder / "copy.part").rename(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert reader.image_bytes(6)


def digest_of(reader, numbers, results):
    results.put([reader.image_bytes(number) for number in numbers])


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_two_processes_read(folder, method):
    reader = IndexedReader(ShardIndex.open(folder, "val"))
    expected = [reader.image_bytes(number) for number in range(7)]
    assert expected == [body for name, body in [*entries(4, "a/"), *entries(3, "b/")] if name.endswith("jpg")]
    context = multiprocessing.get_context(method)
    queues = [context.Queue() for _ in range(2)]
    orders = [list(range(7)), list(range(6, -1, -1))]
    workers = [
        context.Process(target=digest_of, args=(reader, order, queue))
        for order, queue in zip(orders, queues, strict=True)
    ]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=60) for queue in queues]
    for worker in workers:
        worker.join(60)
    assert found == [expected, expected[::-1]]


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")  # noqa: PTH112
def test_open_shards_are_bounded_and_closed(tmp_path):
    for shard in range(8):
        write_tar(tmp_path / f"x-val-{shard}.tar", entries(1, f"{shard}/"))
    index = ShardIndex.open(tmp_path, "val")
    before = open_descriptors()
    reader = IndexedReader(index, max_open=3)
    for _ in range(2):
        for number in range(8):
            assert reader.image_bytes(number)
            assert open_descriptors() - before <= 3
    del reader
    assert open_descriptors() == before


@pytest.mark.parametrize("number", [-1, 7])
def test_numbers_out_of_range(folder, number):
    index = ShardIndex.open(folder, "val")
    for call in (index.key, IndexedReader(index).image_bytes):
        with pytest.raises(IndexError):
            call(number)


def test_a_kept_index_of_many_shards_is_opened_without_looking_for_each(tmp_path, monkeypatch):
    """Of as many shards as ImageNet has, to look for each of them in the whole folder would take a second."""
    listings = []
    for name in ("scandir", "listdir"):
        listed = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *path, listed=listed: (listings.append(path), listed(*path))[1])
    counts = []
    for count in (3, 30):
        folder = tmp_path / str(count)
        folder.mkdir()
        for shard in range(count):
            write_tar(folder / f"x-train-{shard:04d}.tar", [(f"s{shard:04d}.jpg", b"1")])
        ShardIndex.open(folder, "train", progress=False)
        listings.clear()
        assert len(ShardIndex.open(folder, "train")) == count
        counts.append(len(listings))
    assert 1 <= counts[0] == counts[1]


FORK = multiprocessing.get_context("fork")


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


@pytest.mark.parametrize("place", ["next to the shards", "in the user's cache", "nowhere"])
def test_one_of_many_scans(folder, slow_scans, monkeypatch, tmp_path, place):
    if place != "next to the shards":
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
    assert len(found[0]) == 7


def test_a_kept_index_needs_no_lock(folder):
    ShardIndex.open(folder, "val")
    with one_at_a_time(cache_paths(folder, "val")):
        assert len(ShardIndex.open(folder, "val")) == 7


def test_an_error_within_lets_go(tmp_path):
    place = tmp_path / "a.index"
    with pytest.raises(KeyError), one_at_a_time([place]):
        raise KeyError
    with one_at_a_time([place]):
        pass
