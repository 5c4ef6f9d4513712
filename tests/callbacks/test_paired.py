"""Differences of two runs on the same images, against counts by hand."""

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from tiny_sets import SMALL, WHOLE, write

from lit_robust.callbacks import KeepPredictions, PairedDifference, ResultsFile
from lit_robust.callbacks.paired import paired_differences, paired_text
from lit_robust.cli import main
from lit_robust.core.errors import UserError
from lit_robust.core.results import RunResults
from lit_robust.data import ImageNetDataModule
from lit_robust.metrics.intervals import paired_interval
from lit_robust.models import Network
from lit_robust.modules import Optimisation, StandardModule

LABELS = [3, 0, 5, 3, 1, 0, 7]
RIGHT = {"first": [0, 2, 3, 5, 6], "second": [0, 1, 2, 6]}


class Scripted(StandardModule):
    """Is right about some images."""

    def __init__(self, right):
        super().__init__(Network("lit_robust/resnet_tiny", num_classes=8), Optimisation())
        self.right = torch.tensor(right, dtype=torch.int64)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        return torch.eye(8)[torch.where(torch.isin(batch.index, self.right), batch.label, (batch.label + 1) % 8)]


def run(folder, root, right, *others):
    """Test on the images of a root, and keep the predictions."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks = [KeepPredictions("imagenet"), *others, ResultsFile()]
    trainer = Trainer(devices=1, accelerator="cpu", default_root_dir=folder, callbacks=callbacks, **quiet)
    trainer.test(Scripted(right), ImageNetDataModule(root=root, evaluation=WHOLE, **SMALL), verbose=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("paired")
    write(root / "imagenet", "val", LABELS, num_classes=8)
    for name, right in RIGHT.items():
        run(root / name, root, right)
    return root


def test_the_difference_is_that_of_the_same_images(runs, capsys):
    (found,) = paired_differences(runs / "first", runs / "second")
    assert (found.dataset, found.count) == ("imagenet", 7)
    assert (found.first, found.second) == (5 / 7, 4 / 7)
    # Of the first's 0, 2, 3, 5, 6 and the second's 0, 1, 2, 6 one is gained and two are lost.
    assert found.interval == paired_interval(1, 2, 7)
    assert found.interval[0] < found.value < found.interval[1]
    assert main(["paired", str(runs / "first"), str(runs / "second")]) == 0
    out = capsys.readouterr().out
    assert paired_text([found], "first", "second") in out
    assert "71.4" in out
    assert "-14.3 (" in out


def test_the_page_shows_the_difference(runs, tmp_path, capsys):
    folders, page = [str(runs / "first"), str(runs / "second")], tmp_path / "page.html"
    assert main(["report", *folders, "--paired", "-o", str(page)]) == 0
    low, high = (f"{100 * end:+.1f}".replace("-", "\N{MINUS SIGN}") for end in paired_interval(1, 2, 7))
    text = page.read_text()
    assert f'<span class="value">\N{MINUS SIGN}14.3</span><small class="interval">{low} to {high}</small>' in text
    assert "<td>first <small>71.4 %</small></td>" in text
    assert main(["report", *folders, "-o", str(page)]) == 0
    assert "On the same images" not in page.read_text()
    assert main(["report", *folders, "--paired", "--group", "-o", str(page)]) == 2
    assert "--paired compares single runs: leave out --group." in capsys.readouterr().err


def test_a_run_that_kept_nothing_is_refused(runs):
    (runs / "other").mkdir()
    with pytest.raises(UserError, match="KeepPredictions"):
        paired_differences(runs / "first", runs / "other")


def test_other_images_are_refused(runs, tmp_path):
    write(tmp_path / "imagenet", "val", LABELS[::-1], num_classes=8)
    run(tmp_path / "run", tmp_path, [])
    with pytest.raises(UserError, match="The two runs saw other images of imagenet"):
        paired_differences(runs / "first", tmp_path / "run")


@pytest.mark.parametrize("cells", [(0.3, 0.1), (0.02, 0.01), (0.5, 0.5)])
def test_the_interval_holds_in_95_of_100_draws(cells):
    random = np.random.default_rng(0)
    gained, lost = random.multinomial(100, [*cells, 1 - sum(cells)], size=4000)[:, :2].T
    bounds = np.array([paired_interval(int(more), int(fewer), 100) for more, fewer in zip(gained, lost, strict=True)])
    truth = cells[0] - cells[1]
    held = ((bounds[:, 0] <= truth) & (truth <= bounds[:, 1])).mean()
    assert held > 0.94


def test_a_test_says_the_difference_to_an_earlier_run(runs, tmp_path):
    run(tmp_path / "later", runs, RIGHT["second"], PairedDifference(runs / "first"))
    (found,) = [one for one in RunResults.load(tmp_path / "later").results if one.metric == "top1_difference"]
    (expected,) = paired_differences(runs / "first", runs / "second")
    assert (found.value, found.interval, found.count) == (expected.value, expected.interval, 7)
    assert (found.protocol["less"]["run"], found.protocol["less"]["top1"]) == ("first", 5 / 7)


def test_an_earlier_run_of_other_images_is_refused(runs, tmp_path):
    write(tmp_path / "imagenet", "val", LABELS[:5], num_classes=8)
    with pytest.raises(UserError, match="The two runs saw other images of imagenet"):
        run(tmp_path / "later", tmp_path, [0], PairedDifference(runs / "first"))
    with pytest.raises(UserError, match="keeps no predictions"):
        run(tmp_path / "last", tmp_path, [0], PairedDifference(tmp_path / "none"))
