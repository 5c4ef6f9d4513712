"""A paper's table becomes commands, which run once each, and a page of what they measured."""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from lit_robust.cli import main, steps
from lit_robust.cli.papers.pairs import shape_table_3
from lit_robust.cli.papers.runs import overlay, run, run_paper
from lit_robust.cli.papers.units import shape_table_4
from lit_robust.core.errors import UserError
from lit_robust.core.results import Result, RunResults

CONFIGS = Path(__file__).parents[2] / "configs"
SHOWN = re.findall(r"^lit-robust (paper .*)$", (CONFIGS / "README.md").read_text(), flags=re.MULTILINE)
SURROGATE = {"name": "other", "weights": "w.pt"}


def table(
    output: Path,
    /,
    *,
    recipe: str = "toy/cache",
    count: int | None = 3,
    steps: int = 10,
    surrogate: Mapping[str, Any] = SURROGATE,
    rows: Mapping[str, Any] = {},
):
    """A table.

    Args:
        output: folder
        recipe: of the memory
        count: times fewer keys; null for none of them
        steps: of the attack
        surrogate: network
        rows: further ones
    """
    attack = overlay(output, "attack", {"steps": steps, "surrogate": surrogate})
    runs = [run("memory", "fit", "-c", recipe, "--memory", output / "memory" / "memory")]
    if count is not None:
        runs.append(run("smaller", "memory", "cluster", output / "memory" / "memory", "--factor", count))
    cache = run("cache", "test", "-c", attack, "--surrogate", surrogate, "--memory", output / "memory" / "memory")
    return [*runs, cache, *(run(name, "test", "--network", row) for name, row in rows.items())]


def rows_alone(output: Path, /, *, rows: Mapping[str, Any] = {}):
    """Rows.

    Args:
        output: folder
        rows: networks
    """
    return [run(name, "test", "--network", row) for name, row in rows.items() if row is not None]


@pytest.fixture
def call(tmp_path):
    """Run the table with some options in a folder of this test."""

    def call(*words, paper=table):
        run_paper("table", ["--output", str(tmp_path / "out"), *words], paper)

    return call


@pytest.fixture
def commands(monkeypatch):
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
    return ran


def test_commands_run_once_and_the_page_shows_the_tests(commands, call, tmp_path, capsys):
    output = tmp_path / "out"
    call("--steps", "20")
    folder, memory = "--trainer.default_root_dir", f"{output}/memory/memory"
    attack = str(output / "overlays" / "attack.yaml")
    surrogate = '{"name": "other", "weights": "w.pt"}'
    assert commands == [
        ["fit", "-c", "toy/cache", "--memory", memory, folder, str(output / "memory")],
        ["memory", "cluster", memory, "--factor", "3"],
        ["test", "-c", attack, "--surrogate", surrogate, "--memory", memory, folder, str(output / "cache")],
    ]
    assert yaml.safe_load(Path(attack).read_text()) == {"steps": 20, "surrogate": SURROGATE}
    printed = capsys.readouterr().out
    assert "A table." in printed
    assert "50.0" in printed
    assert "cache" in (output / "report.html").read_text()
    commands.clear()
    call("--steps", "20")
    assert commands == []
    # Another attack: what follows from it is measured again, and no memory does.
    call("--steps", "10")
    assert [words[0] for words in commands] == ["test"]
    commands.clear()
    # Another recipe: so is what its memory was made into, whose own words name no recipe.
    call("--steps", "10", "--recipe", "tiny-imagenet/cache")
    assert [words[0] for words in commands] == ["fit", "memory", "test"]


def test_a_recipe_that_was_edited_is_run_again(commands, call, tmp_path):
    recipe = tmp_path / "large.yaml"
    for text, count in (("a: 1", 3), ("a: 1", 0), ("a: 2", 3)):
        recipe.write_text(text)
        commands.clear()
        call("--recipe", str(recipe))
        assert len(commands) == count


