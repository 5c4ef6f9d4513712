"""Every `lit-robust` command and every block of Python that the READMEs show is run, in its cheapest form."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lit_robust.cli import TRAINER_COMMANDS, main
from lit_robust.core.results import Result, RunResults

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [ROOT / "README.md", ROOT / "RESULTS.md", *ROOT.glob("*/README.md"), *(ROOT / "lit_robust").rglob("README.md")]
)
TEXTS = {str(document.relative_to(ROOT)): document.read_text() for document in DOCUMENTS}
BLOCKS = [block for text in TEXTS.values() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]
PYTHON = [
    (name, block) for name, text in TEXTS.items() for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
]
LINES = [line.split("#")[0].strip().removeprefix("uv run ") for block in BLOCKS for line in block.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("lit-robust ")]


def images(folder, names):
    """Make a folder of tiny images of the given names."""
    from PIL import Image

    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(folder / name)
    return str(folder)


def results(folder):
    folder.mkdir()
    found = [Result("imagenet", "top1", 0.5, "fraction", 2, {"split": "val"})]
    RunResults({"name": folder.name}, {"network": "none"}, found).save(folder)
    return str(folder)


def layout_of(words):
    """Return names of images in the layout that a `data shard` command is about."""
    named = words[words.index("--layout") + 1] if "--layout" in words else Path(words[2]).name.split(".")[0]
    return {
        "wnid-names": ["n01440764_tench.png"],
        "imagenet-sample": ["n01440764_tench.png"],
        "cue-conflict": ["bear/bear1-car2.png"],
        "ILSVRC2012_img_val": ["a.png"],
        "imagenet-c": ["noise/shot_noise/3/n01440764/1.png"],
    }.get(named, ["n01440764/1.png", "n01443537/2.png"])


def cheap(words, tmp_path):
    """Return the command with its data and its work made small: what it parses stays."""
    command = words[0]
    if command in TRAINER_COMMANDS:
        return words if any(word.endswith(".help") for word in words) else [*words, "--print_config"]
    if words[:2] == ["data", "toy"]:
        return ["data", "toy", str(tmp_path / "toy"), "--train", "8", "--test", "8", "--severities", "[]"]
    if words[:2] == ["data", "concepts"]:
        return ["data", "concepts", str(tmp_path / "concepts"), "--count", "9", "--size", "16"]
    if words[:2] == ["data", "shard"]:
        if "--label-file" in words:
            labels = tmp_path / words[words.index("--label-file") + 1]
            labels.write_text("ImageId,PredictionString\na,n01440764 1 2 3 4\n")
            words = [str(labels) if word == labels.name else word for word in words]
        return ["data", "shard", images(tmp_path / "images", layout_of(words)), str(tmp_path / "out"), *words[4:]]
    if words[:2] in (["data", "cue-conflict"], ["data", "filter"]):
        return [*words, "--help"]
    if words[:2] in (["data", "verify"], ["data", "corrupt"], ["data", "derive"]):
        clean = tmp_path / "imagenet"
        assert (
            main(["data", "shard", images(tmp_path / "images", ["a/1.png", "b/2.png"]), str(clean), "--split", "val"])
            == 0
        )
        if words[1] == "verify":
            return ["data", "verify", str(tmp_path), *words[3:]]
        if words[1] == "derive":
            needs_files = words[2] not in ("scrambled", "black-and-white", "edges")
            made = [str(clean), str(tmp_path / "derived"), *words[5:], "--workers", "0"]
            return [*words[:3], "--help"] if needs_files else [*words[:3], *made]
        return [*words[:2], str(clean), str(tmp_path / "like"), "--corruptions", "[fog]", "--severities", "[1]"]
    if command in ("bench", "analyze", "class-vectors"):
        return [*words, "--help"]
    if command == "convert":
        from lit_robust.models import Network, build_classifier

        network = build_classifier(Network("torchvision/resnet50")).network
        torch.save({"model": {f"module.model.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "w.ckpt")
        return ["convert", str(tmp_path / "w.ckpt"), str(tmp_path / "w.safetensors"), *words[3:]]
    if command in ("recompute", "paired") or "--recompute" in words:
        return [command, "--help"]
    if command == "report":
        given = [word for word in words[1:-2] if "/" in word]
        runs = [results(tmp_path / f"run{number}") for number in range(len(given))]
        return ["report", *runs, *words[1 + len(given) : -1], str(tmp_path / words[-1])]
    if command == "paper":
        return [*words, "--list", "--output", str(tmp_path)]
    if command == "memory":
        from memories import clustered, write_memory

        memory = str(write_memory(tmp_path / "memory", *clustered()).folder)
        small = {"512": "5", "IVF4096,Flat": "IVF4,Flat"}
        options = [small.get(word, word) for word in words[3:]]
        # A new folder is written, too, where one is named.
        options = [str(tmp_path / "new") if "/" in word else word for word in options]
        return [*words[:2], memory, *options]
    assert command in ("demo", "--help", "recipes"), f"no cheap form of {words}"
    return [command, "--help"] if command == "demo" else words


def test_the_readmes_show_the_commands():
    shown = {" ".join(shlex.split(command)[1:3]) for command in COMMANDS}
    assert {"data toy", "data shard", "fit -c", "test -c"} <= shown
    assert len(COMMANDS) >= 15


def write_mine(folder):
    """Write the README's own measure, attack, data set and network into the file that it names."""
    blocks = [block for name, block in PYTHON if name == "README.md" and block.startswith("# mine.py\n")]
    (folder / "mine.py").write_text("\n\n".join(blocks))
    return len(blocks)


