"""A memory on disk: read back, refused where it is not one, damaged, or of another network."""

import json

import pytest
from memories import BACKBONE, clustered, write_memory

from lit_robust.core.errors import UserError
from lit_robust.memory import open_memory
from lit_robust.memory.store import FILE_NAME


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "is no memory's manifest"), ('{"schema": 9}', "has schema 9, not 2"), ("{}", "is no memory's manifest")],
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
        ("dimensions", 0),
        ("layer", 3),
    ],
)
def test_fields_that_are_not_what_they_must_be(tmp_path, name, value):
    memory = write_memory(tmp_path / "m", *clustered())
    file = memory.folder / FILE_NAME
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, name: value}))
    with pytest.raises(UserError, match=f"is no memory's manifest \\({name} is"):
        open_memory(memory.folder)
    del content[name]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"is no memory's manifest .*{name}"):
        open_memory(memory.folder)


def test_manifest_is_plain_json(tmp_path):
    memory = write_memory(tmp_path / "m", *clustered())
    content = json.loads((memory.folder / FILE_NAME).read_text())
    assert content["count"] == 300
    assert len(content["keys_sha256"]) == 64
