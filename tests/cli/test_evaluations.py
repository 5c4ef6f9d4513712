"""What a test attacks with, and every other setting of an evaluation, on the command line."""

import pytest
import yaml

from lit_robust.cli import main
from lit_robust.cli.evaluations import changed_callbacks, names_of
from lit_robust.cli.recipes import recipe
from lit_robust.core.errors import UserError

PGD = {"class_path": "lit_robust.attacks.PGD", "init_args": {"norm": "l2", "eps": 3.0, "step_size": 0.5, "steps": 7}}


def evaluation(kind, **settings):
    return {"class_path": f"lit_robust.callbacks.{kind}", "init_args": settings}


@pytest.fixture
def recipes_callbacks():
    return [
        evaluation("CleanAccuracy", dataset="imagenet"),
        evaluation("AdversarialAccuracy", attack=PGD, eps=[0.5, 1.0]),
        {"class_path": "pytorch_lightning.callbacks.LearningRateMonitor"},
    ]


def changed(callbacks, *words):
    return changed_callbacks(callbacks, [part for word in words for part in word.split(" ", 1)])


def attack_of(entry):
    return entry["init_args"]["attack"]["init_args"]


def test_names_are_kinds_and_own_names_and_sets():
    names = names_of(yaml.safe_load(recipe("eval/suite").read_text())["trainer"]["callbacks"])
    assert names == [
        *("clean_imagenet", "calibration_imagenet", "class_subset_imagenet", "adversarial", "clean_stylized_imagenet"),
        *("corruption_imagenet_c", "corruption_imagenet_c_like", "clean_imagenet_a", "calibration_imagenet_a", "ood"),
        *("shape_bias", "clean_scrambled_4", "clean_black_and_white", "clean_edges", "clean_stylised", "category"),
        *(
            "class_subset_imagenet_2",
            "clean_imagenet_r",
            "clean_imagenet_sketch",
            "clean_imagenet_v2_matched_frequency",
        ),
        *("merged_class_imagenet", "merged_class_objectnet", "listed_class"),
        *("corruption_imagenet_c_bar", "corruption_imagenet_3dcc"),
    ]
    threats = yaml.safe_load(recipe("eval/threat-models").read_text())["trainer"]["callbacks"]
    assert names_of(threats) == ["clean", "adversarial", "any_step", "cache_paper", "black_box_adversarial"]
    twice = [evaluation("CleanAccuracy")] * 2
    assert names_of([*twice, {"class_path": "pytorch_lightning.callbacks.Timer"}]) == ["clean", "clean_2", ""]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["attack.eps 1/255"], {"eps": 1 / 255, "step_size": None, "steps": 7, "norm": "l2"}),
        (["attack.eps 1", "attack.step_size 1/4"], {"eps": 1.0, "step_size": 0.25}),
        (["attack.restarts 5", "attack.start ball"], {"restarts": 5, "start": "ball", "step_size": 0.5}),
        (["attack.steps=50"], {"steps": 50, "step_size": None}),
        (["attack.step_size null"], {"eps": 3.0, "step_size": None}),
        (["attack.step_size=null", "attack.steps 9"], {"steps": 9, "step_size": None}),
    ],
)
def test_settings_of_an_attack(recipes_callbacks, words, expected):
    clean, adversarial, monitor = changed(recipes_callbacks, *(f"--evaluations.adversarial.{word}" for word in words))
    assert attack_of(adversarial).items() >= expected.items()
    assert adversarial["init_args"]["eps"] == [0.5, 1.0]
    assert clean["init_args"] == {"dataset": "imagenet"}
    assert monitor == recipes_callbacks[2]


def test_another_norm_drops_the_further_eps_and_another_attack_comes_with_its_settings(recipes_callbacks):
    norm = "--evaluations.adversarial.attack.norm linf"
    _, adversarial, _ = changed(recipes_callbacks, norm, "--evaluations.adversarial.attack.eps 4/255")
    assert attack_of(adversarial)["eps"] == 4 / 255
    assert adversarial["init_args"]["eps"] == []
    _, adversarial, _ = changed(recipes_callbacks, norm, "--evaluations.adversarial.eps [1/255]")
    assert adversarial["init_args"]["eps"] == [1 / 255]
    _, adversarial, _ = changed(
        recipes_callbacks, "--evaluations.adversarial.attack AutoAttack", "--evaluations.adversarial.attack.eps 1"
    )
    assert adversarial["init_args"]["attack"]["class_path"] == "lit_robust.attacks.AutoAttack"


def test_null_leaves_an_evaluation_out(recipes_callbacks):
    clean, monitor = changed(recipes_callbacks, "--evaluations.adversarial null")
    assert clean["class_path"].endswith("CleanAccuracy")
    assert monitor == recipes_callbacks[2]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (
            "adversarail.attack.eps 1",
            "no evaluation 'adversarail': did you mean adversarial? The recipe has clean",
        ),
        ("shape_bias.aggregation max", "no evaluation 'shape_bias': The recipe has clean, adversarial."),
        ("adversarial.attack.epsilon 1", "(PGD): there is no option 'epsilon'; did you mean 'eps'?"),
        ("adversarial.atack.eps 1", "(AdversarialAccuracy): there is no option 'atack.eps'; did you mean 'attack'?"),
        ("adversarial.attack.norm l3", "expected one of l1, l2, linf, got 'l3'"),
        ("adversarial.attack.eps big", "expected float, got 'big'"),
        ("clean.dataset", "has no value: write one after it"),
    ],
)
def test_wrong_words_end_in_a_sentence(recipes_callbacks, word, expected):
    with pytest.raises(UserError) as caught:
        changed(recipes_callbacks, f"--evaluations.{word}")
    assert expected in str(caught.value)


def test_the_command_line_takes_them(tmp_path, capsys):
    eps = ["--evaluations.adversarial.attack.eps", "1/2"]
    with pytest.raises(SystemExit):
        main(["test", "-c", "toy/adversarial", *eps, "--trainer.max_epochs", "2", "--print_config"])
    trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
    assert trainer["max_epochs"] == 2
    with pytest.raises(SystemExit):
        main(["fit", "-c", "toy/adversarial", "--model.attack.step_size", "null", "--print_config"])
    assert attack_of(yaml.safe_load(capsys.readouterr().out)["model"])["step_size"] is None
    (found,) = [entry for entry in trainer["callbacks"] if entry["class_path"].endswith("AdversarialAccuracy")]
    assert attack_of(found)["eps"] == 0.5
    assert main(["fit", "-c", "toy/adversarial", *eps]) == 2
    assert "give it to `lit-robust test`" in capsys.readouterr().err
    assert main(["test", "-c", "toy/adversarial", "--evaluations.calm.attack.eps", "1"]) == 2
    assert "There is no evaluation 'calm'" in capsys.readouterr().err
