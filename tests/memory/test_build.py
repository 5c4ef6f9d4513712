"""Writing a memory, going on after an interruption, and refusing what is not whole."""

import os
import resource
import shutil
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from memories import another_process_builds, clustered, manifest_of, write_memory

from lit_robust.core.errors import DataError, UserError
from lit_robust.core.files import UMASK, size_shown
from lit_robust.memory import cluster, open_memory, project
from lit_robust.memory.build import (
    begin_memory,
    is_begun,
    make_array,
    part_folder,
    resume_memory,
    samples_done,
    write_rows,
)
from lit_robust.memory.compression import unit_length
from lit_robust.memory.store import FILE_NAME, KEYS, LABELS, NORMS, Manifest


@pytest.mark.parametrize("key_type", ["float32", "float16"])
def test_what_is_written_is_read_back_by_class(tmp_path, key_type):
    vectors, labels = clustered()
    memory = write_memory(tmp_path / "memory", vectors, labels, key_type=key_type)
    order = np.argsort(labels, kind="stable")
    expected = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True))[order]
    # Half precision rounds numbers up to 1 by at most 2^-12.
    np.testing.assert_allclose(memory.keys, expected, rtol=0, atol=1e-6 if key_type == "float32" else 2.5e-4)
    np.testing.assert_array_equal(memory.labels, labels[order])
    np.testing.assert_allclose(memory.raw(slice(0, 300)), vectors[order], rtol=1e-2, atol=2e-3)
    assert not part_folder(memory.folder).exists()
    modes = {file.name: file.stat().st_mode & 0o777 for file in memory.folder.iterdir()}
    assert set(modes.values()) == {0o666 & ~UMASK}, modes
    assert memory.folder.stat().st_mode & 0o777 == 0o777 & ~UMASK
    # Anybody's NumPy can read it.
    assert np.load(tmp_path / "memory" / KEYS).shape == (300, 12)


def test_a_build_goes_on_where_it_was_interrupted(tmp_path):
    vectors, labels = clustered(count=101)
    keys, norms = unit_length(vectors.astype(np.float32))
    manifest, folder = manifest_of(101, 12), tmp_path / "memory"
    begin_memory(folder, manifest, labels)
    first = np.arange(0, 101, 3)
    resume_memory(folder, manifest, labels).write(first, keys[first], norms[first])
    assert is_begun(folder)
    # It was killed while it noted the next sample.
    (journal,) = part_folder(folder).glob("written-*.bin")
    journal.write_bytes(journal.read_bytes() + bytes(7))
    # A new process.
    done = samples_done(folder, labels)
    assert np.flatnonzero(done).tolist() == first.tolist()
    builder = resume_memory(folder, manifest, labels)
    with pytest.raises(DataError, match=r"lacks 67 of 101 keys: run it again"):
        builder.finish()
    left = np.flatnonzero(~done)
    builder.write(left, keys[left], norms[left])
    builder.finish()
    whole = write_memory(tmp_path / "other", vectors, labels)
    assert open_memory(folder).manifest == whole.manifest


def test_a_part_of_another_memory_is_not_gone_on_with(tmp_path):
    _, labels = clustered(count=20)
    begin_memory(tmp_path / "m", manifest_of(20, 12), labels)
    for manifest, others, says in (
        (manifest_of(20, 13), labels, "dimensions is 12 and not 13"),
        (manifest_of(20, 12, key_type="float16"), labels, "key type is float32 and not float16"),
        (replace(manifest_of(20, 12), images={"split": "val"}), labels, "images: split is train and not val"),
        (manifest_of(20, 12), (labels + 1) % 5, "labels are others"),
    ):
        with pytest.raises(UserError, match=f"holds part of another memory, whose {says}"):
            resume_memory(tmp_path / "m", manifest, others)
    with pytest.raises(UserError, match="holds part of another memory"):
        samples_done(tmp_path / "m", labels[:10])


def test_an_unfinished_memory_is_not_opened(tmp_path):
    _, labels = clustered(count=20)
    begin_memory(tmp_path / "m", manifest_of(20, 12), labels)
    with pytest.raises(UserError, match="There is no memory in"):
        open_memory(tmp_path / "m")
    with pytest.raises(UserError, match="is not finished"):
        open_memory(part_folder(tmp_path / "m"))


@pytest.mark.parametrize(("key_type", "size"), [("float32", 4), ("float16", 2)])
def test_no_room_on_the_disk(tmp_path, monkeypatch, key_type, size):
    # Of each key its numbers, its label, its length, and its entry of 12 bytes in the journal.
    need = 20 * (12 * size + 8 + 4 + 12)
    manifest, labels = manifest_of(20, 12, key_type=key_type), np.zeros(20, np.int64)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, need - 1))
    with pytest.raises(UserError, match=rf"The 20 keys of .*m need {size_shown(need)}, but the disk of"):
        begin_memory(tmp_path / "around" / "m", manifest, labels)
    assert not list((tmp_path / "around").iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, need))
    begin_memory(tmp_path / "around" / "m", manifest, labels)


