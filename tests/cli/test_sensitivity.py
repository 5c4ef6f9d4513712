"""Jacobians, sizes of corruptions, attributions and fusions by their commands, on toy images."""

import json

import numpy as np
import pytest
from memories import clustered, write_memory
from safetensors.torch import load_file
from scipy.linalg import sqrtm

from lit_robust.cli import main
from lit_robust.core.results import RunResults

PART = {"name": "lit_robust/resnet_tiny", "num_classes": 8}
NET = ["--network", json.dumps(PART)]
WHOLE = ["--resize", "null", "--crop", "null"]


def analyzed(name, toy, output, *words):
    assert main(["analyze", name, str(toy / "imagenet"), *WHOLE, "--output", str(output), *words]) == 0
    return {one.metric: one for one in RunResults.load(output).results}


def test_jacobian(toy, tmp_path):
    exact = analyzed("jacobian", toy, tmp_path / "a", *NET, "--images", "5")["jacobian_norm_of_probabilities"]
    assert exact.count == 5
    assert exact.value > 0
    words = ["--images", "5", "--probes", "3", "--of", "logits"]
    about = analyzed("jacobian", toy, tmp_path / "b", *NET, *words)["jacobian_squared_norm_of_logits"]
    assert about.protocol["probes"] == 3


def test_a_memory_of_another_network_is_refused(toy, tmp_path, capsys):
    memory = write_memory(tmp_path / "memory", *clustered()).folder
    line = ["analyze", "jacobian", str(toy / "imagenet"), *WHOLE, *NET, "--images", "3", "--memory", str(memory)]
    assert main([*line, "--output", str(tmp_path / "run")]) == 2
    assert str(memory) in capsys.readouterr().err


def test_a_second_study_keeps_what_the_first_found_and_few_images_are_named(toy, tmp_path, capsys):
    analyzed("jacobian", toy, tmp_path, *NET, "--images", "2000", "--probes", "2")
    assert f"{toy / 'imagenet'} has 41 images of val: all are taken, not 2000." in capsys.readouterr().err
    before = (tmp_path / "results.json").read_bytes()
    line = ["analyze", "attribution", str(toy / "imagenet"), *WHOLE, *NET, "--output", str(tmp_path)]
    assert main(line) == 2
    assert "results of the study jacobian of lit_robust/resnet_tiny" in capsys.readouterr().err
    assert (tmp_path / "results.json").read_bytes() == before


def test_perturbation_size(toy, tmp_path):
    words = [str(toy / "imagenet-c-like"), "--corruptions", "[brightness]", "--severities", "[3]", "--enlarged", "54"]
    line = ["analyze", "perturbation-size", str(toy / "imagenet"), *words, *WHOLE, "--output", str(tmp_path / "run")]
    assert main(line) == 0
    found = {one.metric: one for one in RunResults.load(tmp_path / "run").results}
    aligned = found["perturbation_size_aligned_brightness_3"]
    assert aligned.facets["corruption"] == "brightness"
    # Severity 3 adds 0.3 to the brightness; saved as JPEG, single pixels go farther.
    assert 0.25 < aligned.value < found["perturbation_size_misaligned_brightness_3"].value


def test_frechet_distance(toy, tmp_path):
    """Of a linear layer on pooled colours, by SciPy's matrix root; of a set to itself it is 0."""
    near = analyzed("frechet-distance", toy, tmp_path / "a", str(toy / "imagenet"), *NET, "--images", "41")
    assert near["frechet_distance_sets"].value == pytest.approx(0, abs=1e-5)
    assert near["frechet_distance_halves"].value > 0
    words = [str(toy / "stylized-imagenet"), *NET, "--images", "30", "--layer", "layers.0"]
    found = analyzed("frechet-distance", toy, tmp_path / "b", *words)["frechet_distance_sets"]
    one, other = (value.double().numpy() for value in load_file(tmp_path / "b" / "arrays.safetensors").values())
    roots = sqrtm(np.cov(one.T) @ np.cov(other.T)).real
    means = np.square(one.mean(0) - other.mean(0)).sum()
    expected = means + np.trace(np.cov(one.T) + np.cov(other.T) - 2 * roots)
    assert found.value == pytest.approx(expected, rel=1e-5)
    assert (found.count, found.protocol["dimensions"], found.facets["layer"]) == (30, 16, "layers.0")
    assert found.protocol["other"]["count"] == 30
    assert not found.warnings[:-1]  # Of the random weights alone.
    words = [str(toy / "stylized-imagenet"), *NET, "--images", "35"]
    few = analyzed("frechet-distance", toy, tmp_path / "c", *words)["frechet_distance_sets"]
    assert any("not more images than the 128 dimensions" in one for one in few.warnings)


def test_attribution(toy, tmp_path):
    pytest.importorskip("captum")
    found = analyzed("attribution", toy, tmp_path, *NET, "--images", "4", "--layer", "layers.3")
    assert 0.1 <= found["concentration_integrated-gradients"].value <= 1
    assert found["concentration_grad-cam"].count <= 4
    assert (tmp_path / "pictures/attribution.png").is_file()


def test_fusion(toy, tmp_path, capsys):
    found = analyzed("fusion", toy, tmp_path, *NET, "--robust", json.dumps(PART), "--images", "30")
    assert found["fused_top1_0.0"].count == 30
    best = found["best_fusion_weight"].value
    assert found[f"fused_top1_{best}"].value == max(found[f"fused_top1_{k / 20}"].value for k in range(21))
    assert "--model.network.name lit_robust.models.fusion:fuse" in capsys.readouterr().out
