"""A memory on disk: read back, refused where it is not one, damaged, or of another network."""

import json
import os

import numpy as np
import pytest
from memories import BACKBONE, clustered, rewrite, write_memory

from lit_robust.core.errors import DataError, UserError
from lit_robust.memory import open_memory, project, store
from lit_robust.memory.store import FILE_NAME, KEYS, LABELS, NORMS, PROJECTION, as_text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not a memory's manifest"),
        ('{"schema": 9}', "has schema 9, not 3"),
        ("{}", "it has no schema"),
        ("[]", "it is not an object"),
        ("[" * 100_000, "it is nested too deeply"),
        ('{"schema": 1' + "0" * 5000 + "}", "is not a memory's manifest"),
        ('{"schema": 3, "count": 1e400}', "it holds the number 1e400"),
        ('{"schema": 3, "count": NaN}', "it holds the number NaN"),
        ('{"schema": 3, "layer": "\\ud800"}', "is not a memory's manifest"),
        ('{"schema": 3}' + " " * (1 << 24), "16777216 are the most"),
    ],
    ids=lambda given: given[:20],
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
        ({"backbone": {**BACKBONE, "mean": [0.5]}}, r"another backbone, its mean is unknown and not \[0.5\]"),
        ({"backbone": {**BACKBONE, "name": "torchvision/resnet18"}}, "another backbone, its name is lit_robust"),
    ],
)
def test_a_memory_of_another_network_is_refused(tmp_path, changed, says):
    memory = write_memory(tmp_path / "m", *clustered())
    asked = {"backbone": BACKBONE, "layer": "layers.1", "transform": "none", "num_classes": 5}
    memory.manifest.check(memory.folder, **asked)
    with pytest.raises(UserError, match=says):
        memory.manifest.check(memory.folder, **{**asked, **changed})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key_type", "foo"),
        ("compression", [{}]),
        ("compression", "x"),
        ("compression", [{"kind": "components", "on": "both", "centring": "both"}]),
        ("backbone", []),
        ("images", None),
        ("count", "20"),
        ("count", True),
        ("count", 2**63),
        ("num_classes", -5),
        ("dimensions", 0),
        ("layer", 3),
    ],
)
def test_fields_that_are_not_what_they_must_be(tmp_path, name, value):
    memory = write_memory(tmp_path / "m", *clustered())
    file = memory.folder / FILE_NAME
    content = json.loads(file.read_text())
    # As older versions wrote it, without a digest of its own.
    del content["manifest_sha256"]
    content["schema"] = 2
    file.write_text(json.dumps({**content, name: value}))
    with pytest.raises(UserError, match=f"is not a memory's manifest \\({name} is"):
        open_memory(memory.folder)
    del content[name]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"is not a memory's manifest .*{name}"):
        open_memory(memory.folder)


def test_a_manifest_of_an_older_version_is_read(tmp_path):
    memory = write_memory(tmp_path / "m", *clustered())
    file = memory.folder / FILE_NAME
    content = json.loads(file.read_text())
    del content["manifest_sha256"]
    file.write_text(json.dumps({**content, "schema": 2}))
    assert open_memory(memory.folder).manifest == memory.manifest


@pytest.mark.parametrize("name", ["version", "layer", "images"])
def test_a_changed_manifest_is_found_out(tmp_path, name):
    memory = write_memory(tmp_path / "m", *clustered())
    file = memory.folder / FILE_NAME
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, name: {"split": "val"} if name == "images" else "other"}))
    with pytest.raises(UserError, match="it has changed since it was written"):
        open_memory(memory.folder)


def test_long_and_unprintable_values_are_shortened_and_escaped():
    assert as_text("a\nb\x1b[2J") == "a\\nb\\x1b[2J"
    assert as_text("x" * 81) == "x" * 77 + "..."
    assert as_text("x" * 80) == "x" * 80
    assert as_text("ab" * 32) == "abababababab..."


LABELS_OF = np.arange(300) // 60


