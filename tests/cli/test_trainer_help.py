"""Help of Lightning's commands: short, with a recipe's values, and true."""

import subprocess
import sys

import pytest

from lit_robust.cli import TRAINER_COMMANDS, main
from lit_robust.cli.trainer_help import NETWORK, RUN, TRAINING, trainer_help


@pytest.mark.parametrize("command", TRAINER_COMMANDS)
@pytest.mark.parametrize("recipe", [[], ["-c", "imagenet/madry"], ["-c", "eval/suite"]])
def test_help_fits_a_screen(command, recipe, capsys):
    assert main([command, *recipe, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) <= 200
    assert f"  lit-robust {command} --help all" in lines


def test_a_recipes_values_stand_beside_and_an_overlays_over_them():
    text = trainer_help(["fit", "-c", "imagenet/madry"])
    for told in (
        "[torchvision/resnet50]",
        "null for random  [null]",
        "4/255 is a number  [3.0]",
        "[90]",
        "step  [256]",
    ):
        assert told in text, told
    overlaid = trainer_help(["fit", "-c", "imagenet/madry", "-c", "imagenet/networks/resnet101"])
    assert "[torchvision/resnet101]" in overlaid
    assert "model.attack" not in trainer_help(["fit", "-c", "imagenet/standard"])
    assert "model.attack.eps" in trainer_help(["fit"])


def test_tests_name_their_evaluations():
    text = trainer_help(["test", "-c", "toy/adversarial", "-c", "toy/measures/all"])
    names = ["clean_imagenet", "adversarial", "shape_bias", "calibration", "clean_stylized_imagenet", "corruption"]
    assert f"NAME is one of: {', '.join(names)}, clean_imagenet_a, ood" in " ".join(text.split())


def test_every_option_is_one(capsys):
    options = [option[0] for part in (NETWORK, TRAINING, RUN) for group in part.values() for option in group]
    values = {"--model.network.weights": "null", "--trainer.logger": "false"}
    known = {"name": "lit_robust/resnet_tiny", "norm": "l2", "schedule": "cosine", "accelerator": "cpu",
             "precision": "32-true"}  # fmt: skip
    words = [word for one in options for word in (one, values.get(one, known.get(one.rsplit(".", 1)[-1], "1")))]
    with pytest.raises(SystemExit) as ended:
        assert main(["fit", "-c", "toy/adversarial", *words, "--print_config"]) == 0, capsys.readouterr().err
    assert ended.value.code == 0


def test_help_waits_for_no_torch_and_all_help_is_the_parsers():
    code = "import sys; from lit_robust.cli import main; main(['fit', '-h']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
    with pytest.raises(SystemExit):
        main(["fit", "--help", "all"])


def test_a_wrong_recipe_is_told(capsys):
    assert main(["fit", "-c", "imagenet/madri", "--help"]) == 2
    assert "did you mean imagenet/madry?" in capsys.readouterr().err
