"""Smoothness, dissection and ablation by their commands, one after another, on toy images; then the page of all."""

import csv
import json

import pytest
from PIL import Image
from two_processes import in_two_ranks

from lit_robust.cli import main
from lit_robust.core.results import RunResults

PART = {"name": "lit_robust/resnet_tiny", "num_classes": 8}
NET = ["--network", json.dumps(PART)]
WHOLE = ["--resize", "null", "--crop", "null"]


def analyzed(name, output, *words):
    assert main(["analyze", name, *NET, "--output", str(output), *words]) == 0
    return {one.metric: one for one in RunResults.load(output).results}


def rows(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_filters_concepts_and_units(toy, tmp_path):
    images = ["--data", str(toy / "imagenet"), *WHOLE, "--limit", "5", "--layers", "[layers.3]"]
    smooth = analyzed("smoothness", tmp_path / "smooth", *images, "--other", json.dumps(PART))
    assert smooth["gradient_tv_of_l1"].count == 5
    assert smooth["map_tv_layers.3_noisy"].facets == {"measure": "map_tv", "layer": "layers.3", "variant": "noisy"}
    assert -1 <= smooth["filter_correlation_most_alike"].value <= 1
    with Image.open(tmp_path / "smooth/pictures/gradients.png") as picture:
        assert picture.width > 5 * 96

    concepts = tmp_path / "concepts"
    assert main(["data", "concepts", str(concepts), "--count", "10", "--size", "24"]) == 0
    words = ["--concepts", str(concepts), "--quantile", "0.03", "--twins", str(concepts / "twins")]
    for upsampling in ("bilinear", "receptive-field"):
        layers = ["--layers", "[relu, layers.0]", "--upsampling", upsampling]
        found = analyzed("dissection", tmp_path / upsampling, *words, *layers)
        assert found["twin_overlap_relu"].protocol["upsampling"] == upsampling
        assert found["detectors_all_texture"].count == 32
    units = rows(tmp_path / "bilinear/units.csv")
    assert [row["unit"] for row in units] == [str(unit) for unit in range(16)] * 2

    words = ["--data", str(toy), "--categories", "shards", "--limit", "6", "--layers", "[relu]", "--least-iou", "0.01"]
    found = analyzed("ablation", tmp_path / "ablation", *words, "--dissection", str(tmp_path / "bilinear"))
    assert found["shape_score_all"].protocol["least_iou"] == 0.01
    ablated = rows(tmp_path / "ablation/units.csv")
    assert [row["concept"] for row in ablated] == [row["concept"] for row in units[:16]]
    assert found["shape_score_relu"].value == pytest.approx(sum(int(row["shape_score"]) for row in ablated) / 16)

    folders = [str(tmp_path / name) for name in ("smooth", "bilinear", "ablation")]
    assert main(["report", *folders, "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    for study in ("smoothness", "dissection", "ablation"):
        assert f"Study: {study}" in page


def test_two_processes_dissect_as_one(tmp_path):
    """Of eleven images the first has six; random weights are the same in both."""
    concepts = str(tmp_path / "concepts")
    assert main(["data", "concepts", concepts, "--count", "11", "--size", "24"]) == 0
    words = ["analyze", "dissection", *NET, "--concepts", concepts, "--quantile", "0.03", "--layers", "[relu]"]
    assert main([*words, "--output", str(tmp_path / "one")]) == 0
    assert in_two_ranks([*words, "--output", str(tmp_path / "two")]) == [0, 0]
    assert rows(tmp_path / "one/units.csv") == rows(tmp_path / "two/units.csv")
    one, two = (RunResults.load(tmp_path / name) for name in ("one", "two"))
    assert one.results == two.results
    assert len({row["iou"] for row in rows(tmp_path / "one/units.csv")}) > 3


def test_a_quantile_that_is_none(tmp_path, capsys):
    assert main(["analyze", "dissection", *NET, "--concepts", str(tmp_path), "--quantile", "1.5"]) == 2
    assert "quantile is 1.5: give a share between 0 and 1" in capsys.readouterr().err
