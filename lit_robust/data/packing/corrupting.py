"""`lit-robust data corrupt`: clean shards to shards like ImageNet-C's, each cell (corruption, severity) a folder."""

import hashlib
import io
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import cached_property
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lit_robust.core.errors import UserError
from lit_robust.core.files import write_text
from lit_robust.core.processes import end_with_parent
from lit_robust.core.seeds import stream_seed
from lit_robust.data.loading.splits import Reading, TableSplit, open_table
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.data.packing.sources import check_space
from lit_robust.data.settings import check_given
from lit_robust.shards import ShardWriter, decode_rgb
from lit_robust.shards.info import read_info
from lit_robust.shards.lock import sole_writer
from lit_robust.shards.write import remove_leftovers, sample_bytes
from lit_robust.stimuli.corruption_names import ALL_CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES
from lit_robust.stimuli.corruptions import FrostPictures, corrupt

PUBLISHED = "imagenet-c"
# The number of a cell in `Batch.group`, whichever cells a run uses.
CELLS = tuple(f"{corruption}/{severity}" for corruption in ALL_CORRUPTIONS for severity in SEVERITIES)
GENERATED = "generated"  # In the info file of shards that `lit-robust data corrupt` wrote.


def chosen_cells(corruptions: Sequence[str], severities: Sequence[int]) -> list[str]:
    """Return the cells of the named corruptions and severities.

    Raises:
        UserError: one is unknown or named twice, or there is none.
    """
    check_given(corruptions=corruptions, severities=severities)
    for given, known, what in ((corruptions, ALL_CORRUPTIONS, "corruptions"), (severities, SEVERITIES, "severities")):
        if not given or len(set(given)) < len(given) or not set(given) <= set(known):
            raise UserError(f"{what} is {list(given)}: name some of {', '.join(map(str, known))}, each once.")
    return [f"{corruption}/{severity}" for corruption in corruptions for severity in severities]


def cells_there(folder: Path, cells: Sequence[str]) -> list[str]:
    """Return the cells that have a folder; `lacking` names the others.

    Raises:
        UserError: there is none.
    """
    found = [cell for cell in cells if (folder / cell).is_dir()]
    if not found:
        raise UserError(f"{folder} has no folder <corruption>/<severity>, such as {cells[0]}: check the root.")
    return found


def lacking(cells: Sequence[str], wanted: Sequence[str]) -> str:
    """Say which of the benchmark's cells among ``wanted`` are not among ``cells``; empty where all are."""
    benchmark = [cell for cell in wanted if not is_extra(cell)]
    absent = [cell for cell in benchmark if cell not in cells]
    return f"{len(absent)} of {len(benchmark)} cells are not there, the first is {absent[0]}" if absent else ""


def is_extra(cell: str) -> bool:
    """Tell whether a cell is of the four corruptions that enter no mean."""
    return cell.split("/")[0] in EXTRA_CORRUPTIONS


BATCH = 16
SPLIT = "val"
JPEG_QUALITY = 85


@dataclass(frozen=True)
class Settings:
    """What decides the pixels of a corrupted set.

    Attributes:
        source: digest of the clean shards.
        seed: of all draws; each image and cell has a stream of its own.
        resize: shorter side before the crop, in pixels; None for none.
        crop: side of the central square, in pixels; None for none.
        frost: digest of the frost pictures; None for drawn frost.
        encoding: ``jpg``, quality 85 as the published files, or ``png``.
    """

    source: str
    seed: int
    resize: int | None
    crop: int | None
    frost: str | None
    encoding: Literal["jpg", "png"]


