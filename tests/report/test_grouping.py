"""Runs of several seeds as one row."""

import csv
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pytest
import yaml
from naming import named

from lit_robust.cli import main
from lit_robust.core.errors import UserError
from lit_robust.core.results import RunResults
from lit_robust.report.grouping import ends_of, ends_words, grouped, seeds_of
from lit_robust.report.runs import load_runs
from lit_robust.report.table import compare, words
from lit_robust.report.text import latex

VALUES = (0.70, 0.72, 0.77)


def write(folder: Path, name: str, value: float, seed: int, epochs: int = 90, **model) -> Path:
    results = [named("imagenet", "top1", value, "fraction", 50_000, {"resize": 256, "interval": "Wilson"})]
    facts = {"network": "torchvision/resnet50", "weights_sha256": str(value), "settings": {"rate": 0.1}, **model}
    RunResults({"name": name, "seed": 0}, facts, results).save(folder / name)
    trainer = {"max_epochs": epochs, "default_root_dir": str(folder / name), "logger": [{"name": name}]}
    config = {"seed_everything": seed, "trainer": trainer, "model": {"x": 1}}
    (folder / name / "config-fit.yaml").write_text(yaml.safe_dump(config))
    return folder / name


@pytest.fixture
def folders(tmp_path):
    return [write(tmp_path, f"madry-seed{seed}", value, seed) for seed, value in enumerate(VALUES)]


def test_means_and_deviations(folders, tmp_path):
    longer = write(tmp_path, "longer", 0.8, 3, epochs=200)
    other = write(tmp_path, "other", 0.1, 4, settings={"rate": 0.2})
    runs = grouped(load_runs([*folders, longer, other]))
    assert [run.label for run in runs] == ["madry", "longer", "other"]
    (result,) = runs[0].found.results
    assert result.value == pytest.approx(mean(VALUES))
    assert seeds_of(result) == {"count": 3, "sd": pytest.approx(stdev(VALUES))}
    assert result.interval is None
    assert seeds_of(runs[1].found.results[0]) == {}
    table = compare({run.label: run.found for run in runs})
    cell = table.rows["madry"][0]
    assert (cell.text, cell.spread) == ("73.0", "\N{PLUS-MINUS SIGN} 3.6 (3)")
    assert "73.0 \N{PLUS-MINUS SIGN} 3.6 (3)" in words(table, cell)
    assert ends_of(result) == pytest.approx((mean(VALUES) - stdev(VALUES), mean(VALUES) + stdev(VALUES)))
    assert ends_words([result], "Lines") == " Lines are standard deviations over seeds."
    assert ends_words([replace(result, protocol={}, interval=(0.5, 0.6)), result], "Lines") == (
        " Lines are 95 % intervals or, of means, standard deviations over seeds."
    )
    assert "standard deviation over seeds" in table.sentences()[-1]
    assert table.rows["longer"][0].notes == ()
    assert r"73.0 $\pm$ 3.6 (3)" in latex(table, 8)


def test_without_configurations_the_network_tells(folders):
    for folder in folders:
        (folder / "config-fit.yaml").unlink()
    assert len(grouped(load_runs(folders))) == 1
    (folders[0] / "config-fit.yaml").write_text("trainer: [")
    with pytest.raises(UserError, match=r"config-fit\.yaml cannot be read"):
        grouped(load_runs(folders))


def test_the_command_groups(folders, tmp_path, capsys):
    line = ["report", *map(str, folders)]
    assert main([*line, "-o", str(tmp_path / "r.csv"), "--group"]) == 0
    (row,) = csv.DictReader((tmp_path / "r.csv").open(encoding="utf-8"))
    assert (float(row["value"]), float(row["sd"]), row["seeds"]) == (mean(VALUES), stdev(VALUES), "3")
    assert main([*line, "-o", str(tmp_path / "r.html"), "--group"]) == 0
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert '<span class="value">73.0</span><small class="interval">\N{PLUS-MINUS SIGN} 3.6 (3)</small>' in page
    assert "--low: 69.4%; --high: 76.6%" in page
    assert main([*line, "-o", str(tmp_path / "r.csv")]) == 0
    assert len(list(csv.DictReader((tmp_path / "r.csv").open(encoding="utf-8")))) == 3
    capsys.readouterr()