def test_a_memory_in_its_place_is_not_built_again(commands, call, tmp_path):
    """A call that was killed between the end of a memory and the mark that says so."""
    call()
    mark = tmp_path / "out" / "memory" / steps.MARK
    mark.write_text(mark.read_text().replace("true", "false"))
    (tmp_path / "out" / "memory" / "memory").mkdir()
    commands.clear()
    call()
    assert commands == []


def test_another_table_has_a_folder_of_its_own(commands, call, tmp_path):
    call()
    with pytest.raises(UserError, match=r"holds the paper's table, and would lose it: choose another --output"):
        run_paper("figure", ["--output", str(tmp_path / "out")], table)


def test_one_entry_of_a_mapping_is_changed_alone(commands, call):
    """The rest of it stays, whether words change one part of an entry or add one; the last word counts."""
    words = ["--surrogate.weights", "y.pt", "--surrogate.mean=[0.5, 1/4]", "--surrogate.weights=z.pt"]
    call("--count", "null", *words, "--rows.a", "{name: one}", "--rows.a.weights.file", "v.pt", "--rows", "{b: {c: 1}}")
    surrogate = '{"name": "other", "weights": "z.pt", "mean": [0.5, 0.25]}'
    assert [words[words.index("--surrogate") + 1] for words in commands if "--surrogate" in words] == [surrogate]
    assert [words[1:3] for words in commands if "--network" in words] == [["--network", '{"c": 1}']]
    commands.clear()
    call("--count", "null", *words, "--rows.a", "{name: one}", "--rows.a.weights.file", "v.pt")
    assert [words[1:3] for words in commands] == [["--network", '{"name": "one", "weights": {"file": "v.pt"}}']]


def test_other_weights_or_data_are_measured_again(commands, call, tmp_path):
    """What a run is given may change under its name: a checkpoint that a later training wrote over, new shards."""
    weights, shards = tmp_path / "last.ckpt", tmp_path / "data" / "imagenet"
    weights.write_bytes(b"first")
    shards.mkdir(parents=True)

    def count() -> int:
        call("--rows.a", f"{{weights: {weights}, data: {tmp_path / 'data'}}}", paper=rows_alone)
        return len(commands)

    assert [count(), count()] == [1, 1]
    weights.write_bytes(b"other")
    assert [count(), count()] == [2, 2]
    (shards / "val-0.tar").write_bytes(b"shard")
    assert [count(), count()] == [3, 3]


def test_a_quick_look_limits_the_tests(commands, call):
    call("--limit", "20")
    assert [words[-4:-2] == ["--limit", "20"] for words in commands] == [False, False, True]


def test_a_list_runs_nothing(commands, call, tmp_path, capsys):
    call("--list")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1] == f"memory cluster {tmp_path}/out/memory/memory --factor 3"
    # A job has a folder of its own, and refuses another.
    assert "--trainer.default_root_dir" not in " ".join(lines)
    assert commands == []


def test_a_run_that_failed_is_run_again(commands, call):
    for _ in range(2):
        with pytest.raises(UserError, match="Stopped at the command above"):
            call("--rows.a", "one", "--rows.b", "fails", "--rows.c", "three", paper=rows_alone)
    assert [words[2] for words in commands] == ["one", "fails", "fails"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--color", "red"], "there is no option 'color'; choose one of recipe, count"),
        (["--steps", "many"], "In steps: expected int, got 'many'"),
        (["--limit", "0"], "In limit: expected a whole number above 0, got '0'"),
        (["--surrogate.weights", "[1"], r"--surrogate.weights is '\[1', which is not YAML"),
        (["--rows.a/b", "one"], r"The run 'a/b' cannot name a folder"),
        (["--rows", "{../a: one}"], r"The run '../a' cannot name a folder"),
        (["--recipe", "toy/cach"], "There is no recipe 'toy/cach': did you mean toy/cache?"),
    ],
)
def test_options_that_are_wrong(commands, call, words, says):
    with pytest.raises(UserError, match=says):
        call(*words)
    assert commands == []


