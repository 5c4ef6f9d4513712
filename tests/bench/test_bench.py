"""The benchmarks run, in their smallest form, and say what they measured; no figure is asserted."""

import io
import re
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from lit_robust.bench.measuring import Figure, alternate, table
from lit_robust.cli import benches, main
from lit_robust.shards import ShardWriter


@pytest.fixture
def shards(tmp_path):
    random = np.random.default_rng(0)
    with ShardWriter(tmp_path / "imagenet", "val", num_classes=2) as writer:
        for number in range(8):
            file = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (260, 300, 3), dtype=np.uint8)).save(file, "JPEG")
            writer.write(f"{number}", {"jpg": file.getvalue(), "cls": b"%d" % (number % 2)})
    return tmp_path / "imagenet"


def test_contenders_take_turns_and_the_median_counts():
    calls = []

    def measure(name, values):
        def once():
            calls.append(name)
            return values.pop(0)

        return once

    found = alternate({"a": measure("a", [1.0, 9.0, 2.0]), "b": measure("b", [5.0, 5.0, 5.0])}, 3, "images/s")
    assert calls == ["a", "b"] * 3
    assert found["a"] == Figure("a", 2.0, "images/s", 1.0, 9.0)
    assert "| a | 2 images/s | 1 to 9 | 0.50 |" in table("t", list(found.values()), {"a": 0.5})


def test_bench_data(shards, capsys):
    """Takes about 20 s: a process for each way to start a worker."""
    assert main(["bench", "data", str(shards), "--images", "64", "--rounds", "1"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"\| lit_robust, evaluation \| [\d.]+ images/s", said)
    assert re.search(r"\| webdataset pipeline, evaluation \| .* \| [\d.]+ \|", said)
    assert re.search(r"own memory of a worker, spawn \| [\d.]+ MiB", said)
    assert re.search(r"\| 64 \| [\d,]+ \| \d+ % \|", said)
    assert "A node of 8 GPUs" in said


def test_bench_corruptions(shards, capsys):
    assert main(["bench", "corruptions", str(shards), "--images", "2", "--rounds", "1"]) == 0
    said = capsys.readouterr().out
    assert len(re.findall(r"^\| [a-z_]+ \| [\d.]+ images/s", said, re.MULTILINE)) == 19
    assert re.search(r"Median ratio over the 1\d that still run there: [\d.]+", said)


def test_bench_all_prints_and_writes_each_part_and_names_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ran = []
    for name in get_args(benches.Part):
        monkeypatch.setattr(
            benches, f"bench_{name}", lambda *_, name=name, **__: ran.append(name) or print(f"| {name} |")
        )
    monkeypatch.setattr(benches, "find_spec", lambda module: None if module == "foolbox" else module)
    assert main(["bench", "all", "data/sample/imagenet", "--markdown"]) == 0
    said = capsys.readouterr().out
    assert ran == [name for name in get_args(benches.Part) if name != "attacks"]
    assert "The part attacks is left out: it needs `pip install foolbox`." in said
    assert {file.name for file in tmp_path.iterdir()} == {f"bench-{name}.md" for name in ran}
    assert (tmp_path / "bench-suite.md").read_text() == "## Suite\n\n| suite |\n"
    ran.clear()
    assert main(["bench", "all", "data/sample/imagenet", "--part", "training"]) == 0
    assert ran == ["training"]
    assert capsys.readouterr().out == "## Training\n\n| training |\n\n"


def test_the_packages_that_bench_all_needs_are_in_its_help(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "all", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for package in ("webdataset", "imagecorruptions", "opencv-python-headless", "foolbox", "torchattacks", "Faiss"):
        assert package in said
