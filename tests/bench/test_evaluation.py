"""The evaluation benchmark: all images pass, and every measure gives results. No time is asserted."""

import re

import pytest
import torch
from pytorch_lightning import Trainer

from lit_robust.bench import evaluation, measuring
from lit_robust.bench.evaluation import SETS, WAYS, EvaluationSubject, RandomSets, build_pass
from lit_robust.cli import main

SUBJECT = EvaluationSubject("torchvision/resnet18", 32, 4, 3)


def test_every_measure_has_results_of_all_images(tmp_path, monkeypatch):
    seen = []

    class Watched(Trainer):
        def test(self, *words, **options):
            found = super().test(*words, **options)
            seen.extend(self.callbacks)
            return found

    monkeypatch.setattr(evaluation, "Trainer", Watched)
    assert build_pass("keeping", SUBJECT)() > 0
    results = [result for callback in seen for result in getattr(callback, "results", [])]
    assert {result.dataset for result in results} == set(SETS)
    counts = {result.key: result.count for result in results}
    assert counts["test/imagenet/top1"] == counts["test/imagenet-o/aupr"] == 12


def test_the_bare_pass_is_over_the_same_images(monkeypatch):
    seen = []
    once = build_pass("bare", SUBJECT)
    module, data = once.args
    monkeypatch.setattr(module.model, "forward", lambda images: seen.append(images.shape))
    once()
    assert seen == [(4, 3, 32, 32)] * 15
    assert isinstance(data, RandomSets)
    assert torch.equal(next(iter(next(iter(data.test_dataloader().values())))).image, data.images)


def test_the_command_says_what_is_added(monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "extra_memory", lambda build, arguments: measuring.weigh_step(build, arguments))
    words = ["--size", "32", "--batch", "4", "--batches", "1", "--rounds", "1"]
    assert main(["bench", "evaluation", *words]) == 0
    said = capsys.readouterr().out
    assert all(f"| {name} | " in said for name in WAYS.values())
    assert re.search(r"all measures: [+-][\d.]+ % of the time of bare forward passes\.", said)
    assert re.search(r"[\d-]+ MiB bare, [\d-]+ MiB with all measures\.", said)
    with pytest.raises(SystemExit):
        main(["bench", "evaluation", "--help"])
