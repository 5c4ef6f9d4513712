"""Every recipe parses, and every overlay on top of a recipe."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lit_robust.cli import main
from lit_robust.demo import config

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
RECIPES = [file for file in FILES if file.parent.name != "trainer"]
OVERLAYS = [file for file in FILES if file.parent.name == "trainer"]


def printed(words, capsys):
    """Return the configuration a command would run with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*words, "--print_config"])
    assert ended.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_recipe_parses_and_says_what_it_is(file, capsys):
    content = printed(["test", "-c", str(file)], capsys)
    given = yaml.safe_load(file.read_text())
    assert content["trainer"]["default_root_dir"] == given["trainer"]["default_root_dir"]
    assert content["model"]["init_args"]["network"]["name"] == given["model"]["init_args"]["network"]["name"]
    assert file.read_text().startswith("# ")
    assert f"configs/{file.relative_to(CONFIGS)}" in file.read_text(), "the comment shows the command"


@pytest.mark.parametrize("file", OVERLAYS, ids=lambda file: file.name)
def test_overlay_changes_what_it_names(file, capsys):
    recipe = CONFIGS / "imagenet" / "madry.yaml"
    content = printed(["fit", "-c", str(recipe), "-c", str(file)], capsys)
    for key, value in yaml.safe_load(file.read_text())["trainer"].items():
        if isinstance(value, list):
            given = [(entry["class_path"], entry["init_args"].items()) for entry in value]
            for entry, (class_path, settings) in zip(content["trainer"][key], given, strict=True):
                assert entry["class_path"] == class_path
                assert settings <= entry["init_args"].items()
        else:
            assert content["trainer"][key] == value


def test_recipes_give_every_run_a_folder_of_its_own():
    folders = [yaml.safe_load(file.read_text())["trainer"]["default_root_dir"] for file in RECIPES]
    assert len(set(folders)) == len(folders)


def test_papers_settings_of_the_imagenet_recipe():
    """Paper 002, section 2: 90 epochs, rate 0.1 divided by 10 every 30, batch 256; PGD-L2 eps 3, 7 steps of 0.5."""
    recipe = yaml.safe_load((CONFIGS / "imagenet/madry.yaml").read_text())
    model = recipe["model"]["init_args"]
    assert model["attack"] == {"norm": "l2", "eps": 3.0, "step_size": 0.5, "steps": 7, "start": "none"}
    rate = {key: model["optimisation"][key] for key in ("learning_rate", "schedule", "step_epochs", "step_factor")}
    assert rate == {"learning_rate": 0.1, "schedule": "step", "step_epochs": 30, "step_factor": 0.1}
    assert recipe["trainer"]["max_epochs"] == 90
    assert recipe["data"]["init_args"]["members"][0]["init_args"]["batch_size"] == 256


def test_demo_finds_the_recipes():
    assert config("toy/standard.yaml").is_file()


def test_help_answers_without_torch():
    """The first help must not import anything heavy; that is why it answers at once."""
    code = (
        "import sys; from lit_robust.cli import main; main(['--help']); "
        "heavy = {'torch', 'numpy', 'jsonargparse', 'pytorch_lightning'} & set(sys.modules); sys.exit(len(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "lit-robust COMMAND" in done.stdout
