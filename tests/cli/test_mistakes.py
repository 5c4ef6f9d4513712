"""Users' mistakes end in one sentence that names the value and the fix, exit code 2, and nothing half-written."""

import shutil
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import yaml

from lit_robust.cli import main
from lit_robust.core.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def words(toy, tmp_path):
    return ["-c", str(CONFIGS / "toy/standard.yaml"), "--data.root", str(toy), "--trainer.logger", "false",
            "--trainer.default_root_dir", str(tmp_path / "run")]  # fmt: skip


def sentence(args, capsys):
    """Run a command that must fail, and return the one line it prints."""
    capsys.readouterr()
    assert main(args) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-robust: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("lit-robust: ")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--trainer.max_epoch", "3"], "no option 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
        (["--model.netwrk.name", "x"], "In model (StandardModule): there is no option 'netwrk.name'; did you mean"),
        (["--model.network.num_classes", "5"], "The network has 5 classes, but"),
        (["--model.network.num_classes", "five"], "expected int, got 'five'"),
        (["--model.network.mean", "0.5"], "In model.network.mean (StandardModule): expected tuple, got '0.5';"),
        (
            ["--model.network.name", "resnet50"],
            "Unknown network 'resnet50' (did you mean torchvision/resnet50?)",
        ),
        (["--model.network.name", "torchvision/resnet5O"], "no classifier 'resnet5O' (did you mean resnet50?)"),
        (
            ["--model.network.name", "nowhere.nets:make"],
            "There is no module nowhere, which the network nowhere.nets:make",
        ),
        (
            ["--model.network.name", "torch.nn:Linear", "--model.network.arguments", '{"depth": 3}'],
            "cannot be called with the arguments {'depth': 3}",
        ),
        (
            ["--model.network.arguments", '{"depth": 3}'],
            "arguments are {'depth': 3}, but lit_robust/resnet_tiny takes none",
        ),
        (["--data.root", "/nowhere"], "There is no folder /nowhere/imagenet: check the path"),
        (["--model.network.weights", "/nowhere.pt"], "There is no weights file /nowhere.pt: check the path."),
        (["--ckpt_path", "/nowhere.ckpt"], "The checkpoint /nowhere.ckpt does not exist: give a file"),
        (["--data.members.init_args.eval_batch_size", "0"], "eval_batch_size is 0: give 1 or more."),
        (["--seed_everything", "-1"], "seed_everything is -1: give 0 or more."),
        (["--model.network.mean", "[127, 127, 127]"], "divide them by 255"),
        (["--trainer.precision", "bf16-true"], "use bf16-mixed"),
        (["--trainer.default_root_dir", "null"], "default_root_dir is null: name the run's folder."),
        (["--trainer.accelerator", "gpu"], "torch has no GPU here: use a machine with one, or the processor, by -c"),
        # Without its place.
        (["--weights", "x.pt"], "no option 'weights'; did you mean 'model.network.weights'?"),
        (["--data_root", "x"], "no option 'data_root'; did you mean 'data.root'?"),
        (["--batch-size", "3"], "no option 'batch-size'; did you mean 'data.batch_size' or 'data.eval_batch_size'?"),
        (["--optimisation.lr", "5"], "no option 'optimisation.lr'; choose one of model.optimisation.learning_rate, "),
        (["--optimisation.learning", "5"], "did you mean 'model.optimisation.learning_rate'?"),
        (["--epochs", "3"], "no option 'epochs'; did you mean "),
        (["--model.learning_rate", "3"], "no option 'learning_rate'; did you mean 'optimisation.learning_rate'?"),
        (["--model.optimisation.step_epochs", "0"], "step_epochs 0"),
        (["-c", "/nowhere.yaml"], "File does not exist: '/nowhere.yaml'"),
        (["-c", "toy/standart"], "There is no recipe 'toy/standart': did you mean toy/standard?"),
        # An abbreviation is refused however deep it stands, and what is suggested exists.
        (["--trainer.max_ep", "3"], "no option 'trainer.max_ep'; did you mean 'trainer.max_epochs'?"),
        (["--model.optimisation.learning", "5"], "'optimisation.learning'; did you mean 'optimisation.learning_rate'?"),
        (["--model.network.num", "5"], "no option 'network.num'; did you mean 'network.num_classes'?"),
        (
            ["--model.optimisation.lr", "5"],
            "no option 'optimisation.lr'; choose one of optimisation.learning_rate, ",
        ),
        (["--model.netwrk.name", "x"], "no option 'netwrk.name'; did you mean 'network.name'?"),
        (["--data.members.init_args.eval", "5"], "no option 'eval'; did you mean 'evaluation' or 'eval_batch_size'?"),
        (["--limit", "3"], "there is no option 'limit'; choose one of"),
        (["--seed_everything", "x"], "In seed_everything: expected bool or int, got 'x'"),
        (["--model", "StandardModul"], "In model: there is no class 'StandardModul'; did you mean 'StandardModule'?"),
        (["--data", "lit_robust.data.RobustSuite"], "no class 'RobustSuite'; did you mean 'RobustnessSuite'?"),
        (
            ["--trainer.callbacks+", "nowhere.Bar"],
            "no class 'nowhere.Bar': no module nowhere is found from this folder.",
        ),
        (["--trainer.callbacks+", "bar"], "there is no class 'bar': write an import path."),
        (["--trainer.callbacks+", "json.Bar"], "there is no class 'json.Bar': json has none of that name."),
        (["--trainer.callbacks+", "json.JSONDecoder"], "json.JSONDecoder is not a Callback: write the import path of"),
        (
            ["--trainer.callbacks+", "lit_robust.callbacks.EvaluationCallback"],
            "lit_robust.callbacks.EvaluationCallback lacks compute, prepare, update: write these methods.",
        ),
    ],
)
def test_on_the_command_line(words, more, expected, capsys):
    said = sentence(["fit", *words, *more], capsys)
    assert expected in said
    assert "\n" not in said


