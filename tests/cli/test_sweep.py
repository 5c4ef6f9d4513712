"""A sweep's file becomes commands, which run once each, and a page of what they measured."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from lit_robust.cli import steps
from lit_robust.cli.sweep import filled, run_sweep
from lit_robust.core.errors import UserError
from lit_robust.core.results import Result, RunResults

FILE = {
    "title": "A table",
    "variables": {"network": "small", "count": 3, "surrogate": {"name": "other"}, "protocol": "code"},
    "choices": {"protocol": {"code": {"steps": 10}, "text": {"steps": 20}}},
    "overlays": {"attack": {"steps": "{steps}", "note": "{steps} of {network}", "surrogate": "{surrogate}"}},
    "runs": {
        "memory": ["fit", "-c", "{network}.yaml", "--memory", "{output}/{run}/memory"],
        "smaller": ["memory cluster", "{output}/memory/memory", "--factor", "{count}"],
        "cache": ["test", "-c", "{overlay_attack}", "--surrogate", "{surrogate}"],
    },
}


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """Take the place of the processes: note the words; a test writes results."""
    ran = []

    def run(command, check):
        assert command[1:3] == ["-m", "lit_robust"]
        words = command[3:]
        ran.append(words)
        if words[0] == "test":
            folder = Path(words[words.index("--trainer.default_root_dir") + 1])
            found = [Result("imagenet", "top1", 0.5, "fraction", 2, {"split": "val"})]
            RunResults({"name": folder.name}, {"network": "none"}, found).save(folder)
        return SimpleNamespace(returncode=2 if "fails" in words else 0)

    monkeypatch.setattr(steps.subprocess, "run", run)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(FILE, sort_keys=False))
    return ran


def test_commands_run_once_and_the_page_shows_the_tests(commands, tmp_path, capsys):
    output = tmp_path / "out"
    run_sweep(tmp_path / "sweep.yaml", output, ["network=large", "protocol=text"], only_list=False)
    folder = ["--trainer.default_root_dir"]
    assert commands == [
        ["fit", "-c", "large.yaml", "--memory", f"{output}/memory/memory", *folder, str(output / "memory")],
        ["memory", "cluster", f"{output}/memory/memory", "--factor", "3"],
        [
            *["test", "-c", str(output / "overlays" / "attack.yaml"), "--surrogate", '{"name": "other"}'],
            *[*folder, str(output / "cache")],
        ],
    ]
    overlay = yaml.safe_load((output / "overlays" / "attack.yaml").read_text())
    assert overlay == {"steps": 20, "note": "20 of large", "surrogate": {"name": "other"}}
    assert "50.0" in capsys.readouterr().out
    assert "cache" in (output / "report.html").read_text()
    commands.clear()
    run_sweep(tmp_path / "sweep.yaml", output, ["network=large", "protocol=text"], only_list=False)
    assert commands == []
    # Another attack: what follows from it is measured again, and no memory does.
    run_sweep(tmp_path / "sweep.yaml", output, ["network=large", "protocol=code"], only_list=False)
    assert [words[0] for words in commands] == ["test"]
    commands.clear()
    # Another network: so is what its memory was made into, whose own words name no network.
    run_sweep(tmp_path / "sweep.yaml", output, ["network=small", "protocol=code"], only_list=False)
    assert [words[0] for words in commands] == ["fit", "memory", "test"]


def test_a_recipe_that_was_edited_is_run_again(commands, tmp_path):
    recipe = tmp_path / "large.yaml"
    for text, count in (("a: 1", 3), ("a: 1", 0), ("a: 2", 2)):
        recipe.write_text(text)
        commands.clear()
        run_sweep(tmp_path / "sweep.yaml", tmp_path / "out", [f"network={tmp_path}/large"], only_list=False)
        assert len(commands) == count


def test_a_memory_in_its_place_is_not_built_again(commands, tmp_path):
    """A call that was killed between the end of a memory and the mark that says so."""
    run_sweep(tmp_path / "sweep.yaml", tmp_path / "out", [], only_list=False)
    mark = tmp_path / "out" / "memory" / steps.MARK
    mark.write_text(mark.read_text().replace("true", "false"))
    (tmp_path / "out" / "memory" / "memory").mkdir()
    commands.clear()
    run_sweep(tmp_path / "sweep.yaml", tmp_path / "out", [], only_list=False)
    assert commands == []


def test_another_sweep_has_a_folder_of_its_own(commands, tmp_path):
    run_sweep(tmp_path / "sweep.yaml", tmp_path / "out", [], only_list=False)
    (tmp_path / "other.yaml").write_text((tmp_path / "sweep.yaml").read_text())
    with pytest.raises(UserError, match=r"holds the sweep sweep.yaml, and would lose it: choose another --output"):
        run_sweep(tmp_path / "other.yaml", tmp_path / "out", [], only_list=False)


def test_one_run_for_each_entry(commands, tmp_path):
    """Entries are set one by one, or one part of one; null leaves one out."""
    content = {
        "title": "Rows",
        "variables": {"networks": {"a": {"name": "one", "weights": "x"}, "b": {"name": "two"}}},
        "each": {"networks": ["test", "--network", "{entry}", "--as", "{run}"]},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    settings = ["networks.a.weights=y.pt", "networks.b=null", "networks.c={name: three}"]
    run_sweep(tmp_path / "sweep.yaml", tmp_path / "out", settings, only_list=False)
    folder = "--trainer.default_root_dir"
    assert commands == [
        ["test", "--network", '{"name": "one", "weights": "y.pt"}', "--as", "a", folder, str(tmp_path / "out" / "a")],
        ["test", "--network", '{"name": "three"}', "--as", "c", folder, str(tmp_path / "out" / "c")],
    ]


def test_a_run_that_asks_for_null_is_left_out(commands, tmp_path):
    run_sweep(tmp_path / "sweep.yaml", tmp_path / "out", ["count=null"], only_list=False)
    assert [words[0] for words in commands] == ["fit", "test"]


def test_other_weights_or_data_are_measured_again(commands, tmp_path):
    """What a run is given may change under its name: a checkpoint that a later training wrote over, new shards."""
    weights, shards = tmp_path / "last.ckpt", tmp_path / "data" / "imagenet"
    weights.write_bytes(b"first")
    shards.mkdir(parents=True)
    content = {
        "title": "Rows",
        "variables": {"networks": {"a": {"name": "one", "weights": str(weights)}}, "data": str(tmp_path / "data")},
        "each": {"networks": ["test", "--data.root", "{data}", "--network", "{entry}"]},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))

    def count() -> int:
        run_sweep(tmp_path / "sweep.yaml", tmp_path / "out", [], only_list=False)
        return len(commands)

    assert [count(), count()] == [1, 1]
    weights.write_bytes(b"other")
    assert [count(), count()] == [2, 2]
    (shards / "val-0.tar").write_bytes(b"shard")
    assert [count(), count()] == [3, 3]


def test_a_quick_look_limits_the_tests(commands, tmp_path):
    run_sweep(tmp_path / "sweep.yaml", tmp_path / "out", [], limit=20)
    assert [words[-4:-2] == ["--limit", "20"] for words in commands] == [False, False, True]


def test_a_list_runs_nothing(commands, tmp_path, capsys):
    run_sweep(tmp_path / "sweep.yaml", tmp_path / "out", [], only_list=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1] == f"memory cluster {tmp_path}/out/memory/memory --factor 3"
    # A job has a folder of its own, and refuses another.
    assert "--trainer.default_root_dir" not in " ".join(lines)
    assert commands == []


def test_a_run_that_failed_is_run_again(commands, tmp_path):
    content = {**FILE, "runs": {"first": ["memory verify", "x"], "second": ["fit", "fails"], "third": ["test"]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    for _ in range(2):
        with pytest.raises(UserError, match="Stopped at the command above"):
            run_sweep(tmp_path / "sweep.yaml", tmp_path / "out", [], only_list=False)
    assert [words[0] for words in commands] == ["memory", "fit", "fit"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["color=red"], "names none of network, count"),
        (["network"], "write one as name=value"),
        (["protocol=other"], "protocol is 'other': choose one of code, text"),
        (["count=[1"], "is no YAML"),
        (["protocol=[1]"], r"protocol is \[1\]: choose one"),
        (["surrogate=null"], "No run of .* that measures something is left"),
        (["count.one=3"], "names an entry of count, which has none: write count="),
    ],
)
def test_settings_that_are_wrong(commands, tmp_path, settings, says):
    with pytest.raises(UserError, match=says):
        run_sweep(tmp_path / "sweep.yaml", tmp_path / "out", settings, only_list=False)
    assert commands == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1, 2", "is no sweep"),
        ("title: x", "is no sweep"),
        ("{title: x, variables: {}, runs: []}", "its runs are no mapping"),
        ("{title: x, variables: {}, runs: {a: []}}", "a has no words of a command"),
        ("{title: x, variables: {}, runs: {../a: [test]}}", "'../a' is no name of a folder"),
        ("{title: x, variables: {}, runs: {a: [test, '{']}}", "is no sweep"),
        ("{title: x, variables: {a: 1}, each: {a: [test]}}", "its variable a has no entries"),
        ("{title: x, variables: {}, choices: {a: {}}}", "'a' is none of its variables"),
        (None, "cannot be read"),
    ],
)
def test_files_that_are_no_sweeps(tmp_path, content, says):
    if content is not None:
        (tmp_path / "sweep.yaml").write_text(content)
    with pytest.raises(UserError, match=says):
        run_sweep(tmp_path / "sweep.yaml", tmp_path / "out", [], only_list=False)


def test_a_placeholder_without_a_value():
    with pytest.raises(UserError, match="asks for 'b', which is no variable"):
        filled(["{b}"], {"a": 1})


def test_a_folder_of_others_is_left_alone(commands, tmp_path):
    (tmp_path / "out" / "memory").mkdir(parents=True)
    (tmp_path / "out" / "memory" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="did not write: choose another --output"):
        run_sweep(tmp_path / "sweep.yaml", tmp_path / "out", [], only_list=False)
    assert (tmp_path / "out" / "memory" / "thesis.txt").read_text() == "mine"
