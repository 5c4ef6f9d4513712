"""Cue-conflict images: the shape of one category with the texture of another (Geirhos et al. 2019)."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from lit_robust.core.errors import UserError
from lit_robust.data.loading.splits import Reading, TableSplit, open_index, table_split
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.data.module import SingleSetDataModule
from lit_robust.data.packing.recognise import cues, read_categories
from lit_robust.data.settings import check_given
from lit_robust.shards import ShardIndex
from lit_robust.shards.address import is_url, shown

NAME = "cue-conflict"


class CueConflictDataModule(SingleSetDataModule):
    """Shards in ``<root>/cue-conflict/``, split ``test``; the test loader is ``cue-conflict``.

    A sample's label is the category of its shape, its texture the category of its texture; both follow from its name.
    Images whose shape or texture is of no category are left out, and the results say so.

    Args:
        root: folder that holds ``cue-conflict/``.
        categories: which classes of the network make up a category: ``shards`` as written beside the shards,
            ``imagenet`` the 16 categories in 1,000 classes, or a JSON file ``{"category": [classes], ...}``.
        evaluation: resize and crop; none by default, as the images are 224 px already.
        eval_batch_size: samples a rank and batch.
        num_workers: processes that read and decode; 0 does both in the main process.
        reading: how shards are read; its ``label`` does not apply.
    """

    def __init__(
        self,
        root: str | Path = "data",
        categories: str = "imagenet",
        evaluation: EvaluationCrop = EvaluationCrop(resize=None, crop=None),
        eval_batch_size: int = 256,
        num_workers: int = 8,
        reading: Reading = Reading(),
    ) -> None:
        check_given(categories=categories)
        super().__init__(root, NAME, evaluation, eval_batch_size, num_workers, reading)
        self.categories_from = categories

    def open_samples(self) -> TableSplit:
        """Read the shard index and every sample's two categories."""
        if is_url(self.root):
            raise UserError(
                f"Cue-conflict images are selected by name, which {shown(self.root)} cannot: copy them to a disk."
            )
        folder = Path(self.root) / self.name
        index = open_index(folder, "test", self.reading)
        self.categories = self._categories(index)
        numbers = {name: number for number, name in enumerate(self.categories)}
        pairs = [cues(index.key(row)) for row in range(len(index))]
        kept = [row for row, pair in enumerate(pairs) if pair[0] in numbers and pair[1] in numbers]
        if not kept:
            mend = "shards" if index.categories else "a JSON file of the categories of these images"
            raise UserError(
                f"No image in {folder} has its shape and texture among the categories "
                f"{', '.join(self.categories)}: set categories to {mend}."
            )
        whole = table_split(index, "test")
        shapes, textures = (np.array([numbers[pairs[row][cue]] for row in kept]) for cue in (0, 1))
        table = replace(whole.table.select(np.array(kept)), label=shapes, texture=textures)
        # The labels are categories now, and the shards' classes no longer theirs.
        protocol = {**whole.protocol, **self._restriction(len(kept), len(index))}
        return replace(whole, table=table, protocol=protocol, num_classes=len(self.categories), class_names=())

    def _categories(self, index: ShardIndex) -> dict[str, tuple[int, ...]]:
        if self.categories_from != "shards":
            return read_categories(self.categories_from)
        if not index.categories:
            raise UserError(f"{index.folder} says nothing of categories: set categories to imagenet or to a file.")
        return {name: tuple(classes) for name, classes in sorted(index.categories.items())}

    def _restriction(self, kept: int, count: int) -> dict[str, str]:
        if kept == count:
            return {}
        return {
            "restricted": f"{kept} of {count} images, whose two categories are among the {len(self.categories)} that "
            "the classifier knows"
        }

    def check_classes(self, num_classes: int) -> None:
        """Raise a UserError unless every category's classes are among the network's."""
        largest = max(max(classes) for classes in self.categories.values())
        if largest >= num_classes:
            raise UserError(
                f"The network has {num_classes} classes, but the categories of {self.root}/{self.name} name class "
                f"{largest}: set data's categories to those of the network."
            )
