"""`lit-robust bench corruptions`: how fast images are corrupted, against imagecorruptions."""

import importlib.util
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lit_robust.bench.measuring import Figure, machine, table
from lit_robust.core.errors import UserError
from lit_robust.data.loading.splits import Reading, open_table
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.shards import decode_rgb
from lit_robust.stimuli.corruptions import ALL_CORRUPTIONS, corrupt

PACKAGES = ("torch", "numpy", "imagecorruptions", "opencv-python-headless", "scikit-image")


def bench_corruptions(folder: Path, split: str, images: int, rounds: int, severity: int, threads: int) -> str:
    """Measure all corruptions on images of the shards of ``folder``, and return the table.

    Args:
        folder: of one set, such as ``data/sample/imagenet``.
        split: name of the split.
        images: how many; ours come as one batch, the peer's one by one, which is all it can.
        rounds: measurements of each.
        severity: 1 to 5.
        threads: of torch and of OpenCV.
    """
    peer = _imagecorruptions(threads)
    torch.set_num_threads(threads)
    source = open_table(folder, split, Reading())
    reader = source.table.readers[0]
    crop = EvaluationCrop()
    count = min(images, len(source))
    batch = torch.stack([crop(decode_rgb(reader.image_bytes(row), reader.name(row))) for row in range(count)])
    arrays = [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in batch]
    figures, ratios = [], {}
    for name in tqdm(ALL_CORRUPTIONS, "corrupting", leave=False):
        ours = _rates(lambda name=name: corrupt(batch, name, severity, range(count)), count, rounds)  # type: ignore[misc]
        figures.append(Figure(name, median(ours), "images/s", min(ours), max(ours)))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs = _rates(
                    lambda name=name: [
                        peer.corrupt(array, corruption_name=name, severity=severity) for array in arrays
                    ],  # type: ignore[misc]
                    count,
                    rounds,
                )
        except (TypeError, AttributeError):
            continue  # It calls what today's NumPy or scikit-image no longer has: no ratio in the table.
        ratios[name] = median(ours) / median(theirs)
    title = f"Corruptions at severity {severity}, {count} images of 224 px, {threads} threads, against imagecorruptions"
    summary = f"Median ratio over the {len(ratios)} that still run there: {median(ratios.values()):.2f}"
    return f"{machine(PACKAGES)}\n\n{table(title, figures, ratios)}\n\n{summary}"


def _rates(work: Callable[[], Any], count: int, rounds: int) -> list[float]:
    work()
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        found.append(count / (time.perf_counter() - begin))
    return found


def _imagecorruptions(threads: int) -> Any:
    if importlib.util.find_spec("imagecorruptions") is None:
        raise UserError("The peer is missing: run `pip install imagecorruptions opencv-python-headless`.")
    # Its one use of pkg_resources, which setuptools no longer has, is to find its own frost pictures.
    stand_in = types.ModuleType("pkg_resources")
    stand_in.resource_filename = _resource_filename  # type: ignore[attr-defined]
    is_ours = sys.modules.setdefault("pkg_resources", stand_in) is stand_in
    try:
        import cv2
        import imagecorruptions
    finally:
        if is_ours:
            del sys.modules["pkg_resources"]

    cv2.setNumThreads(threads)
    return imagecorruptions


def _resource_filename(package: str, name: str) -> str:
    found = importlib.util.find_spec(package.partition(".")[0])
    assert found is not None
    assert found.origin is not None
    return str(Path(found.origin).parent / name)
