"""Studies on the page: their pictures under the runs' names, and their curves."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lit_robust.analysis.outcome import Outcome
from lit_robust.analysis.pictures import labelled_grid
from lit_robust.core.results import Result, RunResults
from lit_robust.report import load_runs, report
from lit_robust.report.studies import distance_plots


def run(folder: Path, distances: dict[float, float]) -> Path:
    results = [
        Result(
            "toy",
            f"inversion_within_representation_distance_noise_{eps:g}",
            value,
            "ratio",
            9,
            {"norm": "l2"},
            (value - 0.01, value + 0.01),
            {"measure": "inversion_within_representation_distance", "start": "noise", "eps": eps},
        )
        for eps, value in distances.items()
    ]
    picture = labelled_grid({"target": torch.rand(2, 3, 8, 8)}, ["one", "two"])
    found = Outcome(results, pictures={"inversion": picture}, captions={"inversion": "Inversions <of> noise"})
    examples = found.save(folder, "inversion")
    RunResults({"name": folder.name, "study": "inversion"}, {"network": "n"}, results, examples).save(folder)
    return folder


def test_pictures_and_curves_stand_side_by_side(tmp_path):
    folders = [run(tmp_path / name, {0.5: value, 2.0: value / 2}) for name, value in (("S", 0.12), ("R", 0.21))]
    report(folders, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<h2>Study: inversion</h2>") == 1
    assert page.count("Inversions &lt;of&gt; noise</figcaption>") == 2
    assert "S: 0.120 at 0.5, 0.060 at 2; R: 0.210 at 0.5, 0.105 at 2" in page
    assert "eps 0.5" in page
    assert "eps 2" in page


def test_studies_have_no_row_of_the_score_card(tmp_path):
    RunResults({"name": "tested"}, {}, [Result("imagenet", "top1", 0.5, "fraction", 2, {})]).save(tmp_path / "tested")
    report([run(tmp_path / "studied", {1.0: 0.2}), tmp_path / "tested"], tmp_path / "page.html")
    card = (tmp_path / "page.html").read_text().partition("card-table")[2].partition("</table>")[0]
    assert "tested" in card
    assert "studied" not in card


def test_runs_without_studies_have_no_curve():
    assert distance_plots({"one": RunResults({}, {}, [Result("toy", "top1", 0.5, "fraction", 2, {})])}) == []


def test_a_missing_picture_is_named(tmp_path):
    folder = run(tmp_path / "S", {1.0: 0.2})
    (folder / "pictures" / "inversion.png").unlink()
    report([folder], tmp_path / "page.html")
    assert "pictures/inversion.png is missing" in (tmp_path / "page.html").read_text()
    assert load_runs([folder])


def test_a_grid_has_room_for_names_and_enlarges_small_images():
    images = torch.zeros(3, 3, 8, 8)
    picture = labelled_grid({"a": images, "another": images}, ["x", "y", "z"])
    assert picture.dtype == np.uint8
    assert picture.shape[0] == 18 + 2 * 98
    assert picture.shape[1] == pytest.approx(3 * 98 + 55, abs=15)
    assert (picture[20, -60] == 0).all()  # A pixel of the last image.
