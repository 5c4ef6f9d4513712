"""`lit-robust data corrupt`: clean shards to shards like ImageNet-C's."""

import io
import json
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lit_robust.data.cells import GENERATED, chosen_cells
from lit_robust.data.cells import NAME as PUBLISHED
from lit_robust.data.shard_splits import open_table
from lit_robust.data.split import Reading, TableSplit
from lit_robust.data.transforms import EvaluationCrop
from lit_robust.errors import UserError
from lit_robust.files import write_text
from lit_robust.seeds import stream_seed
from lit_robust.shards import ShardWriter, decode_rgb
from lit_robust.shards.listing import read_info
from lit_robust.shards.lock import sole_writer
from lit_robust.stimuli.corruptions import FrostPictures, corrupt

BATCH = 16
SPLIT = "val"


@dataclass(frozen=True)
class Settings:
    """What decides the pixels of a corrupted set.

    Attributes:
        source: digest of the clean shards.
        seed: of all draws; each image and cell has a stream of its own.
        resize: shorter side before the crop, in pixels; None for none.
        crop: side of the central square, in pixels; None for none.
        frost: folder of frost pictures; None for drawn frost.
        encoding: ``jpg``, quality 85 as the published files, or ``png``.
    """

    source: str
    seed: int
    resize: int | None
    crop: int | None
    frost: str | None
    encoding: Literal["jpg", "png"]


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
        UserError: the output belongs to other settings, or a name is unknown.
    """
    if output.resolve().name == PUBLISHED:
        raise UserError(f"{output} would pass for the published ImageNet-C: name the folder imagenet-c-like.")
    cells = chosen_cells(corruptions, severities)
    clean = open_table(source, split, Reading())
    settings = Settings(
        clean.protocol["shards_sha256"], seed, crop.resize, crop.crop, None if frost is None else str(frost), encoding
    )
    mark = {"by": "lit-robust data corrupt", **asdict(settings)}
    missing = [cell for cell in cells if not _is_finished(output / cell, mark)]
    with tqdm(total=len(missing) * len(clean), desc="corrupting", unit="image") as progress:
        for done in _in_processes(missing, clean, output, settings, mark, workers, shard_size):
            progress.update(done - progress.n)
    return len(missing)


def corrupt_cell(
    cell: str, clean: TableSplit, output: Path, settings: Settings, mark: Mapping[str, Any], shard_size: int
) -> None:
    """Write one cell, alone: another run may write others."""
    with sole_writer(output / cell, "corrupting"):
        _corrupt_cell(cell, clean, output / cell, settings, mark, shard_size)


def _corrupt_cell(
    cell: str, clean: TableSplit, folder: Path, settings: Settings, mark: Mapping[str, Any], shard_size: int
) -> None:
    corruption, _, severity = cell.partition("/")
    crop = EvaluationCrop(settings.resize, settings.crop)
    frost = None if settings.frost is None else FrostPictures(Path(settings.frost))
    if _is_finished(folder, mark):
        return
    # What is there bears our mark and was left by a killed run, or is a cell that lost a shard.
    for leftover in folder.glob("*.tar"):
        leftover.unlink()
    # The mark is there before the images are: nobody ever takes them for the published ones.
    write_text(folder / "_info.json", json.dumps({GENERATED: dict(mark), "splits": {}}, indent=1))
    writer = ShardWriter(
        folder, SPLIT, shard_size=shard_size, num_classes=clean.num_classes, class_names=clean.class_names
    )
    with writer:
        for begin in range(0, len(clean), BATCH):
            numbers = range(begin, min(begin + BATCH, len(clean)))
            images = [_decode(clean, number, crop) for number in numbers]
            for number, image in zip(
                numbers, _corrupted(images, numbers, corruption, int(severity), settings, frost), strict=True
            ):
                members = {
                    settings.encoding: _encode(image, settings.encoding),
                    "cls": b"%d" % clean.table.label[number],
                }
                writer.write(clean.table.key(number), members)
            if _done is not None:
                with _done.get_lock():
                    _done.value += len(numbers)


def _corrupted(
    images: Sequence[Tensor],
    numbers: Sequence[int],
    corruption: str,
    severity: int,
    settings: Settings,
    frost: FrostPictures | None,
) -> list[Tensor]:
    # The streams are those of `ImageNetCLikeDataModule`: written or as loaded, the pixels are the same before encoding.
    seeds = [stream_seed(settings.seed, "corruption", number) for number in numbers]
    if len({image.shape for image in images}) == 1:
        return list(corrupt(torch.stack(list(images)), corruption, severity, seeds, frost))
    return [
        corrupt(image[None], corruption, severity, [seed], frost)[0] for image, seed in zip(images, seeds, strict=True)
    ]


def _decode(clean: TableSplit, number: int, crop: EvaluationCrop) -> Tensor:
    reader, row = clean.table.find(number)
    return crop(decode_rgb(reader.image_bytes(row), reader.name(row)))


def _encode(image: Tensor, encoding: str) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    if encoding == "jpg":
        picture.save(file, "JPEG", quality=85, optimize=True)
    else:
        picture.save(file, "PNG")
    return file.getvalue()


def _is_finished(folder: Path, mark: Mapping[str, Any]) -> bool:
    info = read_info(folder)[1]
    if not info and not any(folder.glob("*.tar")):
        return False
    if info.get(GENERATED) != mark:
        raise UserError(f"{folder} is of other images or settings: choose another output, or remove it.")
    entry = info["splits"].get(SPLIT)
    return entry is not None and all((folder / file).is_file() for file in entry["filenames"])


_done: "Synchronized[int] | None" = None


def _begin_process(done: "Synchronized[int]") -> None:
    global _done
    _done = done
    torch.set_num_threads(1)


def _in_processes(
    cells: Sequence[str],
    clean: TableSplit,
    output: Path,
    settings: Settings,
    mark: Mapping[str, Any],
    workers: int,
    shard_size: int,
) -> Iterator[int]:
    """Write the cells, a process each at a time, and yield how many images are done."""
    context = multiprocessing.get_context("spawn")
    done: Synchronized[int] = context.Value("q", 0)
    with ProcessPoolExecutor(workers, context, _begin_process, (done,)) as pool:
        tasks = {pool.submit(corrupt_cell, cell, clean, output, settings, mark, shard_size) for cell in cells}
        while tasks:
            finished, tasks = wait(tasks, timeout=0.5)
            for task in finished:
                if task.exception() is not None:
                    pool.shutdown(cancel_futures=True)
                try:
                    task.result()
                except BrokenProcessPool as error:
                    raise UserError(
                        "A process that corrupts images was killed, probably for want of memory: run this again, with "
                        "fewer --workers."
                    ) from error
            yield done.value
