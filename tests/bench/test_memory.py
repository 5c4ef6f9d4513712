"""The memory benchmark runs through, on a small memory. No time is asserted."""

import re

import numpy as np
import pytest

from lit_robust.bench import measuring, memory
from lit_robust.bench.memory import RandomTrainingImages, bench_building
from lit_robust.cli import main
from lit_robust.memory import open_memory
from lit_robust.modules import CacheModule


def test_the_command_names_every_contender(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(memory, "extra_memory", lambda build, arguments: measuring.weigh_step(build, arguments))
    monkeypatch.setattr(memory, "SIZE", 16)
    words = ["--count", "300", "--dimensions", "16", "--num-classes", "7", "--queries", "5", "--neighbours", "3"]
    words += ["--backbone", "lit_robust/resnet_tiny", "--rounds", "1", "--folder", str(tmp_path)]
    assert main(["bench", "memory", *words]) == 0
    said = capsys.readouterr().out
    for name in ("continuous", "bare product of queries and keys", "nearest 3", "a memory, images shuffled"):
        assert f"| {name} | " in said
    assert re.search(r"\| bare forward passes \| [\d.]+ images/s \| .* \| [\d.]+ \|", said)
    assert list(tmp_path.iterdir()) == []


def test_what_is_built_is_a_whole_memory(monkeypatch, tmp_path):
    """Of every image of the benchmark's data, each in its class."""
    monkeypatch.setattr(memory, "SIZE", 16)
    built = []
    end = CacheModule.on_fit_end

    def keep(module):
        end(module)
        built.append(np.array(open_memory(module.memory_folder).labels))

    monkeypatch.setattr(CacheModule, "on_fit_end", keep)
    bench_building("lit_robust/resnet_tiny", tmp_path, 1)
    (labels,) = built
    assert labels.tolist() == sorted(RandomTrainingImages(memory.torch.device("cpu")).labels.tolist())


@pytest.mark.parametrize("step", [memory.forward_step, memory.gradient_step, memory.nearest_step])
def test_steps_that_are_weighed_run(step, tmp_path):
    subject = memory.MemorySubject(50, 8, 5, 4, 3, "lit_robust/resnet_tiny", tmp_path)
    step(subject, 4)()