def test_a_command_without_a_recipe_or_with_an_option_without_its_value(capsys):
    assert "name a recipe by -c; `lit-robust recipes` lists them." in sentence(["test"], capsys)
    said = sentence(["test", "-c", "eval/quick", "--model.network.weights"], capsys)
    assert "the last option that begins with --model has no value: write one after it." in said


def test_callbacks_that_take_the_place_of_a_recipes_are_warned_of(capsys):
    with pytest.warns(UserWarning, match=r"replaces all of the recipe's; --trainer.callbacks\+= adds one"):
        sentence(["test", "-c", "eval/quick", "--trainer.callbacks", "lit_robust.callbacks.Nothing"], capsys)


def test_a_misspelt_split_is_refused(tmp_path, capsys):
    said = sentence(["data", "shard", str(tmp_path), str(tmp_path / "set"), "--split", "testt"], capsys)
    assert "The split is 'testt': did you mean test?" in said


@pytest.mark.parametrize(
    ("place", "key", "expected"),
    [
        (("trainer",), "max_epoch", "did you mean 'trainer.max_epochs'?"),
        (("model", "init_args"), "optimization", "did you mean 'optimisation'?"),
        (("trainer", "callbacks", 2, "init_args"), "datset", "(CleanAccuracy): there is no option 'datset'; did you"),
        (("trainer", "callbacks", 3, "init_args", "attack", "init_args"), "epsilon", "(PGD): there is no option"),
        (("data", "init_args", "members", 0, "init_args"), "batchsize", "did you mean 'batch_size'?"),
        (("trainer", "callbacks", 3, "init_args"), "eps", "eps (AdversarialAccuracy): expected a list, got '1'; write"),
        ((), "modle", "there is no option 'modle'; did you mean 'model'?"),
    ],
)
def test_wrong_keys_in_a_config(tmp_path, place, key, expected, capsys):
    content = yaml.safe_load((CONFIGS / "toy/standard.yaml").read_text())
    inner = content
    for step in place:
        inner = inner[step]
    inner[key] = 1
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(content))
    assert expected in sentence(["fit", "-c", str(file)], capsys)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"trainer:\n\tmax_epochs: 3\n", "is not YAML: in line 2 a tab stands where YAML takes spaces alone."),
        (b"trainer:\n  max_epochs: [3\n", "is not YAML: in line 3 did not find expected ',' or ']'."),
        (b"- trainer\n", "is not a recipe: it needs settings by name"),
        (b"trainer: 3\n", "is not a recipe: it needs settings by name, those of the trainer beneath trainer."),
        (b"\xff\xfe\x00", "is not a text: name a recipe in YAML."),
        (b"model: 3\n", "In model: '3' is not a ClassifierModule: write the name or the import path of one."),
        (
            b"model: {init_args: {optimisation: 3}}\n",
            "optimisation is 3, and stands for a group of settings, ",
        ),
    ],
)
def test_files_that_are_not_recipes(words, tmp_path, content, expected, capsys):
    (tmp_path / "mine.yaml").write_bytes(content)
    assert expected in sentence(["fit", *words, "-c", str(tmp_path / "mine.yaml")], capsys)