def test_nothing_that_measures(commands, call):
    with pytest.raises(UserError, match="No run of table that measures something is left"):
        call("--rows.a", "null", paper=rows_alone)


def test_a_folder_of_others_is_left_alone(commands, call, tmp_path):
    (tmp_path / "out" / "memory").mkdir(parents=True)
    (tmp_path / "out" / "memory" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="did not write: choose another --output"):
        call()
    assert (tmp_path / "out" / "memory" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("line", SHOWN, ids=lambda line: " ".join(line.split()[1:4:2]))
def test_commands_of_a_paper_parse(line, tmp_path, capsys, monkeypatch):
    """Each command that the recipes' page shows, without running it: on ImageNet and on the toy data."""
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(line), "--list", "--output", str(tmp_path / "output")]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    # One of each kind: the others differ in values alone.
    kinds = {(words[0], "--model.memory" in words): words for words in lines if words[0] in ("fit", "test")}
    assert kinds
    for words in kinds.values():
        with pytest.raises(SystemExit) as ended:
            main([*words, "--print_config"])
        assert ended.value.code == 0
        assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["network"]["name"] in " ".join(words)


def test_what_replaced_the_old_command_is_said(capsys):
    assert main(["sweep", "configs/sweeps/cache-table-1.yaml", "data=x"]) == 2
    assert "is now `lit-robust paper cache-table-1 --name VALUE`" in capsys.readouterr().err


def test_a_pair_is_tested_on_what_both_get_right(tmp_path):
    networks = {"s": {"name": "lit_robust/resnet_tiny"}, "r": {"name": "lit_robust/resnet_small"}}
    runs = shape_table_3(tmp_path, networks=networks, pairs={"toy": ["s", "r"]}, grids=[2, 3])
    assert [one.name for one in runs] == ["clean-s", "clean-r", "toy-s", "toy-r", "toy-paired"]
    assert runs[-1].words == ("paired", str(tmp_path / "toy-s"), str(tmp_path / "toy-r"))
    settings = yaml.safe_load((tmp_path / "overlays" / "toy.yaml").read_text())
    lists = [str(tmp_path / f"clean-{name}" / "correct-imagenet.json") for name in ("s", "r")]
    restricted = {
        one["init_args"]["dataset"]
        for one in settings["trainer"]["callbacks"]
        if one["class_path"].endswith("SampleRestriction") and one["init_args"]["files"] == lists
    }
    members = {one["init_args"].get("name", "imagenet") for one in settings["data"]["init_args"]["members"]}
    texture_less = {"black-and-white", "edges", "stylized-imagenet", "silhouettes"}
    assert restricted == members == {"imagenet", "scrambled-2", "scrambled-3", *texture_less}


@pytest.mark.parametrize("pair", [["s"], ["s", "other"], ["s", "r", "s"]])
def test_a_pair_of_networks_that_are_not_there(pair, tmp_path):
    with pytest.raises(UserError, match="name a standard and a robust network of --networks"):
        shape_table_3(tmp_path, networks={"s": {}, "r": {}}, pairs={"toy": pair})


def test_filters_are_matched_with_those_of_the_standard_network(tmp_path):
    networks = {name: {"name": f"torchvision/{name}"} for name in ("small-standard", "small-robust", "alone")}
    runs = {one.name: one.words for one in shape_table_4(tmp_path, networks=networks, concepts=None)}
    assert runs.keys() == {f"{name}-{kind}" for name in networks for kind in ("smoothness", "ablation")}
    robust = runs["small-robust-smoothness"]
    assert json.loads(robust[robust.index("--other") + 1]) == networks["small-standard"]
    assert all("--other" not in words for name, words in runs.items() if name != "small-robust-smoothness")
