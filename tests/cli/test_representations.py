"""The studies of representations from end to end, by their commands, on toy images."""

import json
import shlex

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lit_robust.cli import main
from lit_robust.core.results import RunResults

NET = ["--network.name", "lit_robust/resnet_tiny", "--network.num_classes", "8"]
JUDGE = ["--judge", json.dumps({"name": "lit_robust/resnet_tiny", "num_classes": 8})]
WHOLE = ["--resize", "null", "--crop", "null"]
FEW = ["--search.steps", "4", "--search.step_size", "0.5"]


def analyzed(name, toy, output, *words):
    assert main(["analyze", name, str(toy / "imagenet"), *NET, *WHOLE, "--output", str(output), *words]) == 0
    found = RunResults.load(output)
    return {one.metric: one for one in found.results}, found


def test_inversion(toy, tmp_path, capsys):
    torch.manual_seed(0)
    words = [*JUDGE, *FEW, "--images", "6", "--within", "[0.5, 1]", "--batch", "4"]
    results, whole = analyzed("inversion", toy, tmp_path / "run", *words)
    near = results["inversion_representation_distance_noise"]
    assert near.count == 6
    assert near.value < results["inversion_representation_distance_of_start_noise"].value
    assert near.interval[0] < near.value < near.interval[1]
    assert near.protocol["straight_through"] == ["relu"]
    assert (near.protocol["steps"], near.protocol["step_size"]) == (4, 0.5)
    assert results["inversion_start_invariance_noise"].value > 0
    assert 0 <= results["inversion_second_opinion_noise"].value <= 1
    within = results["inversion_within_representation_distance_noise_0.5"]
    assert within.facets == {"measure": "inversion_within_representation_distance", "start": "noise", "eps": 0.5}
    arrays = load_file(tmp_path / "run" / "arrays.safetensors")
    assert arrays["images"].shape == (6, 48, 48, 3)
    assert float(arrays["representation_distance"].mean()) == pytest.approx(near.value)
    assert whole.examples[0].images == {"image": "pictures/inversion.png"}
    assert Image.open(tmp_path / "run/pictures/inversion.png").width > 6 * 96
    assert "Wrote" in capsys.readouterr().out


def test_inversion_from_images_of_other_classes(toy, tmp_path):
    results, _ = analyzed("inversion", toy, tmp_path, *FEW, "--images", "5", "--starts", "images")
    assert results["inversion_representation_distance_images"].count == 5
    assert "inversion_start_invariance_images" not in results


def test_interpolation(toy, tmp_path):
    results, _ = analyzed("interpolation", toy, tmp_path, *JUDGE, *FEW, "--images", "5", "--points", "4")
    assert {"interpolation_monotone_path", "interpolation_either_class_of_pixel_mean"} <= set(results)
    assert load_file(tmp_path / "arrays.safetensors")["images"].shape == (5, 4, 48, 48, 3)


def test_visualisation(toy, tmp_path):
    words = [*JUDGE, *FEW, "--images", "20", "--count", "3", "--starts", "2"]
    results, _ = analyzed("visualisation", toy, tmp_path, *words)
    assert results["visualisation_activation_gain_noise"].value > 0
    assert results["visualisation_activation_gain_images"].count == 3
    assert load_file(tmp_path / "arrays.safetensors")["exciting"].shape == (3, 2)


def test_manipulation(toy, tmp_path):
    results, _ = analyzed("manipulation", toy, tmp_path, *FEW, "--images", "4", "--units", "[3, 5]", "--rule", "code")
    assert results["manipulation_steps_taken_code"].count == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--search.steps", "-1"], "steps is -1"),
        (["--search.stepz", "1"], "stepz"),
        (["--layer", "layerz"], "no layer 'layerz'"),
        (["--within", "[-1]"], "eps is -1"),
    ],
)
def test_mistakes(words, sentence, toy, tmp_path, capsys):
    line = ["analyze", "inversion", str(toy / "imagenet"), *NET, *WHOLE, "--output", str(tmp_path / "run"), *words]
    assert main(line) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_every_command_of_the_papers_figures_runs(toy, tmp_path, capsys):
    network = {"name": "lit_robust/resnet_tiny", "num_classes": 8}
    sets = ["--data", str(toy / "imagenet"), "--other", str(toy / "imagenet-o"), "--resize", "null", "--crop", "null"]
    small = ["--images", "5", "--steps", "2", "--within", "[0.5]", "--networks.robust", "null"]
    options = [*sets, *small, "--networks.standard", json.dumps(network), "--judge", json.dumps(network)]
    assert main(["paper", "representation-figures", *options, "--list", "--output", str(tmp_path)]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in lines] == [
        *("inversion", "inversion", "interpolation", "visualisation", "manipulation", "inversion"),
    ]
    less = {
        "visualisation": ["--search.steps", "2", "--count", "2", "--images", "20"],
        "manipulation": ["--search.steps", "2"],
    }
    for line in lines:
        assert main([*line, *less.get(line[1], [])]) == 0
    folders = [line[line.index("--output") + 1] for line in lines]
    assert main(["report", *folders, "-o", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text().count("<h2>Study: ") == 4