def test_an_attack_in_another_norm_and_of_a_fraction(words, tmp_path, capsys):
    adversarial = ["test", *words, "-c", str(CONFIGS / "toy/adversarial.yaml")]
    said = sentence([*adversarial, "--model.attack.norm", "L2"], capsys)
    assert "In model.attack.norm (PGD): expected one of l1, l2, linf, got 'L2'; did you mean 'l2'?" in said
    said = sentence([*adversarial, "--model.attack.eps", "4/0"], capsys)
    assert "In model.attack.eps (PGD): expected float, got '4/0'" in said
    (tmp_path / "mine.yaml").write_text("model: {init_args: {optimisation: {weight_decay: 1/200}}}")
    with pytest.raises(SystemExit):
        main([*adversarial, "--model.attack.eps", "4/255", "-c", str(tmp_path / "mine.yaml"), "--print_config"])
    settings = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert (settings["attack"]["init_args"]["eps"], settings["optimisation"]["weight_decay"]) == (4 / 255, 1 / 200)


def test_limits_and_baselines(words, capsys):
    assert "In limit: expected a whole number above 0, got '0'." in sentence(["test", *words, "--limit", "0"], capsys)
    assert "no option 'lim'; did you mean 'limit'?" in sentence(["test", *words, "--lim", "3"], capsys)
    evaluation = "[{class_path: CorruptionEvaluation, init_args: {baseline: alexnt}}]"
    said = sentence(["test", *words, "--trainer.callbacks", evaluation], capsys)
    assert "expected one of imagenet-c, robustbench-5000, got 'alexnt'." in said


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["fitt"], "There is no command 'fitt': did you mean fit?"),
        (
            ["data", "xyz"],
            "There is no command `data xyz`: choose data toy, data concepts, data shard, data verify,",
        ),
        (["data", "toi"], "There is no command `data toi`: did you mean `data toy`?"),
        (["data", "derive", "scrambld"], "no command `data derive scrambld`: did you mean `data derive scrambled`?"),
        (["analyse", "smoothness"], "There is no command 'analyse': did you mean analyze?"),
        (["train"], "There is no command 'train': did you mean fit?"),
        (["analyze", "smoothness", "--sigma", "8"], "sigma is 8.0, where 1 is black to white"),
        (["analyze", "inversion", "x", "--search.step", "2"], "there is no option 'step'; did you mean 'step_size' or"),
        (["analyze", "inversion", "x", "--network", "x.pth"], "In network: expected settings by name, got 'x.pth'"),
        (["data", "filter", "hard", "x", "y", "--networks", "{}", "--crop", "null"], "a whole number, got null."),
        (["recipes", "toy/standard"], "there is no option 'toy/standard'; there are none."),
        (
            ["data", "toy", "/nowhere", "--severities", "[6]"],
            "severities is [6]: name some of 1, 2, 3, 4, 5, each once.",
        ),
        (
            ["bench", "every"],
            "There is no command `bench every`: choose bench data, bench corruptions, bench attacks, bench autoattack",
        ),
        (["report", "/nowhere"], "No results file at /nowhere: name a folder that `lit-robust test` wrote into."),
        (["data", "shard", "/nowhere", "out", "--split", "val"], "There is no folder /nowhere: unpack the images"),
        (["fit"], "name a recipe by -c"),
    ],
)
def test_other_commands(args, expected, capsys):
    assert expected in sentence(args, capsys)


def test_eps_of_the_wrong_scale(words, capsys):
    adversarial = [
        "-c",
        str(CONFIGS / "toy/adversarial.yaml"),
        "--model.attack.norm",
        "linf",
        "--model.attack.eps",
        "8",
    ]
    assert "did you mean 8/255 = 0.03137?" in sentence(["fit", *words, *adversarial], capsys)


