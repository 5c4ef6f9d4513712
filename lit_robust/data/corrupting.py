"""`lit-robust data corrupt`: clean shards to shards like ImageNet-C's."""

import hashlib
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from lit_robust.core.errors import UserError
from lit_robust.core.processes import end_with_parent
from lit_robust.data.cells import NAME as PUBLISHED
from lit_robust.data.cells import chosen_cells
from lit_robust.data.corrupted_cell import CellWriter, Settings
from lit_robust.data.packing.archive import check_space
from lit_robust.data.shard_splits import open_table
from lit_robust.data.split import Reading
from lit_robust.data.transforms import EvaluationCrop
from lit_robust.shards.members import sample_bytes
from lit_robust.stimuli.corruptions import FrostPictures

SAMPLED = 3  # images a cell by which its size is estimated


def corrupt_shards(
    source: Path,
    output: Path,
    split: str,
    corruptions: Sequence[str],
    severities: Sequence[int],
    seed: int,
    crop: EvaluationCrop,
    frost: Path | None,
    encoding: Literal["jpg", "png"],
    workers: int,
    shard_size: int = 1000,
) -> int:
    """Write every image of a split under every corruption to ``<output>/<corruption>/<severity>/``, split ``val``.

    A cell is written whole or not at all; those that an earlier call with the same settings finished are kept.

    Args:
        source: folder of the clean shards.
        output: folder for the cells; not named ``imagenet-c``, which these are not.
        split: of the clean shards.
        corruptions: names.
        severities: 1 to 5.
        seed: of all draws.
        crop: before the corruption.
        frost: folder of frost pictures; None draws frost.
        encoding: ``jpg``, quality 85 as the published files, or ``png``.
        workers: processes; each writes a cell at a time.
        shard_size: images a tar.

    Returns:
        How many cells were written.

    Raises:
        UserError: the output belongs to other settings, a name is unknown, or the disk is too small.
    """
    if output.resolve().name == PUBLISHED:
        raise UserError(f"{output} would pass for the published ImageNet-C: name the folder imagenet-c-like.")
    cells = chosen_cells(corruptions, severities)
    clean = open_table(source, split, Reading())
    pictures = None if frost is None else FrostPictures(frost)
    digest = None if pictures is None else frost_digest(pictures)
    settings = Settings(clean.protocol["shards_sha256"], seed, crop.resize, crop.crop, digest, encoding)
    writer = CellWriter(clean, output, settings, pictures, shard_size)
    missing = [cell for cell in cells if not writer.is_finished(cell)]
    check_space(output, sum(estimated_size(writer, cell) for cell in missing), "The corrupted images, by an estimate,")
    with tqdm(total=len(missing) * len(clean), desc="corrupting", unit="image") as progress:
        for done in in_processes(writer, missing, workers):
            progress.update(done - progress.n)
    return len(missing)


def frost_digest(frost: FrostPictures) -> str:
    """Return sha256, in hexadecimal, over the pixels of frost pictures, wherever they lie."""
    digest = hashlib.sha256()
    for picture in frost.pictures:
        digest.update(json.dumps(picture.shape).encode() + picture.numpy().tobytes())
    return digest.hexdigest()


def estimated_size(writer: CellWriter, cell: str) -> int:
    """Return about how many bytes the tars of a cell will have, from a few of its images."""
    count = len(writer.clean)
    numbers = sorted(set(np.linspace(0, count - 1, min(SAMPLED, count)).astype(int).tolist()))
    samples = [sample_bytes("key", {"png": image, "cls": b"0"}) for image in writer.encoded(cell, numbers)]
    return sum(map(len, samples)) * count // len(samples)


class _StoppedError(Exception):
    """Another cell failed, or the user ended the run."""


_done: "Synchronized[int] | None" = None
_stop: Event | None = None


def _begin_process(done: "Synchronized[int]", stop: Event) -> None:
    end_with_parent()
    global _done, _stop
    _done, _stop = done, stop
    torch.set_num_threads(1)


def _tell(count: int) -> None:
    assert _done is not None
    assert _stop is not None
    with _done.get_lock():
        _done.value += count
    if _stop.is_set():
        raise _StoppedError


def _write(writer: CellWriter, cell: str) -> None:
    writer.write(cell, _tell)


def in_processes(writer: CellWriter, cells: Sequence[str], workers: int) -> Iterator[int]:
    """Write the cells, a process each at a time, and yield how many images are done."""
    context = multiprocessing.get_context("spawn")
    done: Synchronized[int] = context.Value("q", 0)
    stop = context.Event()
    with ProcessPoolExecutor(min(workers, len(cells)) or 1, context, _begin_process, (done, stop)) as pool:
        tasks = {pool.submit(_write, writer, cell) for cell in cells}
        try:
            while tasks:
                finished, tasks = wait(tasks, timeout=0.5)
                for task in finished:
                    task.result()
                yield done.value
        except BrokenProcessPool as error:
            raise UserError(
                "A process that corrupts images was killed, probably for want of memory: run this again, with fewer "
                "--workers."
            ) from error
        finally:
            # The other processes end at their next few images instead of at their cells' end.
            stop.set()
            pool.shutdown(cancel_futures=True)
