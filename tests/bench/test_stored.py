"""The benchmark of a memory on disk: what it asks is a whole memory, and nothing is left behind."""

import re

import numpy as np
import torch

from lit_robust.bench import stored
from lit_robust.cli import main
from lit_robust.memory import open_memory


def test_what_is_built_is_a_whole_memory_of_different_keys(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "BATCH", 50)
    stored.build(tmp_path / "memory", 2010, 8)
    memory = open_memory(tmp_path / "memory")
    assert memory.keys.shape == (2010, 8)
    assert memory.keys.dtype == np.float16
    assert len(np.unique(memory.keys[:200], axis=0)) == 200
    answers = [layer(torch.eye(8)[:3]) for layer in stored.layers(memory, 2010).values()]
    # The nearest are all of them.
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)


def test_the_command_says_time_and_memory_and_removes_the_memory(tmp_path, capsys):
    words = ["--count", "3000", "--dimensions", "16", "--queries", "4", "--neighbours", "3", "--folder", str(tmp_path)]
    assert main(["bench", "stored-memory", *words]) == 0
    said = capsys.readouterr().out
    assert len(re.findall(r"^\| (?:building|opening|asking).*\| [\d.e+-]+ s \|", said, re.MULTILINE)) == 4
    assert re.search(r"Its peak is \d+ MiB", said)
    assert list(tmp_path.iterdir()) == []
