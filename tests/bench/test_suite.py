"""What a suite costs: the passes are those that a suite takes of small sets, counted; the table is arithmetic."""

import re

import pytest
import torch
from pytorch_lightning import Trainer

from lit_robust.attacks import PGD
from lit_robust.bench import suite
from lit_robust.bench.suite import IMAGES, Cost, Rates, bench_suite, suite_costs
from lit_robust.callbacks import AdversarialAccuracy, CalibrationEvaluation, CleanAccuracy
from lit_robust.data import EvaluationCrop, ImageNetDataModule, RobustnessSuite
from lit_robust.data.loading import samples
from lit_robust.models import Network
from lit_robust.modules import StandardModule


def test_published_counts():
    assert IMAGES["imagenet-c"] == 3_750_000
    assert sum(IMAGES.values()) == 3_860_780


def test_costs_are_the_cheapest_first():
    costs = suite_costs((1.0, 0.5), steps=3)
    assert [cost.name for cost in costs] == list(IMAGES)
    assert {cost.name: cost for cost in costs}["imagenet"] == Cost("imagenet", 50_000, 125_000, 225_000)
    assert Cost("x", 10, 20, 30).seconds(Rates(10.0, 5.0, 100.0)) == 8.0
    assert Cost("x", 1000, 20, 30).seconds(Rates(10.0, 5.0, 100.0)) == 10.0


@pytest.mark.parametrize("eps", [(0.25,), (0.1, 0.2, 0.25)])
def test_one_decode_an_image_and_one_pass_for_all_measures(toy, tmp_path, monkeypatch, eps):
    """Every image is decoded once and answered once, whatever is measured; an attack adds its steps and one verdict."""
    decoded, passes = [], {True: 0, False: 0}
    once = samples.decode_rgb
    monkeypatch.setattr(samples, "decode_rgb", lambda *words: decoded.append(1) or once(*words))
    torch.manual_seed(0)
    module = StandardModule(Network("lit_robust/resnet_tiny", 8))

    def count(_, inputs, __):
        passes[torch.is_grad_enabled()] += len(inputs[0])

    module.model.register_forward_hook(count)
    attack = PGD(norm="l2", eps=eps[-1], steps=3)
    adversarial = AdversarialAccuracy(attack, eps[:-1], examples=0)
    measures = [CleanAccuracy(), CalibrationEvaluation(), adversarial]
    data = ImageNetDataModule(toy, evaluation=EvaluationCrop(None, None), eval_batch_size=41, num_workers=0)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "accelerator": "cpu"}
    trainer = Trainer(default_root_dir=tmp_path, callbacks=measures, enable_model_summary=False, **quiet)
    trainer.test(module, RobustnessSuite([data]), verbose=False)
    top1 = next(result for result in measures[0].results if result.metric == "top1")
    right = [round(41 * value) for value in (top1.value, *(result.value for result in adversarial.results[:-1]))]
    assert right[0] > 0
    assert len(decoded) == 41
    assert passes[False] == 41 + sum(right)
    assert passes[True] == 3 * sum(right)


def test_the_table_is_the_sum_of_its_lines(monkeypatch):
    monkeypatch.setattr(suite, "seconds_of", lambda *_: 1.0)
    text = bench_suite("torchvision/squeezenet1_1", 32, 4, 1, "fp32")
    hours = [float(value) for value in re.findall(r"\| ([\d.e+]+) \| [\d.e+-]+ \|$", text, re.MULTILINE)]
    assert len(hours) == len(IMAGES) + 1
    assert sum(hours[:-1]) == pytest.approx(hours[-1], rel=0.01)
    attacked = 50_000 * (0.579 + 0.5442 + 0.5067 + 0.4304)
    assert f"| all | 3,860,780 | {3_860_780 + round(attacked):,} | {7 * round(attacked):,} |" in text
