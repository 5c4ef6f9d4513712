"""Every recipe parses, and every overlay on top of the recipe that its comment names."""

import re
from pathlib import Path

import pytest
import yaml

from lit_robust.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
RECIPES = [file for file in FILES if len(file.relative_to(CONFIGS).parts) == 2 and file.parent.name != "trainer"]
OVERLAYS = [file for file in FILES if file not in RECIPES]


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


@pytest.mark.parametrize("file", OVERLAYS, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_overlay_changes_what_it_names(file, capsys):
    comment = file.read_text().split("\n\n")[0]
    assert comment.startswith("# Overlay")
    if file.parent.name == "trainer":
        recipe = CONFIGS / "imagenet" / "madry.yaml"
    else:
        base, overlay = re.search(r"-c (configs/\S+) -c (configs/\S+)", comment).groups()
        assert CONFIGS.parent / overlay == file
        recipe = CONFIGS.parent / base
    content = printed(["fit", "-c", str(recipe), "-c", str(file)], capsys)
    assert_within(yaml.safe_load(file.read_text()), content)


def assert_within(given, content):
    """Check that all of an overlay stands in what a command would run with."""
    if isinstance(given, dict):
        if "class_path" in content and not given.keys() & {"class_path", "init_args"}:
            content = content["init_args"]
        for key, value in given.items():
            # What `key+` lists comes behind what the recipe lists.
            found = content[key[:-1]][-len(value) :] if key.endswith("+") else content[key]
            assert_within(value, found)
    elif isinstance(given, list) and isinstance(given[0], dict):
        for value, found in zip(given, content, strict=True):
            assert_within(value, found)
    else:
        assert content == given


def test_recipes_give_every_run_a_folder_of_its_own():
    trainers = [yaml.safe_load(file.read_text()).get("trainer", {}) for file in FILES]
    folders = [trainer["default_root_dir"] for trainer in trainers if "default_root_dir" in trainer]
    assert len(folders) >= len(RECIPES)
    assert len(set(folders)) == len(folders)


def test_papers_settings_of_the_imagenet_recipe():
    """Chen et al. 2020, section 2: 90 epochs, rate 0.1 divided by 10 every 30, batch 256; PGD-L2 eps 3, 7 times 0.5."""
    recipe = yaml.safe_load((CONFIGS / "imagenet/madry.yaml").read_text())
    model = recipe["model"]["init_args"]
    assert model["attack"] == {"norm": "l2", "eps": 3.0, "step_size": 0.5, "steps": 7, "start": "none"}
    rate = {key: model["optimisation"][key] for key in ("learning_rate", "schedule", "step_epochs", "step_factor")}
    assert rate == {"learning_rate": 0.1, "schedule": "step", "step_epochs": 30, "step_factor": 0.1}
    assert recipe["trainer"]["max_epochs"] == 90
    assert recipe["data"]["init_args"]["members"][0]["init_args"]["batch_size"] == 256
