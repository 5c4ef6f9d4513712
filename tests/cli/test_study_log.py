"""Studies in W&B, offline: their values, tables and pictures."""

import json
import time

from PIL import Image
from wandb_reader import read_run, records

from lit_robust.cli import main
from lit_robust.core.results import Result, RunResults


def test_a_study_is_logged_whole(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "smooth"
    network = ["--network.name", "lit_robust/resnet_tiny", "--network.num_classes", "8"]
    assert main(["analyze", "smoothness", *network, "--output", str(run)]) == 0
    (run / "units.csv").write_text("unit,concept,iou\n0,disc,0.25\n1,7,nan\n")
    assert main(["analyze", "log", str(run), "--project", "studies"]) == 0
    assert "which `wandb sync` sends" in capsys.readouterr().out
    (file,) = run.glob("wandb/offline*/*.wandb")
    waited_until = time.monotonic() + 20  # On a busy machine W&B's own process may still be writing.
    while not any(record.HasField("exit") for record in records(file)) and time.monotonic() < waited_until:
        time.sleep(0.1)
    place, history, config = read_run(run / "wandb")
    found = RunResults.load(run)
    assert config["run"]["study"] == "smoothness"
    assert {result.key: history[result.key] for result in found.results} == {r.key: r.value for r in found.results}
    values = json.loads((place / "files" / history["smoothness/values"]["path"]).read_text())
    assert [row[1] for row in values["data"]] == [result.metric for result in found.results]
    units = json.loads((place / "files" / history["smoothness/units"]["path"]).read_text())
    assert units["columns"] == ["unit", "concept", "iou"]
    assert units["data"][0] == [0, "disc", 0.25]
    assert history["smoothness/filters"]["caption"] == "filters of the first convolution"
    sent = Image.open(place / "files" / history["smoothness/filters"]["path"])
    assert sent.size == Image.open(run / "pictures" / "filters.png").size


def test_a_test_is_refused(tmp_path, capsys):
    RunResults({"name": "run"}, {}, [Result("toy", "top1", 0.5, "fraction", 2, {})]).save(tmp_path)
    assert main(["analyze", "log", str(tmp_path), "--project", "studies"]) == 2
    assert "which logs as it runs: name a folder of `analyze`" in capsys.readouterr().err
