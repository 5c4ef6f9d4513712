"""The trainer's ``precision: auto``, from a recipe to the results, on either kind of processor."""

import re
from pathlib import Path

import pytest
import yaml

from lit_robust.cli import main
from lit_robust.cli import precision as trainer_precision
from lit_robust.cli.precision import RobustTrainer
from lit_robust.core import precision
from lit_robust.core.hardware import Processor
from lit_robust.core.results import RunResults

CONFIGS = Path(__file__).parents[2] / "configs"
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture
def pretend(monkeypatch):
    def machine(flags, gain, gpu=None):
        monkeypatch.setattr(precision, "read_processor", lambda: Processor("Pretended CPU", frozenset(flags.split())))
        monkeypatch.setattr(precision, "bf16_gain", lambda: gain)
        monkeypatch.setattr(trainer_precision.torch.cuda, "is_available", lambda: False)

    return machine


@pytest.mark.parametrize(("flags", "gain", "expected"), [("avx512_bf16", 3.0, "bf16-mixed"), ("avx2", 0.1, "32-true")])
def test_auto_follows_the_processor(pretend, flags, gain, expected):
    pretend(flags, gain)
    assert RobustTrainer(precision="auto", accelerator="cpu", **QUIET).precision == expected
    assert RobustTrainer(precision="auto", **QUIET).precision == expected
    assert RobustTrainer(precision="32-true", **QUIET).precision == "32-true"
    assert RobustTrainer(**QUIET).precision == "32-true"


def test_bf16_on_a_processor_without_it_names_the_factor(pretend):
    pretend("avx2", 0.1)
    with pytest.warns(UserWarning, match="takes 10.0 times as long as in fp32"):
        assert RobustTrainer(precision="bf16-mixed", accelerator="cpu", **QUIET).precision == "bf16-mixed"


def test_every_recipe_says_its_precision():
    """``auto``, except where the numbers are compared with published ones or across machines, which the line says."""
    found = {}
    for file in sorted(CONFIGS.rglob("*.yaml")):
        trainer = (yaml.safe_load(file.read_text()) or {}).get("trainer") or {}
        if "devices" in trainer and file.parent.name != "trainer":
            found[str(file.relative_to(CONFIGS))] = trainer.get("precision")
    named = {name for name, value in found.items() if value != "auto"}
    toy = {f"toy/{name}.yaml" for name in ("adversarial", "advprop", "cache", "standard")}
    assert named == {"eval/autoattack.yaml", *toy}
    assert len(found) > 20
    for name in named:
        assert re.search(r"precision: 32-true # \w+", (CONFIGS / name).read_text())


@pytest.mark.parametrize(("flags", "gain", "expected"), [("avx512_bf16", 3.0, "bf16-mixed"), ("avx2", 0.1, "32-true")])
def test_results_say_which_was_used(pretend, toy, tmp_path, flags, gain, expected):
    pretend(flags, gain)
    words = ["-c", str(CONFIGS / "toy/adversarial.yaml"), "--trainer.precision", "auto", "--data.root", str(toy)]
    words += ["--trainer.default_root_dir", str(tmp_path), "--trainer.logger", "false", "--limit", "4"]
    assert main(["test", *words, "--trainer.enable_progress_bar", "false"]) == 0
    found = RunResults.load(tmp_path / "results.json")
    assert (found.run["precision"], found.run["scored_in"]) == (expected, "fp32")
    attacked = [result for result in found.results if "attack" in result.protocol]
    assert {result.protocol["attack_precision"] for result in attacked} == {expected}
