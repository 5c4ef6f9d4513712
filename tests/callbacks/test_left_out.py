"""What a test run leaves out because it was told to is counted and named in its results."""

import shutil

import pytest
import yaml
from tiny_sets import write

from lit_robust.cli import main
from lit_robust.core.results import RunResults
from lit_robust.modules import StandardModule
from lit_robust.reference import imagenet_subset
from lit_robust.shards import ShardIndex

WHOLE = {"resize": None, "crop": None}


@pytest.fixture
def settings(toy, tmp_path):
    """A test of two sets, of which one is not there and the other has a broken image; and the broken image's number."""
    root = tmp_path / "data"
    shutil.copytree(toy / "imagenet", root / "imagenet", ignore=shutil.ignore_patterns(".lit_robust"))
    index = ShardIndex.open(root / "imagenet", "val")
    number = 7
    place = int(index.offset[number])
    shard = index.shard_path(number)
    content = bytearray(shard.read_bytes())
    content[place : place + 8] = b"notapng!"
    shard.write_bytes(content)
    reading = {"on_error": "skip"}
    member = {"evaluation": WHOLE, "eval_batch_size": 16, "num_workers": 0, "reading": reading}
    config = {
        "trainer": {
            "default_root_dir": str(tmp_path / "run"),
            "logger": False,
            "enable_progress_bar": False,
            "accelerator": "cpu",
            "callbacks": [
                {"class_path": "lit_robust.callbacks.CleanAccuracy", "init_args": {"dataset": "imagenet"}},
                {"class_path": "lit_robust.callbacks.ShapeBiasEvaluation", "init_args": {"dataset": "cue-conflict"}},
            ],
        },
        "model": {
            "class_path": "lit_robust.modules.StandardModule",
            "init_args": {"network": {"name": "lit_robust/resnet_tiny", "num_classes": 8}},
        },
        "data": {
            "class_path": "lit_robust.data.RobustnessSuite",
            "init_args": {
                "root": str(root),
                "missing": "skip",
                "members": [
                    {"class_path": "lit_robust.data.ImageNetDataModule", "init_args": member},
                    {"class_path": "lit_robust.data.CueConflictDataModule"},
                ],
            },
        },
    }
    return config


def run(config, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return main(["test", "-c", str(file)])


def test_broken_images_and_missing_sets_are_counted_and_named(settings, tmp_path):
    assert run(settings, tmp_path) == 0
    found = RunResults.load(tmp_path / "run")
    assert {result.dataset for result in found.results} == {"imagenet"}
    assert all(result.count == 40 for result in found.results)
    assert all(result.protocol["broken_images"] == 1 for result in found.results)
    assert "partial" not in found.results[0].protocol
    assert list(found.run["missing_sets"]) == ["cue-conflict"]


def test_files_of_a_set_that_is_left_out_are_not_needed(settings, tmp_path):
    absent = {"dataset": "cue-conflict", "decisions": str(tmp_path / "absent")}
    settings["trainer"]["callbacks"] += [
        {"class_path": "lit_robust.callbacks.ErrorConsistencyEvaluation", "init_args": absent},
    ]
    assert run(settings, tmp_path) == 0
    left_out = RunResults.load(tmp_path / "run").run["left_out"]
    assert "ErrorConsistencyEvaluation on cue-conflict" in left_out


def test_what_needs_a_missing_set_is_named_and_its_own_set_not_read(settings, tmp_path, monkeypatch, caplog):
    """ImageNet-O's known images are ImageNet's, which are not there."""
    root = tmp_path / "others"
    write(root / "imagenet-a", "test", imagenet_subset("imagenet-a")[:3])
    write(root / "imagenet-o", "test", [0, 1, 2])
    member = {"evaluation": WHOLE, "eval_batch_size": 16, "num_workers": 0}
    names = ("ImageNetDataModule", "ImageNetADataModule", "ImageNetODataModule")
    members = [{"class_path": f"lit_robust.data.{name}", "init_args": member} for name in names]
    members[2]["init_args"] = {**member, "in_distribution": None}
    settings["data"]["init_args"] |= {"root": str(root), "members": members}
    settings["model"]["init_args"]["network"]["num_classes"] = 1000
    settings["trainer"]["callbacks"] = [
        {"class_path": "lit_robust.callbacks.CleanAccuracy", "init_args": {"dataset": "imagenet-a"}},
        {
            "class_path": "lit_robust.callbacks.OodEvaluation",
            "init_args": {"dataset": "imagenet-o", "known": "imagenet"},
        },
    ]
    read = []
    monkeypatch.setattr(StandardModule, "on_test_batch_start", lambda _, batch, *rest: read.append(len(batch)))
    assert run(settings, tmp_path) == 0
    found = RunResults.load(tmp_path / "run")
    assert {result.dataset for result in found.results} == {"imagenet-a"}
    assert found.run["left_out"] == {"OodEvaluation on imagenet-o": f"there is no folder {root / 'imagenet'}"}
    assert f"OodEvaluation on imagenet-o is left out: there is no folder {root / 'imagenet'}." in caplog.text
    assert read == [3]


def test_neither_is_left_out_unasked(settings, tmp_path, capsys):
    suite = settings["data"]["init_args"]
    suite["missing"] = "error"
    assert run(settings, tmp_path) == 2
    assert "There is no folder" in capsys.readouterr().err
    suite["missing"] = "skip"
    suite["members"][0]["init_args"]["reading"] = {"on_error": "error"}
    assert run(settings, tmp_path) == 2
    assert "is none of JPEG, PNG, WEBP, or damaged" in capsys.readouterr().err
    assert not (tmp_path / "run" / "results.json").exists()
