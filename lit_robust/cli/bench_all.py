"""``lit-robust bench all``: every benchmark in the size that suits the device, its tables in Markdown."""

from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Literal

from lit_robust.cli import benches
from lit_robust.core.files import write_text

Part = Literal["data", "corruptions", "attacks", "training", "memory", "evaluation", "suite", "compile"]
NEEDED: Mapping[Part, Mapping[str, str]] = {
    "data": {"webdataset": "webdataset"},
    "corruptions": {"imagecorruptions": "imagecorruptions", "cv2": "opencv-python-headless"},
    "attacks": {"foolbox": "foolbox", "torchattacks": "torchattacks"},
    "memory": {"faiss": "faiss-cpu"},
}
"""What each part needs beyond what the suite itself does: import to package."""


def bench_all(folder: Path, *, split: str = "val", part: Part | None = None, markdown: bool = False) -> None:
    """Run every benchmark in the size that suits the device, and print the tables in Markdown.

    Beyond torch and this suite they need webdataset, imagecorruptions, opencv-python-headless, foolbox, torchattacks
    and Faiss. A part whose packages are missing is left out, and says so.

    Args:
        folder: shards of one set, such as data/sample/imagenet
        split: its split
        part: one benchmark alone, to split the work; null for all, in turn
        markdown: write each part to bench-<part>.md, too, as soon as it is through
    """
    import torch

    large = torch.cuda.is_available()
    attacked, batch = ("torchvision/resnet50", 256) if large else ("torchvision/resnet18", 16)
    works: Mapping[Part, Callable[[], None]] = {
        "data": lambda: benches.bench_data(folder, split=split, rounds=3),
        "corruptions": lambda: benches.bench_corruptions(folder, split=split, rounds=3),
        "attacks": lambda: benches.bench_attacks(
            folder, split=split, network={"name": attacked}, images=min(2 * batch, 192), batch=batch, eps=(1.0, 3.0)
        ),
        "training": lambda: benches.bench_training(network=attacked, batch=batch),
        "memory": lambda: benches.bench_memory(count=1_281_167 if large else 100_000, rounds=3),
        "evaluation": lambda: benches.bench_evaluation(network=attacked, batch=batch, rounds=3),
        "suite": lambda: benches.bench_suite(batch=batch),
        "compile": lambda: benches.bench_compile(network=attacked, batch=batch, rounds=3),
    }
    for name in works if part is None else [part]:
        missing = [package for module, package in NEEDED.get(name, {}).items() if find_spec(module) is None]
        if missing:
            print(f"The part {name} is left out: it needs `pip install {' '.join(missing)}`.\n")
            continue
        with redirect_stdout(StringIO()) as said:
            works[name]()
        text = f"## {name.capitalize()}\n\n{said.getvalue()}"
        print(text, flush=True)
        if markdown:
            write_text(Path(f"bench-{name}.md"), text)