@dataclass(frozen=True)
class CellWriter:
    """Writes cells, each whole or not at all.

    Attributes:
        clean: the images.
        output: folder of all cells.
        settings: what decides the pixels.
        frost: pictures of frost; None draws frost.
        shard_size: images a tar.
    """

    clean: TableSplit
    output: Path
    settings: Settings
    frost: FrostPictures | None
    shard_size: int

    @cached_property
    def mark(self) -> dict[str, Any]:
        """What distinguishes a cell of these images and settings from others, in its info file."""
        return {"by": "lit-robust data corrupt", **asdict(self.settings)}

    def is_finished(self, cell: str) -> bool:
        """Return whether a cell is there, of these settings, with all its tars.

        Raises:
            UserError: its folder is of something else.
        """
        folder = self.output / cell
        info = read_info(folder)[1]
        if not info and not any(folder.glob("*.tar")):
            return False
        if info.get(GENERATED) != self.mark:
            raise UserError(f"{folder} is of other images or settings: choose another output, or remove it.")
        entry = info["splits"].get(SPLIT)
        return entry is not None and all((folder / file).is_file() for file in entry["filenames"])

    def write(self, cell: str, report: Callable[[int], object]) -> None:
        """Write one cell, alone: another run may write others.

        Args:
            cell: its name, ``<corruption>/<severity>``.
            report: is given the number of images after each few; what it raises ends the writing.

        Raises:
            UserError: the cell is of other settings, another run writes it, or the disk is full.
            DataError: an image cannot be read.
        """
        folder = self.output / cell
        with sole_writer(folder, "corrupting", "the corrupted images"):
            if self.is_finished(cell):
                return
            # What is there bears our mark and was left by a killed run, or is a cell that lost a shard.
            for leftover in folder.glob("*.tar"):
                leftover.unlink()
            remove_leftovers(folder, r"_info\.json")
            # The mark is there before the images are: nobody ever takes them for the published ones.
            write_text(folder / "_info.json", json.dumps({GENERATED: self.mark, "splits": {}}, indent=1))
            table, classes = self.clean.table, (self.clean.num_classes, self.clean.class_names)
            with ShardWriter(folder, SPLIT, self.shard_size, num_classes=classes[0], class_names=classes[1]) as writer:
                for begin in range(0, len(self.clean), BATCH):
                    numbers = range(begin, min(begin + BATCH, len(self.clean)))
                    for number, image in zip(numbers, self.encoded(cell, numbers), strict=True):
                        members = {self.settings.encoding: image, "cls": b"%d" % table.label[number]}
                        writer.write(table.key(number), members)
                    report(len(numbers))

    def encoded(self, cell: str, numbers: Sequence[int]) -> Iterator[bytes]:
        """Yield the files of some images of a cell."""
        corruption, _, severity = cell.partition("/")
        images = [self._decode(number) for number in numbers]
        # The streams are those of `ImageNetCLikeDataModule`: written or as loaded, pixels are the same before encoding.
        seeds = [stream_seed(self.settings.seed, "corruption", number) for number in numbers]
        # Images of one size go together, which is faster.
        together = len({image.shape for image in images}) == 1
        groups = [slice(0, len(images))] if together else [slice(place, place + 1) for place in range(len(images))]
        for group in groups:
            batch = torch.stack(images[group])
            for image in corrupt(batch, corruption, int(severity), seeds[group], self.frost):
                yield encode(image, self.settings.encoding)

    def _decode(self, number: int) -> Tensor:
        reader, row = self.clean.table.find(number)
        crop = EvaluationCrop(self.settings.resize, self.settings.crop)
        return crop(decode_rgb(reader.image_bytes(row), reader.name(row)))


def encode(image: Tensor, encoding: Literal["jpg", "png"]) -> bytes:
    """Return uint8 ``[3, H, W]`` as a file."""
    file = io.BytesIO()
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    if encoding == "jpg":
        picture.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    else:
        picture.save(file, "PNG")
    return file.getvalue()


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


def _report(count: int) -> None:
    assert _done is not None
    assert _stop is not None
    with _done.get_lock():
        _done.value += count
    if _stop.is_set():
        raise _StoppedError


def _write(writer: CellWriter, cell: str) -> None:
    writer.write(cell, _report)


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
