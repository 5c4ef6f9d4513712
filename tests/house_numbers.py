"""Numbers of the house: ``python tests/house_numbers.py [ROUNDS]`` prints size, trips and start times, in Markdown.

A trip is told by its files: those of this package with a function that is handed, or returns, a thing on its way, by
Python's profiler. The things are an image (as bytes, pixels, a batch, logits, counts and results) from its tar to
``results.json``; an attack's eps, or the attack that has it, from the settings to the first gradient; a value, its
result or its text, from ``results.json`` to the page. A start is the least time of a processor in some rounds, each a
process of its own, so that other work on the machine counts little; 0 rounds leave it out.
"""

import contextlib
import io
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lit_robust import evaluate
from lit_robust.attacks import PGD
from lit_robust.callbacks import AdversarialAccuracy, CleanAccuracy
from lit_robust.cli import main
from lit_robust.core.batch import Batch
from lit_robust.core.results import Result, RunResults
from lit_robust.data import ImageNetDataModule
from lit_robust.data.loading.samples import Encoded, Samples
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.report import report

PACKAGE = Path(__file__).parents[1] / "lit_robust"
FLOOR = "import torch, pytorch_lightning"
STARTS = (
    "--help",
    "recipes",
    "report run -o table.md",
    "report run -o page.html",
    "data verify imagenet --quick",
    "data shard images shards --split val",
    "data corrupt --help",
    "data derive scrambled --help",
    "analyze inversion --help",
    "bench attacks --help",
    "paper cache-table-1 --help",
    "fit --help",
    "fit -c imagenet/madry --help",
)
EPS, VALUE = 0.5123, 0.8765


class Trip:
    """Notes the files of which a function is given, or returns, a thing, between ``begin`` and ``end``."""

    def __init__(self, is_it: Callable[[object], bool]) -> None:
        self.is_it = is_it
        self.files: set[str] = set()

    def note(self, frame, event, returned):
        file = Path(frame.f_code.co_filename)
        if event not in ("call", "return") or not file.is_relative_to(PACKAGE):
            return
        self.end()  # What tells a thing is not on the way itself.
        things = list(frame.f_locals.values()) if event == "call" else [returned]
        if any(self.is_it(one[0] if isinstance(one, list | tuple) and one else one) for one in things):
            self.files.add(str(file.relative_to(PACKAGE)))
        self.begin()

    def begin(self) -> None:
        sys.setprofile(self.note)

    def end(self) -> None:
        sys.setprofile(None)


def is_number(thing: object, number: float) -> bool:
    """Tell whether a thing is a number."""
    return isinstance(thing, float) and thing == number


def is_image(thing: object) -> bool:
    """Tell whether a thing is an image on its way: encoded, decoded, in a batch, answered, counted."""
    if isinstance(thing, Tensor | np.ndarray):
        return thing.size > 64 if isinstance(thing, np.ndarray) else thing.numel() > 64
    return isinstance(thing, Encoded | Batch | Result | RunResults) or (isinstance(thing, bytes) and len(thing) > 64)


def is_eps(thing: object) -> bool:
    """Tell whether a thing is eps, a tensor of it, or what has it."""
    if isinstance(thing, Tensor):
        return thing.is_floating_point() and thing.numel() > 0 and abs(float(thing.flatten()[0]) - EPS) < 1e-6
    return is_number(thing, EPS) or is_number(getattr(thing, "eps", None), EPS)


def is_value(thing: object) -> bool:
    """Tell whether a thing is the value, its result, or a text with it."""
    if isinstance(thing, str):
        return f"{VALUE:.1%}".removesuffix("%") in thing
    return is_number(thing, VALUE) or (isinstance(thing, Result) and is_number(thing.value, VALUE))


@contextlib.contextmanager
def before(owner: object, name: str, first: Callable[[], None]) -> Iterator[None]:
    """Call something before each call of a function."""
    real = getattr(owner, name)

    def instead(*args, **kwargs):
        first()
        return real(*args, **kwargs)

    with patch.object(owner, name, instead):
        yield


def trips(root: Path) -> dict[str, list[str]]:
    """Return the files of each trip, on toy data in a folder."""
    image, eps, value = Trip(is_image), Trip(is_eps), Trip(is_value)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 48, 8))
    data = ImageNetDataModule(root, eval_batch_size=64, num_workers=0, evaluation=EvaluationCrop(None, None))
    with before(Samples, "__getitem__", image.begin):
        found = evaluate(network, data, [CleanAccuracy()], folder=root / "run", progress=False)
    image.end()
    eps.begin()
    attack = PGD(norm="l2", eps=EPS)
    eps.end()
    with before(AdversarialAccuracy, "update", eps.begin), before(torch.autograd, "grad", eps.end):
        evaluate(network, data, [AdversarialAccuracy(attack=attack)], progress=False)
    replace(found, results=[replace(found.results[0], value=VALUE)]).save(root / "run")
    value.begin()
    report([root / "run"], root / "page.html")
    value.end()
    named = {"an image, tar to results.json": image, "eps, settings to gradient": eps, "a value, file to page": value}
    return {name: sorted(trip.files) for name, trip in named.items()}


def seconds(words: tuple[str, ...], folder: Path, rounds: int) -> float:
    """Return the least time of a processor that a process takes which runs Python with these words."""
    times = []
    for _ in range(rounds):
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], cwd=folder, check=True, capture_output=True)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime)
    return min(times)


def size() -> str:
    """Return the number of files and of their lines."""
    lines = [len(file.read_text().splitlines()) for file in PACKAGE.rglob("*.py")]
    middle, small = statistics.median(lines), sum(one < 60 for one in lines)
    return f"{len(lines)} files, {sum(lines):,} lines, a median of {middle:g}, {small} below 60."


def run(rounds: int) -> None:
    """Print all numbers."""
    print(size(), end="\n\n")
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main(["data", "toy", str(root), "--train", "8", "--test", "64", "--severities", "[]"])
            found = trips(root)
        for name in ("a", "b"):
            (root / "images" / name).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(root / "images" / name / f"{name}.png")
        floor = seconds(("-c", FLOOR), root, rounds) if rounds else 0
        rows = [(words, seconds(("-m", "lit_robust", *words.split()), root, rounds)) for words in STARTS if rounds]
    print("| trip | files | |\n|---|---:|---|")
    for name, files in found.items():
        print(f"| {name} | {len(files)} | {', '.join(files)} |")
    if rounds:
        print(f"\n| start | s | times `{FLOOR}`, {floor:.2f} s |\n|---|---:|---:|")
        for words, taken in rows:
            print(f"| `lit-robust {words}` | {taken:.2f} | {taken / floor:.2f} |")


if __name__ == "__main__":
    os.environ.setdefault("WANDB_SILENT", "true")
    run(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