@pytest.mark.parametrize("check_digest", [True, False])
@pytest.mark.parametrize(
    ("labels", "norms", "says"),
    [
        (LABELS_OF - 1, None, "labels.npy holds labels that do not ascend within 0 to 4"),
        (LABELS_OF + 1, None, "labels.npy holds labels that do not ascend within 0 to 4"),
        (np.append(-1, LABELS_OF[1:]), None, "labels.npy holds labels that do not ascend within 0 to 4"),
        (np.append(LABELS_OF[1:], 5), None, "labels.npy holds labels that do not ascend within 0 to 4"),
        (np.roll(LABELS_OF, 60), None, "labels.npy holds labels that do not ascend within 0 to 4"),
        (None, np.full(300, np.nan, np.float32), "norms.npy holds numbers that are not finite"),
        (None, np.append(np.ones(299, np.float32), np.float32(np.inf)), "norms.npy holds numbers that are not finite"),
    ],
)
def test_arrays_that_no_memory_holds(tmp_path, labels, norms, says, check_digest):
    """Whoever wrote them, with whatever digests."""
    folder = rewrite(write_memory(tmp_path / "m", *clustered()), labels=labels, norms=norms)
    with pytest.raises(DataError, match=says):
        open_memory(folder, check_digest)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1234, 3599])
def test_keys_that_are_not_finite(tmp_path, value, place, monkeypatch):
    monkeypatch.setattr(store, "PIECE", 4096)
    memory = write_memory(tmp_path / "m", *clustered())
    keys = np.array(memory.keys)
    keys.reshape(-1)[place] = value
    folder = rewrite(memory, keys=keys)
    with pytest.raises(DataError, match="keys.npy holds numbers that are not finite: build the memory again"):
        open_memory(folder)


def header(text, version=1):
    content = text.encode()
    length = len(content).to_bytes(2 if version == 1 else 4, "little")
    return np.lib.format.magic(version, 0) + length + content


@pytest.mark.parametrize(
    "head",
    [
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1" + "0" * 30 + ", 12)}"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1" + "0" * 5000 + ", 12)}"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (-300, -12)}"),
        header("{'descr': '<f4', 'fortran_order': True, 'shape': (300, 12)}"),
        header("{'descr': '>f4', 'fortran_order': False, 'shape': (300, 12)}"),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (300, 12)}"),
        header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (300, 12)}"),
        header("{'descr': 7, 'fortran_order': 3, 'shape': 'x'}"),
        header("{'shape': (300, 12"),
        header("'" * 3),
        header("(" * 9000),
        header("-" * 9000 + "1"),
        header("{}"),
        header("[1, 2]"),
        header(""),
        np.lib.format.magic(1, 0) + b"\xff\xff",
        np.lib.format.magic(2, 0) + b"\xff\xff\xff\xff",
        np.lib.format.magic(3, 0) + b"\x01\x00\x00\x00{",
        b"PK\x03\x04",
    ],
    ids=range(19),
)
@pytest.mark.parametrize("name", [KEYS, LABELS, NORMS])
def test_broken_headers(tmp_path, head, name):
    memory = write_memory(tmp_path / "m", *clustered())
    (memory.folder / name).write_bytes(head + bytes(64))
    with pytest.raises(DataError, match=f"{name} (is cut short or not an array|holds ).*: copy the whole memory, or"):
        open_memory(memory.folder, check_digest=False)


@pytest.mark.parametrize("name", [FILE_NAME, KEYS, LABELS, NORMS, PROJECTION])
def test_named_pipes_do_not_hang(tmp_path, name):
    project(write_memory(tmp_path / "m", *clustered()), tmp_path / "p", 3, "raw", "both")
    (tmp_path / "p" / name).unlink()
    os.mkfifo(tmp_path / "p" / name)
    with pytest.raises(UserError, match=f"{name} (cannot be read \\(not a regular file\\)|is missing)"):
        open_memory(tmp_path / "p")


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_headers_of_both_versions_are_read(tmp_path, version):
    memory = write_memory(tmp_path / "m", *clustered())
    keys = np.array(memory.keys)
    with (memory.folder / KEYS).open("wb") as file:
        np.lib.format.write_array(file, keys, version)
    np.testing.assert_array_equal(open_memory(memory.folder).keys, keys)


def test_bytes_behind_an_array_are_refused(tmp_path):
    memory = write_memory(tmp_path / "m", *clustered())
    with (memory.folder / KEYS).open("ab") as file:
        file.write(bytes(4))
    with pytest.raises(DataError, match="keys.npy is cut short or not an array"):
        open_memory(memory.folder, check_digest=False)


def test_manifest_is_plain_json(tmp_path):
    memory = write_memory(tmp_path / "m", *clustered())
    content = json.loads((memory.folder / FILE_NAME).read_text())
    assert content["count"] == 300
    assert len(content["keys_sha256"]) == 64
