"""A derived set: shards of a split to shards of what a stimulus makes of its images.

The unit of work is a shard. It is written whole or not at all, by any process, from the same images in the same
batches: so the bytes are the same for any number of workers, and after a kill.
"""

import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lit_robust.core.errors import DataError, UserError, check_choice, check_count
from lit_robust.core.files import atomic_path, file_sha256, write_text
from lit_robust.data.loading.splits import TableSplit
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.shards import decode_rgb
from lit_robust.shards.info import GENERATED, read_info
from lit_robust.shards.scan import scan_shard
from lit_robust.shards.write import (
    end_bytes,
    remove_leftovers,
    sample_bytes,
    shard_name,
    shard_stem,
    unfinished_mark,
    write_entry,
)
from lit_robust.stimuli.stimulus import Origin, Stimulus, ranks

NOT_MADE = "not_made"
BATCH = 16
Part = tuple[int, int]
"""Which of how many parts of a set's tars: ``(0, 2)`` holds the first, the third, and so on."""
WHOLE: Part = (0, 1)
SAMPLED = 3  # Images by which a set's size is estimated.
Encoding = Literal["jpg", "png"]
ENCODINGS: tuple[Encoding, ...] = ("jpg", "png")


@dataclass(frozen=True, kw_only=True)
class Derivation:
    """One set that a stimulus makes of a split.

    Attributes:
        source: the images.
        folder: of the set.
        split: name of its split.
        stimulus: what is made of each image.
        crop: before the stimulus.
        encoding: ``png``, without loss, or ``jpg``.
        quality: of JPEGs, 1 to 95.
        shard_size: source images a shard.
        by: the command, for the record.
        what: the images, in messages.
    """

    source: TableSplit
    folder: Path
    split: str
    stimulus: Stimulus
    crop: EvaluationCrop
    encoding: Encoding = "png"
    quality: int = 85
    shard_size: int = 1000
    by: str = "lit-robust data derive"
    what: str = "the derived images"

    def __post_init__(self) -> None:
        check_choice("encoding", self.encoding, ENCODINGS)
        check_count("shard_size", self.shard_size, 1)
        if not 1 <= self.quality <= 95:
            raise UserError(f"quality is {self.quality}: give 1 to 95.")

    @cached_property
    def mark(self) -> dict[str, Any]:
        """What distinguishes the set from those of other images or settings; it stands in the set's info file."""
        coded = {"jpeg_quality": self.quality} if self.encoding == "jpg" else {}
        return {
            "by": self.by,
            **self.stimulus.described,
            "source_sha256": self.source.protocol["shards_sha256"],
            **self.crop.protocol(),
            "encoding": self.encoding,
            **coded,
            "shard_size": self.shard_size,
        }

    @cached_property
    def stem(self) -> str:
        """How the names of its tars begin."""
        return shard_stem(self.folder, self.split)

    @cached_property
    def numbers(self) -> Sequence[int]:
        """The numbers of the source images of which something may be made."""
        table = self.source.table
        if type(self.stimulus).fits is Stimulus.fits:
            return range(len(table))
        return [n for n in range(len(table)) if self.stimulus.fits(table.key(n), int(table.label[n]))]

    @property
    def shards(self) -> int:
        """How many tars it has at most; one of which nothing could be made is not there."""
        return -(-len(self.numbers) // self.shard_size)

    def path(self, place: int) -> Path:
        """Return where a tar stands."""
        return self.folder / shard_name(self.stem, place)

    def chosen(self, place: int) -> Sequence[int]:
        """Return the numbers of the source images of a tar."""
        return self.numbers[place * self.shard_size : (place + 1) * self.shard_size]

    def missing(self) -> list[int]:
        """Return the places of the tars that are yet to write; none where the set is finished.

        Raises:
            UserError: the folder has the split from other images or settings, or no image fits.
        """
        if not self.numbers:
            raise UserError(
                f"None of the {len(self.source)} images of {self.source.where} fit: they {self.stimulus.lack}."
            )
        info = read_info(self.folder)[1]
        entry = info.get("splits", {}).get(self.split)
        mark = unfinished_mark(self.folder, self.stem)
        there = [file for file in self.folder.glob("*.tar") if file.name.startswith(f"{self.stem}-")]
        if entry is not None:
            begun = {name: value for name, value in entry.get(GENERATED, {}).items() if name != NOT_MADE}
        elif mark.exists():
            try:
                begun = json.loads(mark.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise DataError(f"{mark} cannot be read ({error}): remove it and {self.stem}-*.tar.") from error
        else:
            begun = self.mark if not there and not self._foreign_tars(info) else {}
        if begun != json.loads(json.dumps(self.mark)):
            raise UserError(f"{self.folder} is of other images or settings: choose another output, or remove it.")
        wanted = None if entry is None else set(entry["filenames"])
        places = range(self.shards)
        return [
            place
            for place in places
            if not self.path(place).is_file() and (wanted is None or self.path(place).name in wanted)
        ]

    def _foreign_tars(self, info: dict[str, Any]) -> bool:
        """Return whether tars lie in the folder that are of no split of its info file."""
        named = {name for entry in info.get("splits", {}).values() for name in entry.get("filenames", ())}
        return any(file.name not in named for file in self.folder.glob("*.tar"))

    @property
    def is_finished(self) -> bool:
        """Whether all tars are there, and its info file says so; raises as `missing`."""
        begun = unfinished_mark(self.folder, self.stem).exists()
        return not self.missing() and not begun and self.split in read_info(self.folder)[1].get("splits", {})

    def begin(self, part: Part = WHOLE) -> None:
        """Put the mark next to the tars before there are any, so that nobody takes them for others.

        Args:
            part: whose tars are written, and whose half-written files are removed.
        """
        number, parts = part
        own = "|".join(re.escape(self.path(place).name) for place in range(number, self.shards, parts))
        remove_leftovers(self.folder, rf"{own}|_info\.json")
        write_text(unfinished_mark(self.folder, self.stem), json.dumps(self.mark) + "\n")

    def write(self, place: int, report: Callable[[int], object]) -> None:
        """Write a tar; none where nothing could be made of its images.

        Args:
            place: of the tar.
            report: is given the number of images after each few; what it raises ends the writing.

        Raises:
            UserError: the disk is full, or the stimulus cannot be made.
            DataError: an image cannot be read.
        """
        numbers = self.chosen(place)
        try:
            with atomic_path(self.path(place)) as temporary, temporary.open("wb") as file:
                for begin in range(0, len(numbers), BATCH):
                    batch = numbers[begin : begin + BATCH]
                    for number, image in zip(batch, self.encoded(batch), strict=True):
                        if image is not None:
                            members = {self.encoding: image, "cls": b"%d" % self.source.table.label[number]}
                            file.write(sample_bytes(self.source.table.key(number), members))
                    report(len(batch))
                if not file.tell():
                    raise _NothingMadeError
                file.write(end_bytes(file.tell()))
        except _NothingMadeError:
            pass

    def encoded(self, numbers: Sequence[int]) -> Iterator[bytes | None]:
        """Yield the files of some images; None for one that could not be made."""
        images = [self._decode(number) for number in numbers]
        origins = [self.origin(number) for number in numbers]
        # Images of one size go together, which is faster.
        together = len({image.shape for image in images}) == 1
        groups = [slice(0, len(images))] if together else [slice(place, place + 1) for place in range(len(images))]
        for group in groups:
            for image in self.stimulus.make(torch.stack(images[group]), origins[group]):
                yield None if image is None else encode(image, self.encoding, self.quality)

    def origin(self, number: int) -> Origin:
        """Return what is known of a source image besides its pixels."""
        table, rank = self.source.table, int(self.ranks[number]) if self.stimulus.ranked else 0
        return Origin(table.key(number), number, int(table.label[number]), rank, self.crop)

    @cached_property
    def ranks(self) -> NDArray[np.int64]:
        """The place of each source image in the order of folders and names."""
        return ranks([self.source.table.key(number) for number in range(len(self.source))])

    def _decode(self, number: int) -> Tensor:
        reader, row = self.source.table.find(number)
        return self.crop(decode_rgb(reader.image_bytes(row), reader.name(row)))

    def note(self, part: Part) -> bool:
        """Note that a part is done, and return whether all parts are.

        Args:
            part: whose tars are there, but for those of which nothing could be made.
        """
        number, parts = part
        empty = [place for place in range(number, self.shards, parts) if not self.path(place).is_file()]
        notes = [self.folder / f".{self.stem}-{each}-of-{parts}.done" for each in range(parts)]
        write_text(notes[number], json.dumps(empty) + "\n")
        if not all(note.is_file() for note in notes):
            return False
        known = [place for note in notes for place in json.loads(note.read_text(encoding="utf-8"))]
        return set(self.missing()) <= set(known)

    def finish(self) -> int:
        """Write the info file's entry once all tars are there, and return how many images could not be made.

        Raises:
            UserError: of no image anything could be made.
        """
        made: set[str] = set()
        names, lengths = [], []
        for place in range(self.shards):
            if self.path(place).is_file():
                keys = scan_shard(self.path(place)).keys
                made.update(key.decode("utf-8", "surrogateescape") for key in keys)
                names.append(self.path(place).name)
                lengths.append(len(keys))
        mark, listed = unfinished_mark(self.folder, self.stem), self.folder / f"{self.stem}-not-made.txt"
        if not names:
            mark.unlink(missing_ok=True)
            raise UserError(
                f"None of the {len(self.source)} images of {self.source.where} was made: they {self.stimulus.lack}."
            )
        lost = [key for key in map(self.source.table.key, range(len(self.source))) if key not in made]
        if lost:
            write_text(listed, "".join(f"{key}\n" for key in lost))
        extras: dict[str, Any] = {}
        if self.source.num_classes is not None:
            extras["num_classes"] = self.source.num_classes
        if self.source.class_names:
            extras["class_names"] = list(self.source.class_names)
        extras[GENERATED] = {**self.mark, NOT_MADE: len(lost)}
        digests = [file_sha256(self.folder / name) for name in names]
        write_entry(self.folder, self.split, names, lengths, digests, extras)
        for note in self.folder.glob(f".{self.stem}-*-of-*.done"):
            note.unlink()
        mark.unlink(missing_ok=True)
        return len(lost)

    def estimated_size(self) -> int:
        """Return about how many bytes its tars will have, from a few of its images."""
        places = np.linspace(0, len(self.numbers) - 1, min(SAMPLED, len(self.numbers))).astype(int)
        chosen = [self.numbers[place] for place in sorted(set(places.tolist()))]
        files = [file for file in self.encoded(chosen) if file is not None]
        samples = [sample_bytes("key", {self.encoding: file, "cls": b"0"}) for file in files]
        return sum(map(len, samples)) * len(self.numbers) // max(len(samples), 1)


class _NothingMadeError(Exception):
    """Nothing could be made of any image of a tar."""


def encode(image: Tensor, encoding: Encoding, quality: int = 85) -> bytes:
    """Return uint8 ``[3, H, W]`` as a file.

    Args:
        image: on any device.
        encoding: ``png``, without loss, or ``jpg``.
        quality: of a JPEG.
    """
    file = io.BytesIO()
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    if encoding == "jpg":
        picture.save(file, "JPEG", quality=quality, optimize=True)
    else:
        picture.save(file, "PNG")
    return file.getvalue()
