"""Cue-conflict images: the shape of one category with the texture of another (Geirhos et al. 2019)."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lit_robust.batch import EvaluationSet
from lit_robust.data.imagenet import shard_protocol
from lit_robust.data.loader import EvaluationSamples, PlannedLoader
from lit_robust.data.module import ShardDataModule
from lit_robust.data.transforms import EvaluationCrop
from lit_robust.errors import DataError, UserError
from lit_robust.reference import imagenet_categories
from lit_robust.shards import IndexedReader, ShardIndex

NAME = "cue-conflict"
# <shape><number>-<texture><number>, as in rgeirhos/texture-vs-shape; its decision files put a prefix before a "_".
KEY = re.compile(r"([a-z]+)\d+-([a-z]+)\d+$")


def cues(key: str) -> tuple[str, str]:
    """Return the names of shape and texture that a sample's key or a published file name holds.

    Example:
        >>> cues("cue-conflict/airplane/airplane7-bear2")
        ('airplane', 'bear')

    Raises:
        DataError: the key is of another form.
    """
    match = KEY.search(key.rsplit("/", 1)[-1].rsplit("_", 1)[-1])
    if match is None:
        raise DataError(f"The cue-conflict image {key!r} is not named <shape><number>-<texture><number>: rename it.")
    return match[1], match[2]


def read_categories(source: str) -> dict[str, tuple[int, ...]]:
    """Return category name to class numbers, in alphabetical order, which is the order of a category's number.

    Args:
        source: ``imagenet`` for the 16 published categories, or a JSON file ``{"category": [classes], ...}``.

    Raises:
        UserError: the file is missing or of another form.
    """
    if source == "imagenet":
        return imagenet_categories()
    try:
        content = json.loads(Path(source).read_text(encoding="utf-8"))
        categories = {str(name): tuple(int(number) for number in classes) for name, classes in sorted(content.items())}
        numbers = [number for classes in categories.values() for number in classes]
        if not all(categories.values()) or not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
            raise ValueError("every category needs classes of its own, numbered from 0")
        return categories
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f'The categories file {source} cannot be read ({error}): it must be JSON, {{"category": [classes]}}.'
        ) from error


class CueConflictDataModule(ShardDataModule):
    """Shards in ``<root>/cue-conflict/``, split ``test``; the test loader is ``cue-conflict``.

    A sample's label is the category of its shape, its texture the category of its texture. Images whose shape or
    texture is of no category are left out, and the results say so.

    Args:
        root: folder that holds ``cue-conflict/``.
        categories: which classes of the network make up a category: ``shards`` as written beside the shards,
            ``imagenet`` the 16 categories in 1,000 classes, or a JSON file ``{"category": [classes], ...}``.
        evaluation: resize and crop; none by default, as the images are 224 px already.
        eval_batch_size: samples a rank and batch.
        num_workers: processes that read and decode; 0 does both in the main process.
    """

    def __init__(
        self,
        root: Path = Path("data"),
        categories: str = "imagenet",
        evaluation: EvaluationCrop = EvaluationCrop(resize=None, crop=None),
        eval_batch_size: int = 256,
        num_workers: int = 8,
    ) -> None:
        super().__init__(root, NAME, eval_batch_size, eval_batch_size, num_workers, seed=0)
        self.categories_from = categories
        self.evaluation = evaluation
        self._index: ShardIndex | None = None

    def setup(self, stage: str) -> None:
        """Read the shard index and every sample's two categories."""
        if self._index is not None:
            return
        self._index = index = ShardIndex.open(self.folder, "test")
        self.categories = self._categories(index)
        numbers = {name: number for number, name in enumerate(self.categories)}
        pairs = [cues(index.key(row)) for row in range(len(index))]
        kept = [row for row, pair in enumerate(pairs) if pair[0] in numbers and pair[1] in numbers]
        if not kept:
            raise UserError(
                f"No image in {self.folder} has its shape and texture among the categories "
                f"{', '.join(self.categories)}: choose the categories that fit these images."
            )
        self.rows = np.array(kept)
        self.shapes = np.array([numbers[pairs[row][0]] for row in kept])
        self.textures = np.array([numbers[pairs[row][1]] for row in kept])

    def _categories(self, index: ShardIndex) -> dict[str, tuple[int, ...]]:
        if self.categories_from != "shards":
            return read_categories(self.categories_from)
        if not index.categories:
            raise UserError(f"{self.folder} says nothing of categories: set categories to imagenet or to a file.")
        return {name: tuple(classes) for name, classes in sorted(index.categories.items())}

    def test_dataloader(self) -> dict[str, PlannedLoader]:
        """Return the one test loader."""
        assert self._index is not None
        reader = IndexedReader(self._index)
        samples = EvaluationSamples(reader, self.rows, self.shapes, self.evaluation, self.textures)
        return {NAME: self.evaluation_loader(samples)}

    @property
    def evaluation_sets(self) -> Mapping[str, EvaluationSet]:
        """The one test set, with the categories it is restricted to."""
        assert self._index is not None
        protocol = {"split": "test", **shard_protocol(self._index, self.evaluation)}
        if len(self.rows) < len(self._index):
            protocol["restricted"] = (
                f"{len(self.rows)} of {len(self._index)} images, whose two categories are among the "
                f"{len(self.categories)} that the classifier knows"
            )
        return {NAME: EvaluationSet(NAME, len(self.rows), protocol, self.categories)}

    def check_classes(self, num_classes: int) -> None:
        """Raise a UserError unless every category's classes are among the network's."""
        largest = max(max(classes) for classes in self.categories.values())
        if largest >= num_classes:
            raise UserError(
                f"The network has {num_classes} classes, but the categories of {self.folder} name class {largest}: "
                "set data's categories to those of the network."
            )
