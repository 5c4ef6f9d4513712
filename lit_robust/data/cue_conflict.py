"""Cue-conflict images: the shape of one category with the texture of another (Geirhos et al. 2019)."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lit_robust.core.errors import UserError
from lit_robust.data.loading.splits import TableSplit, open_index, table_split
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.data.module import SingleSetDataModule
from lit_robust.data.packing.recognise import cues, read_categories
from lit_robust.data.settings import check_given
from lit_robust.shards import ShardIndex


@dataclass(eq=False, repr=False)
class CueConflictDataModule(SingleSetDataModule):
    """Shards in ``<root>/cue-conflict/``, split ``test``; the test loader is ``cue-conflict``.

    A sample's label is the category of its shape, its texture the category of its texture; both follow from its name.
    Images whose shape or texture is of no category are left out, and the results say so. ``reading.label`` does not
    apply.

    Attributes:
        categories: which classes of the network make up a category: ``shards`` as written next to the shards,
            ``imagenet`` the 16 categories in 1,000 classes, or a JSON file ``{"category": [classes], ...}``.
        evaluation: resize and crop; none by default, as the images are 224 px already.
    """

    categories: str = "imagenet"
    evaluation: EvaluationCrop = EvaluationCrop(resize=None, crop=None)
    name: str = field(default="cue-conflict", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_given("categories", self.categories)
        self.crop = self.evaluation

    def open_samples(self) -> TableSplit:
        """Read the shard index and every sample's two categories."""
        self.check_on_disk("Cue-conflict images are selected by name")
        folder = Path(self.root) / self.name
        index = open_index(folder, "test", self.reading)
        self.category_classes = self._categories(index)
        numbers = {name: number for number, name in enumerate(self.category_classes)}
        pairs = [cues(index.key(row)) for row in range(len(index))]
        kept = [row for row, pair in enumerate(pairs) if pair[0] in numbers and pair[1] in numbers]
        if not kept:
            cure = "shards" if index.categories else "a JSON file of the categories of these images"
            raise UserError(
                f"No image in {folder} has its shape and texture among the categories "
                f"{', '.join(self.category_classes)}: set categories to {cure}."
            )
        whole = table_split(index, "test")
        shapes, textures = (np.array([numbers[pairs[row][cue]] for row in kept]) for cue in (0, 1))
        table = replace(whole.table.select(np.array(kept)), label=shapes, texture=textures)
        # The labels are categories now, and the shards' classes no longer theirs.
        protocol = {**whole.protocol, **self._restriction(len(kept), len(index))}
        return replace(whole, table=table, protocol=protocol, num_classes=len(self.category_classes), class_names=())

    def _categories(self, index: ShardIndex) -> dict[str, tuple[int, ...]]:
        if self.categories != "shards":
            return read_categories(self.categories)
        if not index.categories:
            raise UserError(f"{index.folder} says nothing of categories: set categories to imagenet or to a file.")
        return {name: tuple(classes) for name, classes in sorted(index.categories.items())}

    def _restriction(self, kept: int, count: int) -> dict[str, str]:
        if kept == count:
            return {}
        return {
            "restricted": f"{kept} of {count} images, whose two categories are among the "
            f"{len(self.category_classes)} that the classifier knows"
        }

    def check_classes(self, num_classes: int) -> None:
        """Raise a UserError unless every category's classes are among the network's."""
        largest = max(max(classes) for classes in self.category_classes.values())
        if largest >= num_classes:
            raise UserError(
                f"The network has {num_classes} classes, but the categories of {self.root}/{self.name} name class "
                f"{largest}: set data's categories to those of the network."
            )
