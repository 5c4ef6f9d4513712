"""Writing a memory, going on after an interruption, and refusing what is not whole."""

import json
import shutil

import numpy as np
import pytest
from memories import BACKBONE, clustered, manifest_of, write_memory

from lit_robust.errors import DataError, UserError
from lit_robust.memory import (
    begin_memory,
    is_begun,
    open_memory,
    part_folder,
    resume_memory,
    samples_done,
)
from lit_robust.memory.compression import unit_length
from lit_robust.memory.directory import KEYS, LABELS, NORMS
from lit_robust.memory.manifest import FILE_NAME


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
    for manifest, others in ((manifest_of(20, 13), labels), (manifest_of(20, 12), (labels + 1) % 5)):
        with pytest.raises(UserError, match="holds part of another memory"):
            resume_memory(tmp_path / "m", manifest, others)
    with pytest.raises(UserError, match="holds part of another memory"):
        samples_done(tmp_path / "m", labels[:10])


def test_an_unfinished_memory_is_no_memory(tmp_path):
    _, labels = clustered(count=20)
    begin_memory(tmp_path / "m", manifest_of(20, 12), labels)
    with pytest.raises(UserError, match="There is no memory in"):
        open_memory(tmp_path / "m")
    with pytest.raises(UserError, match="is not finished"):
        open_memory(part_folder(tmp_path / "m"))


def test_no_room_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with pytest.raises(UserError, match=r"needs 0.0 GB and .* has 0.0 GB free"):
        begin_memory(tmp_path / "m", manifest_of(20, 12), np.zeros(20, np.int64))
    assert not list(tmp_path.iterdir())


def cut(file):
    file.write_bytes(file.read_bytes()[:-50])


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
        (cut, "is cut short or no array"),
        (other_shape, "holds float32"),
        (lambda file: file.unlink(), "is missing"),
    ],
)
def test_damaged_files(tmp_path, name, damage, says):
    write_memory(tmp_path / "m", *clustered())
    damage(tmp_path / "m" / name)
    with pytest.raises(DataError, match=f"{name} {says}"):
        open_memory(tmp_path / "m", check_digest=False)


@pytest.mark.parametrize("name", [KEYS, LABELS])
def test_changed_bytes(tmp_path, name):
    write_memory(tmp_path / "m", *clustered())
    change(tmp_path / "m" / name)
    with pytest.raises(DataError, match="has changed since the memory was built"):
        open_memory(tmp_path / "m")


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "is no memory's manifest"), ('{"schema": 9}', "has schema 9, not 1"), ("{}", "is no memory's manifest")],
)
def test_manifests_of_others(tmp_path, content, says):
    write_memory(tmp_path / "m", *clustered())
    (tmp_path / "m" / FILE_NAME).write_text(content)
    with pytest.raises(UserError, match=says):
        open_memory(tmp_path / "m")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"num_classes": 6}, "is of 5 classes, and the network of 6"),
        ({"layer": "fc"}, "holds keys of layer 'layers.1', not 'fc': set layer to layers.1"),
        ({"transform": "softmax"}, "holds keys of transform 'none'"),
        ({"backbone": {**BACKBONE, "weights_sha256": "b" * 64}}, "another backbone, its weights sha256 is aaaa"),
        ({"backbone": {**BACKBONE, "name": "torchvision/resnet18"}}, "another backbone, its name is lit_robust"),
    ],
)
def test_a_memory_of_another_network_is_refused(tmp_path, changed, says):
    memory = write_memory(tmp_path / "m", *clustered())
    asked = {"backbone": BACKBONE, "layer": "layers.1", "transform": "none", "num_classes": 5}
    memory.manifest.check(memory.folder, **asked)
    with pytest.raises(UserError, match=says):
        memory.manifest.check(memory.folder, **{**asked, **changed})


def test_manifest_is_plain_json(tmp_path):
    memory = write_memory(tmp_path / "m", *clustered())
    content = json.loads((memory.folder / FILE_NAME).read_text())
    assert content["count"] == 300
    assert len(content["keys_sha256"]) == 64
