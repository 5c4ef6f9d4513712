"""ImageNet-A and ImageNet-O: images that networks get wrong, or of no class of theirs (Hendrycks et al. 2021)."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from lit_robust.core.errors import UserError, check_choice
from lit_robust.data.loading.samples import NO_CLASS, join
from lit_robust.data.loading.splits import TableSplit, open_index, open_table, table_split
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.data.module import SingleSetDataModule
from lit_robust.data.settings import check_name
from lit_robust.data.shift import ShiftDataModule
from lit_robust.reference import imagenet_subset


@dataclass(eq=False, repr=False)
class ImageNetADataModule(ShiftDataModule):
    """Shards in ``<root>/imagenet-a/``, split ``test``; the test loader is ``imagenet-a``.

    Labels are ImageNet's class numbers. A decision is taken among the 200 classes, as in
    hendrycks/natural-adv-examples ``eval_many_models.py``; the test set names them.

    Attributes:
        classes: ``imagenet-a`` for its 200 classes, ``all`` for those of the network (the toy data).
    """

    classes: Literal["imagenet-a", "all"] = "imagenet-a"
    name: str = field(default="imagenet-a", kw_only=True)

    def __post_init__(self) -> None:
        check_choice("classes", self.classes, ("imagenet-a", "all"))
        super().__post_init__()


GROUPS = ("in-distribution", "out-of-distribution")


@dataclass(eq=False, repr=False)
class ImageNetODataModule(SingleSetDataModule):
    """Shards in ``<root>/imagenet-o/``, split ``test``, and ``<root>/imagenet/``, split ``val``; one test loader.

    Of ImageNet it takes the 10,000 validation images of ImageNet-O's 200 classes; the loader is ``imagenet-o``. A
    sample's group is 1 where it is out of distribution, else 0; out of distribution it has no class, label -1. The base
    rate is 2,000 of 12,000 (Hendrycks et al. 2021; hendrycks/natural-adv-examples ``eval_many_models.py``).

    Attributes:
        classes: ``imagenet-o`` for the 200 classes, ``all`` for every validation image (the toy data).
        evaluation: resize and crop.
        in_distribution: subfolder of ``root`` with the validation images; null leaves them out, for an evaluation that
            takes them from the loader of ``imagenet``, which reads each once.
    """

    classes: Literal["imagenet-o", "all"] = "imagenet-o"
    evaluation: EvaluationCrop = EvaluationCrop()
    _: KW_ONLY
    in_distribution: str | None = "imagenet"
    name: str = "imagenet-o"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("classes", self.classes, ("imagenet-o", "all"))
        if self.in_distribution is not None:
            check_name("in_distribution", self.in_distribution)
        self.crop, self.groups = self.evaluation, GROUPS
        self.decided_among = () if self.classes == "all" else imagenet_subset(self.classes)

    @property
    def subfolders(self) -> Sequence[str]:
        """The subfolders of ``root`` that are read."""
        return (self.name,) if self.in_distribution is None else (self.name, self.in_distribution)

    def open_samples(self) -> TableSplit:
        """Read the two shard indexes."""
        self.check_on_disk("ImageNet-O joins two sets")
        unknown = table_split(open_index(Path(self.root) / self.name, "test", self.reading), "test")
        outside = unknown.table.relabel(np.full(len(unknown), NO_CLASS))
        if self.in_distribution is None:
            return replace(unknown, num_classes=None, class_names=(), table=join([outside], groups=[1]))
        known = open_table(Path(self.root) / self.in_distribution, "val", self.reading)
        table = known.table
        if self.decided_among:
            table = table.select(np.flatnonzero(np.isin(table.label, self.decided_among)))
        if not len(table):
            raise UserError(
                f"{known.where} holds no image of ImageNet-O's 200 classes: name ImageNet's shards, or set classes to "
                "all for another set."
            )
        # Said of the whole, too: it is what marks a value.
        gapped = [part for part in (unknown, known) if "skipped" in part.protocol]
        gaps = [f"of {part.where} {part.protocol['skipped']}" for part in gapped]
        return replace(
            known,
            where=f"{unknown.where} with {known.where}",
            protocol={
                **({"skipped": "; ".join(gaps)} if gaps else {}),
                "in_distribution": {"count": len(table), **known.protocol},
                "out_of_distribution": {"count": len(outside), **unknown.protocol},
            },
            table=join([table, outside], groups=[0, 1]),
        )