def test_what_the_system_writes_in_parts_is_written_whole(tmp_path, monkeypatch):
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, content, place: write(handle, content[:7], place))
    vectors, labels = clustered()
    memory = write_memory(tmp_path / "parts", vectors, labels)
    monkeypatch.undo()
    np.testing.assert_array_equal(memory.keys, write_memory(tmp_path / "whole", vectors, labels).keys)


@pytest.mark.parametrize("first", range(5))
def test_rows_are_written_wherever_they_begin(tmp_path, first):
    make_array(tmp_path / "a.npy", (9, 2), "float32")
    rows = np.array([first, first + 1, 8])
    write_rows(tmp_path / "a.npy", rows, np.ones((3, 2), np.float32))
    assert np.load(tmp_path / "a.npy")[:, 0].nonzero()[0].tolist() == rows.tolist()


def test_of_a_memory_that_was_not_begun_no_sample_is_done(tmp_path):
    assert not samples_done(tmp_path / "m", np.zeros(3, np.int64)).any()


def test_a_memory_in_folders_that_are_not_there_yet(tmp_path):
    assert write_memory(tmp_path / "a" / "b" / "m", *clustered()).manifest.count == 300


def cut(file):
    file.write_bytes(file.read_bytes()[:-50])


def empty(file):
    file.write_bytes(b"")


def change(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def other_shape(file):
    np.save(file, np.zeros((3, 4), np.float32))


@pytest.mark.parametrize("name", [KEYS, LABELS, NORMS])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, "is cut short or not an array"),
        (empty, "is cut short or not an array"),
        (other_shape, r"holds {'descr': '<f4', 'fortran_order': False, 'shape': \(3, 4\)}, where the manifest says"),
        (lambda file: file.unlink(), "is missing"),
    ],
)
def test_damaged_files(tmp_path, name, damage, says):
    write_memory(tmp_path / "m", *clustered())
    damage(tmp_path / "m" / name)
    with pytest.raises(DataError, match=f"{name} {says}"):
        open_memory(tmp_path / "m", check_digest=False)


@pytest.mark.parametrize("name", [KEYS, LABELS, NORMS])
def test_changed_bytes(tmp_path, name):
    write_memory(tmp_path / "m", *clustered())
    change(tmp_path / "m" / name)
    with pytest.raises(DataError, match="has changed since the memory was built"):
        open_memory(tmp_path / "m")


def begun(tmp_path, count=20):
    """Begin a memory, and return its folder, labels, keys and norms."""
    vectors, labels = clustered(count=count)
    begin_memory(tmp_path / "m", manifest_of(count, 12), labels)
    return tmp_path / "m", labels, *unit_length(vectors.astype(np.float32))


def test_a_journal_that_is_damaged_is_not_believed(tmp_path):
    folder, labels, keys, norms = begun(tmp_path)
    builder = resume_memory(folder, manifest_of(20, 12), labels)
    builder.write(np.arange(20), keys, norms)
    content = builder.journal.read_bytes()
    for number in (20, -1, 2**62):
        builder.journal.write_bytes(number.to_bytes(8, "little", signed=True) + content[8:])
        for step in (lambda: samples_done(folder, labels), builder.finish):
            with pytest.raises(
                DataError, match=f"{builder.journal.name} is damaged: remove .*m.part, then run it again"
            ):
                step()


def test_keys_that_the_journal_alone_holds_are_found_out(tmp_path):
    """As after a power failure, which the journal may survive and the keys not."""
    folder, labels, keys, norms = begun(tmp_path)
    builder = resume_memory(folder, manifest_of(20, 12), labels)
    norms[4] = 0  # A vector of zeros has no other key.
    keys[4] = 0
    builder.write(np.arange(20), keys, norms)
    stored = np.load(part_folder(folder) / KEYS, mmap_mode="r+")
    before = np.array(stored[7])
    stored[7] = 0
    stored.flush()
    with pytest.raises(DataError, match="keys.npy lacks keys that were written: remove .*m.part, then run it again"):
        builder.finish()
    stored[7] = before
    stored.flush()
    builder.finish()
    assert (open_memory(folder).norms == 0).sum() == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_keys_that_are_not_finite_are_not_written(tmp_path, value):
    folder, labels, keys, norms = begun(tmp_path)
    builder = resume_memory(folder, manifest_of(20, 12), labels)
    for part in (keys, norms):
        before = part.flat[3]
        part.flat[3] = value
        with pytest.raises(UserError, match="The layer 'layers.1' gives keys that are not finite: check the network's"):
            builder.write(np.arange(20), keys, norms)
        part.flat[3] = before
    assert not samples_done(folder, labels).any()


def test_two_processes_do_not_build_one_memory(tmp_path):
    memory = write_memory(tmp_path / "m", *clustered())
    says = "Another process builds the memory .*c: wait for it, or name another folder"
    with another_process_builds(tmp_path / "c"):
        with pytest.raises(UserError, match=says):
            cluster(memory, tmp_path / "c", 2, "raw", 0)
        with pytest.raises(UserError, match=says):
            project(memory, tmp_path / "c", 2, "raw", "both")
    cluster(memory, tmp_path / "c", 2, "raw", 0)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c", "m"]


