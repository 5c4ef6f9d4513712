"""What is timed with torch.compile; here by a backend that compiles nothing. No time is asserted."""

import re
from functools import partial

import torch

from lit_robust.cli import main


def test_each_task_is_timed_as_it_is_and_compiled(monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    words = ["--network", "torchvision/squeezenet1_1", "--size", "32", "--batch", "2", "--rounds", "1"]
    assert main(["bench", "compile", *words, "--precision", "fp32"]) == 0
    said = capsys.readouterr().out
    for task in ("verdict", "gradient of an attack", "training step"):
        assert re.search(rf"^\| {task}, fp32 \| [\d.]+ images/s \| .* \|  \|$", said, re.MULTILINE)
        assert re.search(rf"^\| {task}, fp32, compiled \| [\d.]+ images/s \| .* \| [\d.]+ \|$", said, re.MULTILINE)
    assert re.search(r"The first compiled call takes \d+ s \(verdict\), \d+ s \(gradient of an attack\), \d+ s", said)