MINE = """
from torch import nn

def broken(num_classes):
    raise ValueError("my own fault")

def flat(num_classes):
    return nn.Linear(2, 2)
"""


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        (MINE, "broken", "fails with the arguments {'num_classes': 8}: ValueError in line 5 of "),
        ("def broken(:", "broken", "cannot be imported: SyntaxError in line 1 of "),
        (MINE, "flat", "The network fails on float32 images of shape ["),
    ],
)
def test_faults_in_a_network_of_ones_own(words, tmp_path, monkeypatch, content, name, expected, capsys):
    (tmp_path / "faulty.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "faulty", raising=False)
    assert expected in sentence(["test", *words, "--model.network.name", f"faulty:{name}"], capsys)
    monkeypatch.delitem(sys.modules, "faulty", raising=False)


def test_mistakes_in_python():
    from lit_robust.attacks import PGD
    from lit_robust.callbacks import AdversarialAccuracy
    from lit_robust.data import ImageNetDataModule, RobustnessSuite
    from lit_robust.models import Network
    from lit_robust.modules import AdversarialModule, StandardModule

    tiny = Network("lit_robust/resnet_tiny", num_classes=2)
    for call, said in (
        (lambda: StandardModule("torchvision/resnet18"), "The network is a str: give a Network, such as"),
        (lambda: Network(num_classes="10"), "num_classes is '10': give a whole number, 1 or more"),
        (lambda: AdversarialModule(tiny, attack="pgd"), "The attack is a str: give an object"),
        (lambda: RobustnessSuite(ImageNetDataModule("x")), "A suite's members are a list of data modules"),
        (lambda: AdversarialAccuracy(PGD), "The attack is PGD itself: give an object"),
        (lambda: AdversarialAccuracy(PGD(), eps=0.03), "eps is 0.03: give a list of numbers"),
        (lambda: StandardModule(tiny).loss(torch.zeros(1, 2), torch.tensor([2])), "Labels are 2 to 2, of a network of"),
    ):
        with pytest.raises(UserError, match=said):
            call()


def test_a_file_of_weights_in_the_place_of_the_network(words, tmp_path, capsys):
    file = tmp_path / "weights.pt"
    torch.save(torch.nn.Linear(2, 2).state_dict(), file)
    said = sentence(["test", *words, "--model.network", str(file)], capsys)
    assert "is not a text stands where settings are read; give weights as --model.network.weights FILE." in said


def test_a_file_without_an_ending_is_one_of_weights(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("notes").write_text("hello")
    assert "notes cannot be read as weights" in sentence(["test", *words, "--model.network.weights", "notes"], capsys)


@pytest.mark.parametrize(("below", "fix"), [("imagenet", "so give the folder above it"), ("none", "check the root")])
def test_a_suite_without_sets(toy, tmp_path, below, fix, capsys, caplog):
    words = ["-c", "eval/suite", "--trainer.default_root_dir", str(tmp_path), "--trainer.logger", "false"]
    assert fix in sentence(["test", *words, "--data.root", str(toy / below)], capsys)
    assert "left out" not in caplog.text


def test_weights_of_another_network(words, tmp_path, capsys):
    file = tmp_path / "weights.pt"
    torch.save(torch.nn.Linear(2, 2).state_dict(), file)
    assert "is of another network" in sentence(["test", *words, "--model.network.weights", str(file)], capsys)


def test_checkpoint_that_is_none(words, tmp_path, capsys):
    file = tmp_path / "page.ckpt"
    file.write_text("<html>404</html>")
    assert "is not a checkpoint, or not whole" in sentence(["test", *words, "--ckpt_path", str(file)], capsys)


def test_checkpoint_of_another_network(words, tmp_path, capsys):
    small = ["--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", *words, *small]) == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    for command in ("test", "fit"):
        other = [command, *words, "--model.network.name", "lit_robust/resnet_small", "--ckpt_path", str(last)]
        said = sentence(other, capsys)
        assert "is of another network: its name is lit_robust/resnet_tiny, not lit_robust/resnet_small" in said
        assert "give --model.network.name lit_robust/resnet_tiny." in said
    said = sentence(["test", *words, "--model.network.num_classes", "5", "--ckpt_path", str(last)], capsys)
    assert "its num_classes is 8, not 5; give --model.network.num_classes 8." in said


def test_plain_weights_are_no_checkpoint(words, tmp_path, capsys):
    file = tmp_path / "weights.ckpt"
    torch.save(torch.nn.Linear(2, 2).state_dict(), file)
    assert "holds weights alone: give it as --model.network.weights" in sentence(
        ["test", *words, "--ckpt_path", str(file)], capsys
    )


def test_requeued_jobs_checkpoint_is_never_tested_unasked(words, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "hpc_ckpt_1.ckpt").write_text("")
    assert "name it with --ckpt_path" in sentence(["test", *words], capsys)


def test_two_evaluations_of_one_name(words, capsys):
    twice = (
        '[{"class_path": "lit_robust.callbacks.CleanAccuracy"}, {"class_path": "lit_robust.callbacks.CleanAccuracy"}]'
    )
    said = sentence(["test", *words, "--trainer.callbacks", twice], capsys)
    assert "Two callbacks evaluate CleanAccuracy on imagenet: give one another name" in said


@pytest.mark.parametrize("content", ['{"a": [-1]}', '{"a": []}', '{"a": [1], "b": [1]}', "[]", "{"])
def test_categories_that_are_none(toy, tmp_path, content, capsys):
    file = tmp_path / "categories.json"
    file.write_text(content)
    words = ["-c", str(CONFIGS / "eval/cue-conflict.yaml"), "--data.root", str(toy), "--trainer.logger", "false"]
    words += ["--trainer.default_root_dir", str(tmp_path / "run"), "--model.network", "{name: lit_robust/resnet_tiny}"]
    assert "The categories file" in sentence(["test", *words, "--data.categories", str(file)], capsys)


def test_truncated_shard(words, toy, tmp_path, capsys):
    shutil.copytree(toy / "imagenet", tmp_path / "cut" / "imagenet", ignore=shutil.ignore_patterns(".*"))
    shard = next((tmp_path / "cut" / "imagenet").glob("*val*.tar"))
    shard.write_bytes(shard.read_bytes()[:20_000])
    said = sentence(["fit", *words, "--data.root", str(tmp_path / "cut")], capsys)
    assert str(shard.name) in said
    assert not (tmp_path / "run" / "results.json").exists()


def test_missing_test_set(words, capsys):
    only = [
        "--data.class_path",
        "lit_robust.data.ImageNetDataModule",
        "--data.evaluation",
        "{resize: null, crop: null}",
    ]
    said = sentence(["test", *words, *only], capsys)
    assert "ShapeBiasEvaluation evaluates 'cue-conflict', but the data have imagenet: add that data module" in said


def test_results_that_cannot_be_written(toy, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    said = sentence(["data", "toy", str(tmp_path / "file"), "--train", "8", "--test", "8"], capsys)
    assert str(tmp_path / "file") in said


def test_toy_data_are_not_mixed_with_what_is_there(toy, capsys):
    assert "already" in sentence(["data", "toy", str(toy), "--train", "8", "--test", "8"], capsys)


def test_class_accuracy_of_a_set_with_categories(words, capsys):
    clean = '[{"class_path": "lit_robust.callbacks.CleanAccuracy", "init_args": {"dataset": "cue-conflict"}}]'
    assert "that set has categories" in sentence(["test", *words, "--trainer.callbacks", clean], capsys)


def test_folder_without_images_is_no_class(tmp_path, capsys):
    (tmp_path / "images" / "empty").mkdir(parents=True)
    for name in ("full", "fuller"):
        (tmp_path / "images" / name).mkdir()
        (tmp_path / "images" / name / "1.jpg").write_bytes(b"image")
    said = sentence(["data", "shard", str(tmp_path / "images"), str(tmp_path / "out"), "--split", "val"], capsys)
    assert "empty" in said
    assert not (tmp_path / "out").exists()


def test_a_cache_model_has_no_checkpoint(tmp_path, capsys):
    """A backbone's checkpoint would be tested alone, without any memory."""
    recipe = str(CONFIGS / "toy/cache.yaml")
    assert "A CacheModule has no checkpoints of its own" in sentence(["test", "-c", recipe, "--ckpt_path", "x"], capsys)
    run = ["--trainer.default_root_dir", str(tmp_path), "--trainer.logger", "false"]
    words = ["fit", "-c", recipe, *run, "--model.network.weights", "null", "--data.root", "/nowhere"]
    with pytest.warns(UserWarning, match="random weights: to test others, give --model.network.weights"):
        assert "/nowhere" in sentence(words, capsys)


def test_weights_that_cannot_be_downloaded(words, tmp_path, capsys, monkeypatch):
    def refuse(*_arguments, **_named):
        raise URLError("Temporary failure in name resolution")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = ["--model.network", "{name: torchvision/alexnet, num_classes: 1000, weights: pretrained}"]
    said = sentence(["test", *words, *network], capsys)
    assert "name resolution" in said
    assert "give them as a file" in said
