"""The image sets that people decided on in the laboratory, condition by condition (Geirhos et al. 2021)."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lit_robust.core.errors import DataError, UserError
from lit_robust.data.loading.splits import TableSplit, open_index, table_split
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.data.module import SingleSetDataModule
from lit_robust.data.packing.recognise import condition_and_category, read_categories
from lit_robust.data.settings import check_given
from lit_robust.reference import human_conditions


@dataclass(eq=False, repr=False)
class HumanStimuliDataModule(SingleSetDataModule):
    """Shards in ``<root>/<name>/``, split ``test``: a set of bethgelab/model-vs-human; the test loader has that name.

    A sample's label is its category, and its group the condition it was shown in, such as a contrast; both follow from
    its name, ``0001_cl_dnn_cr_oven_40_n04111531_14126``, or, where a set has one condition, from its folder.
    `lit-robust data shard SET data/SET --split test` packs a folder of them. Any set of that form is read.

    Attributes:
        categories: which classes of the network make up a category: ``imagenet`` the 16 categories in 1,000 classes, or
            a JSON file ``{"category": [classes], ...}``.
        evaluation: resize and crop; none by default, as the images are 224 px already.
    """

    categories: str = "imagenet"
    evaluation: EvaluationCrop = EvaluationCrop(resize=None, crop=None)
    name: str = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_given("categories", self.categories)
        self.crop = self.evaluation
        self.category_classes = read_categories(self.categories)

    def open_samples(self) -> TableSplit:
        """Read the shard index, and every sample's condition and category.

        Raises:
            DataError: a name says no category, or none that is known.
        """
        self.check_on_disk("Conditions follow from the samples' names")
        whole = table_split(open_index(Path(self.root) / self.name, "test", self.reading), "test")
        numbers = {name: number for number, name in enumerate(self.category_classes)}
        found = [condition_and_category(whole.table.key(row)) for row in range(len(whole))]
        strange = next((row for row, (_, category) in enumerate(found) if category not in numbers), None)
        if strange is not None:
            raise DataError(
                f"{whole.where} has {whole.table.key(strange)}, of the category {found[strange][1]!r}, which is not "
                f"one of {', '.join(numbers)}: set categories to a JSON file of these images' categories."
            )
        shown = {condition for condition, _ in found}
        known = [condition for condition in human_conditions(self.name) if condition in shown]
        self.groups = [*known, *sorted(shown - set(known))]
        places = {condition: place for place, condition in enumerate(self.groups)}
        table = replace(
            whole.table,
            label=np.array([numbers[category] for _, category in found], dtype=np.int64),
            group=np.array([places[condition] for condition, _ in found], dtype=np.int64),
        )
        return replace(whole, table=table, num_classes=len(numbers), class_names=tuple(numbers))

    def check_classes(self, num_classes: int) -> None:
        """Raise a UserError unless every category's classes are among the network's."""
        largest = max(max(classes) for classes in self.category_classes.values())
        if largest >= num_classes:
            raise UserError(
                f"The network has {num_classes} classes, but the categories of {self.root}/{self.name} name class "
                f"{largest}: set data's categories to those of the network."
            )