@pytest.fixture
def mine(tmp_path_factory, monkeypatch):
    """A folder with ``mine.py``, whose classes can be named."""
    folder = tmp_path_factory.mktemp("mine")
    assert write_mine(folder) == 3
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_command_of_a_readme(command, tmp_path, monkeypatch, mine):
    monkeypatch.chdir(ROOT)
    words = cheap(shlex.split(command)[1:], tmp_path)
    try:
        code = main(words)
    except SystemExit as ended:  # --help and --print_config end the process, as argparse does.
        code = ended.code
    assert code == 0


@pytest.mark.parametrize(("name", "block"), PYTHON, ids=lambda value: value if value.endswith(".md") else "")
def test_python_of_a_readme(name, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, name, "exec"), {})


def test_a_newcomer_reads_the_readme_in_minutes():
    assert len(TEXTS["README.md"].splitlines()) <= 200


@pytest.mark.parametrize("name", TEXTS)
def test_files_that_a_readme_names_are_there(name):
    for path in re.findall(r"\]\((?!http|#)([^)#]+)[^)]*\)", TEXTS[name]):
        assert (ROOT / name).parent.joinpath(path).is_file(), path
    for config in re.findall(r"configs/[\w/-]+\.yaml", TEXTS[name]):
        assert (ROOT / config).is_file(), config
    for recipe in re.findall(r" -c ([a-z][\w/-]+)(?![\w/.-])", TEXTS[name]):
        assert (ROOT / "configs" / f"{recipe}.yaml").is_file(), recipe


def test_ones_own_measure_attack_data_set_and_network_run(toy, tmp_path, monkeypatch, mine, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "imagenet-sketch").symlink_to(toy / "imagenet")
    recipe = {
        "trainer": {
            "default_root_dir": str(tmp_path / "run"),
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "callbacks": [
                {"class_path": "mine.ConfidentErrors", "init_args": {"dataset": "imagenet-sketch"}},
                {
                    "class_path": "lit_robust.callbacks.AdversarialAccuracy",
                    "init_args": {
                        "dataset": "imagenet-sketch",
                        "attack": {"class_path": "mine.FGSM", "init_args": {"eps": 0.01}},
                    },
                },
            ],
        },
        "model": {
            "class_path": "lit_robust.modules.StandardModule",
            "init_args": {"network": {"name": "mine:make_net", "num_classes": 8, "arguments": {"width": 5}}},
        },
        "data": {
            "class_path": "mine.SketchDataModule",
            "init_args": {"root": str(tmp_path / "data"), "num_workers": 0},
        },
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    code = main(["test", "-c", str(tmp_path / "mine.yaml")])
    assert code == 0, capsys.readouterr().err
    results = {one.metric: one for one in RunResults.load(tmp_path / "run").results}
    assert results.keys() == {"confident_errors", "adversarial_accuracy_linf_eps_0.01"}
    assert {one.count for one in results.values()} == {41}
    from mine import FGSM, ConfidentErrors, SketchDataModule, make_net

    from lit_robust import evaluate

    data = SketchDataModule(tmp_path / "data", num_workers=0)
    measures = [ConfidentErrors("imagenet-sketch"), FGSM()]
    found = evaluate(make_net(8), data, measures, progress=False, device="cpu").results
    assert [one.measure for one in found] == ["confident_errors", "adversarial_accuracy"]
