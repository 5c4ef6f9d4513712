"""The table of commands, their options read from signatures, their start, and recipes by their short names."""

import inspect
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from lit_robust.cli import (
    TRAINER_COMMANDS,
    analyses,
    bench_all,
    benches,
    commands,
    conflicts,
    filtering,
    main,
    memories,
    papers,
    representations,
    sensitivity,
    zero_shot,
)
from lit_robust.cli.main import NAMES, function_of
from lit_robust.cli.options import call, made
from lit_robust.cli.recipes import about, names, recipe, with_recipes
from lit_robust.core.errors import UserError


def test_the_table_names_every_command_and_no_other():
    tools = {name for name in set(NAMES) - set(TRAINER_COMMANDS) if not name.startswith("data derive ")}
    functions = {
        each
        for room in (
            analyses,
            bench_all,
            benches,
            commands,
            conflicts,
            filtering,
            memories,
            representations,
            sensitivity,
            zero_shot,
        )
        for name, each in vars(room).items()
        if inspect.isfunction(each) and each.__module__ == room.__name__ and not name.startswith("_")
    }
    assert {function_of(name) for name in tools} == functions | {getattr(papers, name) for name in papers.__all__}


def test_start_without_torch(tmp_path):
    """What needs no torch does not wait for it: help, reports, checks and packing of shards, recipes."""
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "b").mkdir()
    code = f"""
import sys
from pathlib import Path
from PIL import Image
from lit_robust.cli import main
from lit_robust.cli.main import NAMES, TRAINER_COMMANDS
from lit_robust.core.results import Result, RunResults
for name in ("a/1.png", "b/2.png"):
    Image.new("RGB", (16, 16)).save("{tmp_path}/images/" + name)
found = RunResults({{"name": "run"}}, {{}}, [Result("imagenet", "top1", 0.5, "fraction", 2, {{}})])
found.save(Path("{tmp_path}/run"))
lines = [["--help"], ["recipes"], ["data"], ["report", "{tmp_path}/run", "-o", "{tmp_path}/table.md"],
         ["data", "shard", "{tmp_path}/images", "{tmp_path}/shards", "--split", "val"],
         ["data", "verify", "{tmp_path}/shards"]]
lines += [[*name.split(), "--help"] for name in NAMES if name not in TRAINER_COMMANDS]
for line in lines:
    try:
        assert main(line) == 0, line
    except SystemExit as ended:
        assert ended.code == 0, line
    heavy = {{"torch", "pytorch_lightning", "matplotlib", "wandb", "timm", "sklearn", "faiss"}} & set(sys.modules)
    assert not heavy, (line, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: lit-robust bench attacks" in done.stdout


def test_the_first_help_imports_nothing_but_python(tmp_path):
    code = (
        "import sys; from lit_robust.cli import main; main(['--help']); "
        "sys.exit(len({'torch', 'numpy', 'jsonargparse', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "lit-robust COMMAND" in done.stdout
    assert all(f"  {name} " in done.stdout for name in NAMES)


@pytest.mark.parametrize("words", [["--help"], ["recipes"], ["paper"]], ids=" ".join)
def test_output_that_nobody_reads_any_more(words):
    """As in ``lit-robust recipes | head -1``."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "lit_robust", *words], stdout=write, stderr=-1, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_bar_in_a_log_is_not_drawn_ten_times_a_second():
    code = """
from lit_robust.cli import main
main(["--version"])
from time import sleep
from tqdm import tqdm
for _ in tqdm(range(30)):
    sleep(0.02)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "30/30" in done.stderr
    assert done.stderr.count("\r") <= 3


def test_choices_are_those_of_the_rooms():
    """They stand twice, for the rooms that know them import torch."""
    from lit_robust.callbacks.ood import Score
    from lit_robust.metrics.shape_bias import Aggregation
    from lit_robust.reference.corruption_baselines import BaselineName

    for own, room in ((commands.Score, Score), (commands.Aggregation, Aggregation), (commands.Baseline, BaselineName)):
        assert get_args(own) == get_args(room)


def example(
    folder: Path,
    other: Path | None = None,
    *,
    command: str,
    rate: float = 0.5,
    eps: Sequence[float] = (0.25, 1.0),
    words: tuple[str, ...] = (),
    fast: bool = False,
    two_words: str | None = None,
    attack: Mapping[str, Any] = {},
):
    """Do it.

    Args:
        folder: one
        other: two
        command: the line
        rate: of it
        eps: several
        words: several, too
        fast: or not
        two_words: null
        attack: settings
    """


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x", {}),
        ("x y", {"other": Path("y")}),
        ("x --rate 4/255", {"rate": 4 / 255}),
        ("x --rate=-1e-1/2.5", {"rate": -0.04}),
        ("x --eps [1/255,2/255,3]", {"eps": [1 / 255, 2 / 255, 3.0]}),
        ("x --words a b", {"words": ["a", "b"]}),
        ("x --fast --two-words 4/255", {"fast": True, "two_words": "4/255"}),
        ("x --attack.eps 4/255 --attack.norm l2", {"attack": {"eps": 4 / 255, "norm": "l2"}}),
    ],
)
def test_words_become_arguments(line, expected):
    typed = shlex.join(["lit-robust", "do", "it", *line.split()])
    whole = {"folder": Path("x"), "other": None, "rate": 0.5, "eps": [0.25, 1.0], "words": [], "fast": False,
             "two_words": None, "attack": {}, "command": typed}  # fmt: skip
    assert call("do it", line.split(), example) == [whole | expected]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "required: folder"),
        ("x --rat 1", "there is no option 'rat'; did you mean 'rate'?"),
        ("x --rate 4/0", "In rate: expected float, got '4/0'"),
        ("x --rate much", "In rate: expected float, got 'much'"),
        ("x --eps 3", "In eps: expected a list, got '3'"),
    ],
)
def test_words_that_are_wrong(line, says):
    with pytest.raises(UserError, match=says.replace("[", r"\[").replace("?", r"\?")):
        call("do it", line.split(), example)


@dataclass(frozen=True)
class Group:
    """What several are told.

    Attributes:
        size: in pixels
        split: of the set
        network: by name
    """

    size: int
    split: str = "val"
    network: Mapping[str, Any] = field(default_factory=dict)


def grouped(folder: Path, *, group: Group = Group(3), own: int = 1):
    """Do it.

    Args:
        folder: one
        group: the set
        own: option
        split: of the pool
    """


def required(*, group: Group):
    """Do it.

    Args:
        group: the set
    """


def test_the_fields_of_a_group_are_options(capsys):
    assert call("do it", ["x"], grouped) == [{"folder": Path("x"), "group": Group(3), "own": 1}]
    words = ["x", "--size", "4", "--own", "2", "--network.name", "a", "--network.num_classes", "5"]
    own = Group(4, "val", {"name": "a", "num_classes": 5})
    assert call("do it", words, grouped) == [{"folder": Path("x"), "group": own, "own": 2}]
    with pytest.raises(SystemExit):
        call("do it", ["--help"], grouped)
    said = " ".join(capsys.readouterr().out.split())
    assert "--size SIZE in pixels" in said
    assert "of the pool" in said  # The function's word on a field is nearer than the class's.
    assert "of the set" not in said
    with pytest.raises(UserError, match="size"):
        call("do it", [], required)
    with pytest.raises(UserError, match="no option 'sizes'; did you mean 'size'"):
        call("do it", ["--sizes", "1"], required)


def test_settings_become_a_dataclass():
    from lit_robust.attacks import PGD

    assert made(PGD, "attack", {"eps": 4 / 255, "norm": "linf", "step_size": 1 / 255}).eps == 4 / 255
    with pytest.raises(UserError, match=r"In attack \(PGD\): there is no option 'nom'; did you mean 'norm'"):
        made(PGD, "attack", {"nom": "linf"})


def test_a_recipe_is_found_by_its_short_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = str(recipe("imagenet/madry"))
    for name in ("imagenet/madry", "imagenet/madry.yaml", "configs/imagenet/madry.yaml"):
        assert with_recipes(["fit", "-c", name, f"--config={name}", "--x", name]) == [
            *("fit", "-c", file, f"--config={file}", "--x", name)
        ]
    with pytest.raises(SystemExit):
        main(["test", "-c", "toy/standard", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["default_root_dir"] == "runs/toy/standard"
    with pytest.raises(UserError, match=r"no recipe 'imagenet/madri': did you mean imagenet/madry\?"):
        with_recipes(["-c", "imagenet/madri"])
    # A file of that name comes first.
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet" / "madry").write_text("")
    assert with_recipes(["-c", "imagenet/madry"]) == ["-c", "imagenet/madry"]


def test_recipes_are_listed_and_copied(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == names()
    assert all(20 < len(about(name)) < 130 for name in names())
    assert main(["recipes", "copy", "toy/standard"]) == 0
    assert (tmp_path / "standard.yaml").read_text() == recipe("toy/standard").read_text()
    assert main(["recipes", "copy", "toy/standard"]) == 2
    assert "standard.yaml is there already" in capsys.readouterr().err
    assert main(["recipes", "copy", "toy/standard", "mine/a.yaml"]) == 0
    assert (tmp_path / "mine" / "a.yaml").is_file()
