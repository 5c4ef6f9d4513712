"""Natural shifts of ImageNet: other pictures of all or some of its classes, read and decided by their protocol."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np

from lit_robust.core.errors import DataError, UserError
from lit_robust.data.loading.splits import Split, TableSplit
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.data.module import SingleSetDataModule
from lit_robust.data.packing.recognise import read_categories
from lit_robust.data.settings import check_given
from lit_robust.reference import imagenet_subset, imagenet_wnids, objectnet_classes

LISTED = "listed"
CLASS_LIST = re.compile(r"\d{1,3}(-\d{1,3})*", re.ASCII)


@dataclass(eq=False, repr=False)
class ShiftDataModule(SingleSetDataModule):
    """Shards in ``<root>/<name>/``, labelled with ImageNet's class numbers; the test loader has that name.

    ImageNet-R is ``name: imagenet-r, classes: imagenet-r``; ImageNet-Sketch and the three of ImageNet-V2 have all
    classes. Folders of WordNet ids become such shards by ``lit-robust data shard --labels imagenet``. A decision is
    taken among the set's classes, where it has some of ImageNet's: the others' logits are left out before the softmax
    (hendrycks/imagenet-r ``eval.py``, modestyachts/imagenet-testbed ``class_sublist``).

    Where a folder of images shows several of ImageNet's classes, as in ObjectNet, ``classes`` says which; images in
    other folders are left out, and `MergedClassAccuracy` takes the highest logit of a folder's classes as the folder's.
    ObjectNet's images have a border of 1 px, of which imagenet-testbed cuts 2: ``evaluation: {border: 2}``.

    Where each image has right classes of its own, as in ImageNet-Hard, ``classes: listed`` reads them off its folder,
    ``281-282``. All of ImageNet's classes are answers, and `ListedClassAccuracy` takes any of the listed for right.

    Attributes:
        classes: ``all`` of the network's; the 200 of ``imagenet-a`` or ``imagenet-r``; ImageNet's class numbers;
            ``objectnet``; a JSON file ``{"folder": [class numbers], ...}``; or ``listed`` by the folders' names.
        evaluation: border, resize and crop.
        split: of the shards.
    """

    classes: str | Sequence[int] = "all"
    evaluation: EvaluationCrop = EvaluationCrop()
    _: KW_ONLY
    name: str
    split: str = "test"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_given("split", self.split)
        self.crop, self.split_name = self.evaluation, self.split
        self.category_classes = folder_classes(self.classes)
        self.decided_among = () if self.category_classes or self.classes == LISTED else class_numbers(self.classes)

    def open_samples(self) -> Split:
        """Read the shard index.

        Raises:
            DataError: a label is not one of the classes, or no image lies in one of the folders.
        """
        split = self.open(self.split)
        if self.classes == LISTED:
            self.category_classes = listed_classes(split)
            split = label_by_folder(split, list(self.category_classes), self.name)
            return replace(split, protocol={**split.protocol, "right": LISTED})
        if self.category_classes:
            return label_by_folder(split, list(self.category_classes), self.name)
        if self.decided_among:
            if not isinstance(split, TableSplit):
                raise UserError(f"The labels of {split.where} cannot be checked in advance: copy the shards to a disk.")
            check_labels(split, self.decided_among, self.name)
        return split

    def check_classes(self, num_classes: int) -> None:
        """Raise a UserError unless the network has the set's classes."""
        if not self.category_classes:
            return super().check_classes(num_classes)
        largest = max(max(members) for members in self.category_classes.values())
        if largest >= num_classes:
            raise UserError(
                f"The network has {num_classes} classes, but the folders of {self.name} name class {largest}: give a "
                "network of ImageNet's 1,000, or classes another file."
            )


def listed_classes(split: Split) -> dict[str, tuple[int, ...]]:
    """Return the right classes that each folder's name lists, by its name, in alphabetical order.

    Raises:
        UserError: the set is behind a URL.
        DataError: an image lies in a folder of another name.
    """
    if not isinstance(split, TableSplit):
        raise UserError(f"The folders of {split.where} are not known in advance: copy the shards to a disk.")
    found: dict[str, tuple[int, ...]] = {}
    for row in range(len(split)):
        key = split.table.key(row)
        folder = (key.split("/")[-2:-1] or [""])[0]
        if folder not in found:
            numbers = [int(word) for word in folder.split("-")] if CLASS_LIST.fullmatch(folder) else []
            if not numbers or len(set(numbers)) < len(numbers) or max(numbers) >= len(imagenet_wnids()):
                raise DataError(
                    f"{split.where} has {key}, whose folder lists no right classes: name the folder by ImageNet's "
                    "class numbers, as 281-282."
                )
            found[folder] = tuple(numbers)
    return dict(sorted(found.items()))


def folder_classes(classes: str | Sequence[int]) -> Mapping[str, tuple[int, ...]]:
    """Return each folder's classes, for ``objectnet`` or a JSON file; nothing for classes of another form.

    Raises:
        UserError: the file cannot be read.
    """
    if classes == "objectnet":
        return objectnet_classes()
    return read_categories(classes) if isinstance(classes, str) and classes.endswith(".json") else {}


def label_by_folder(split: Split, folders: Sequence[str], name: str) -> TableSplit:
    """Return the images that lie in some folders, labelled with their folders' places.

    Raises:
        UserError: the set is behind a URL.
        DataError: none lies in one of them.
    """
    if not isinstance(split, TableSplit):
        raise UserError(f"The folders of {split.where} are not known in advance: copy the shards to a disk.")
    places = {folder: place for place, folder in enumerate(folders)}
    found = [places.get((split.table.key(row).split("/")[-2:-1] or [""])[0], -1) for row in range(len(split))]
    labels = np.array(found, dtype=np.int64)
    kept = np.flatnonzero(labels >= 0)
    if not len(kept):
        raise DataError(
            f"No image of {split.where} lies in one of {name}'s {len(folders)} folders, such as {folders[0]}: pack the "
            "folders as they were published, by `lit-robust data shard --labels sorted`."
        )
    table = split.table.select(kept).relabel(labels[kept])
    outside = len(split) - len(kept)
    left_out = {"outside_the_classes": outside} if outside else {}
    protocol = {**split.protocol, "number_of_categories": len(folders), **left_out}
    return replace(split, table=table, protocol=protocol, num_classes=None, class_names=tuple(folders))


def class_numbers(classes: str | Sequence[int]) -> tuple[int, ...]:
    """Return ImageNet's class numbers, ascending: of a name, or as they are given; none for ``all``.

    Raises:
        UserError: there is no such name or class, or one is given twice.
    """
    if classes == "all":
        return ()
    if isinstance(classes, str):
        return imagenet_subset(classes)
    numbers = tuple(sorted(classes))
    count = len(imagenet_wnids())
    if len(set(numbers)) < len(numbers) or not numbers or not 0 <= numbers[0] <= numbers[-1] < count:
        raise UserError(f"classes holds {len(numbers)} numbers: give each of some from 0 to {count - 1} once.")
    return numbers


def check_labels(split: TableSplit, classes: Sequence[int], name: str) -> None:
    """Raise a DataError where a label is not one of ``classes``, as in shards numbered 0 to 199."""
    outside = np.flatnonzero(~np.isin(split.table.label, classes))
    if len(outside):
        number = int(outside[0])
        raise DataError(
            f"{split.where} has {split.table.key(number)} in class {int(split.table.label[number])}, not one of "
            f"{name}'s {len(classes)}: pack the shards with `--labels imagenet`, so that labels are ImageNet's class "
            "numbers, or set classes to all for another set."
        )