def test_nothing_to_write(tmp_path):
    folder, labels, keys, norms = begun(tmp_path)
    builder = resume_memory(folder, manifest_of(20, 12), labels)
    builder.write(np.arange(0), keys[:0], norms[:0])
    assert not samples_done(folder, labels).any()


def test_a_build_that_was_killed_while_it_finished_goes_on(tmp_path, monkeypatch):
    folder, labels, keys, norms = begun(tmp_path)
    builder = resume_memory(folder, manifest_of(20, 12), labels)
    builder.write(np.arange(20), keys, norms)
    with monkeypatch.context() as killed:
        move = type(folder).replace
        # A manifest may still be moved into its place.
        killed.setattr(type(folder), "replace", lambda file, to: 1 / 0 if file.is_dir() else move(file, to))
        with pytest.raises(ZeroDivisionError):
            builder.finish()
    # It was killed after the digests were written, and the first key comes out otherwise in another batch.
    assert Manifest.load(part_folder(folder)).keys_sha256
    again = resume_memory(folder, manifest_of(20, 12), labels)
    assert samples_done(folder, labels).all()
    again.write(np.arange(1), -keys[:1], norms[:1])
    again.finish()
    assert open_memory(folder).manifest.count == 20
    assert sorted(file.name for file in folder.iterdir()) == sorted([KEYS, LABELS, NORMS, FILE_NAME])


def test_two_builds_at_once(tmp_path):
    folder, labels, keys, norms = begun(tmp_path)
    fast, slow = (resume_memory(folder, manifest_of(20, 12), labels) for _ in range(2))
    fast.write(np.arange(20), keys, norms)
    fast.finish()
    for step in (lambda: slow.write(np.arange(20), keys, norms), slow.finish):
        with pytest.raises(UserError, match="was finished or removed by another process"):
            step()


@pytest.mark.parametrize("name", [KEYS, LABELS])
@pytest.mark.parametrize(("damage", "says"), [(empty, "is cut short"), (lambda file: file.unlink(), "is missing")])
def test_damaged_parts(tmp_path, name, damage, says):
    folder, labels, *_ = begun(tmp_path)
    damage(part_folder(folder) / name)
    with pytest.raises(DataError, match=rf"{name} {says}.*: remove .*m.part, then run it again"):
        resume_memory(folder, manifest_of(20, 12), labels)


def test_files_of_others_stay(tmp_path):
    labels = clustered(count=20)[1]
    for name in ("mine.part", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine.part" / KEYS).write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, says in (
        ("mine", "where the memory would be built, and is not part of one"),
        ("empty", "is there already, and is not a memory: name another folder"),
        ("file", "is there already, and is not a memory: name another folder"),
    ):
        with pytest.raises(UserError, match=says):
            begin_memory(tmp_path / name, manifest_of(20, 12), labels)
    assert (tmp_path / "mine.part" / KEYS).read_text() == "mine"
    with pytest.raises(UserError, match="There is no memory in"):
        open_memory(tmp_path / "file")
    write_memory(tmp_path / "m", *clustered())
    with pytest.raises(UserError, match=r"There is a memory .*m already: use it"):
        begin_memory(tmp_path / "m", manifest_of(20, 12), labels)
    with pytest.raises(UserError, match=r"inner would lie inside the memory .*m: name a folder next to it"):
        begin_memory(tmp_path / "m" / "inner", manifest_of(20, 12), labels)


@contextmanager
def largest_file(size):
    """No file may be larger, as on a disk without room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# The keys' file of 20 keys is of 4,096 + 960 bytes, that of the labels of 288, the manifest of some 700.
@pytest.mark.parametrize(("size", "dimensions"), [(5000, 12), (200, 12)])
def test_a_full_disk_leaves_nothing(tmp_path, size, dimensions):
    with (
        largest_file(size),
        pytest.raises(UserError, match=r"Cannot write in the folder .*\(File too large\): free some space"),
    ):
        begin_memory(tmp_path / "m", manifest_of(20, dimensions), np.zeros(20, np.int64))
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_while_labels_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_robust.memory.build.make_array", lambda file, shape, kind: file.touch())
    labels = np.zeros(5000, np.int64)
    with largest_file(8000), pytest.raises(UserError, match=r"Cannot write in .*\(File too large\): free some space"):
        begin_memory(tmp_path / "m", manifest_of(5000, 12), labels)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_at_the_end_loses_nothing(tmp_path):
    folder, labels, keys, norms = begun(tmp_path)
    builder = resume_memory(folder, manifest_of(20, 12), labels)
    builder.write(np.arange(20), keys, norms)
    with (
        largest_file(150),
        pytest.raises(UserError, match=r"Cannot write .*m.part.*\(File too large\): free some space"),
    ):
        builder.finish()
    # The norms fit, the manifest does not.
    with (
        largest_file(400),
        pytest.raises(UserError, match=r"Cannot write .*manifest.json.*\(File too large\): free some"),
    ):
        builder.finish()
    resume_memory(folder, manifest_of(20, 12), labels).finish()
    assert open_memory(folder).manifest.count == 20
