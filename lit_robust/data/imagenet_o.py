"""ImageNet-O: images of no ImageNet class, beside the validation images that they are to be told from."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from lit_robust.core.errors import UserError
from lit_robust.data.loading.samples import NO_CLASS, join
from lit_robust.data.loading.splits import Reading, TableSplit, open_index, open_table, table_split
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.data.module import SingleSetDataModule
from lit_robust.data.settings import check_choice, check_given
from lit_robust.reference import imagenet_subset
from lit_robust.shards.address import is_url, shown

NAME = "imagenet-o"
GROUPS = ("in-distribution", "out-of-distribution")


class ImageNetODataModule(SingleSetDataModule):
    """Shards in ``<root>/imagenet-o/``, split ``test``, and ``<root>/imagenet/``, split ``val``; one test loader.

    Of ImageNet it takes the 10,000 validation images of ImageNet-O's 200 classes; the loader is ``imagenet-o``. A
    sample's group is 1 where it is out of distribution, else 0; out of distribution it has no class, label -1. The base
    rate is 2,000 of 12,000 (Hendrycks et al. 2021; hendrycks/natural-adv-examples ``eval_many_models.py``).

    Args:
        root: folder that holds ``imagenet-o/`` and ``imagenet/``.
        classes: ``imagenet-o`` for the 200 classes, ``all`` for every validation image (the toy data).
        evaluation: resize and crop.
        eval_batch_size: samples a rank and batch.
        num_workers: processes that read and decode; 0 does both in the main process.
        name: subfolder of ``root`` with the images out of distribution, and name of the test loader.
        in_distribution: subfolder of ``root`` with the validation images; null leaves them out, for an evaluation that
            takes them from the loader of ``imagenet``, which reads each once.
        reading: how shards are read.
    """

    groups = GROUPS

    def __init__(
        self,
        root: str | Path = "data",
        classes: Literal["imagenet-o", "all"] = "imagenet-o",
        evaluation: EvaluationCrop = EvaluationCrop(),
        eval_batch_size: int = 256,
        num_workers: int = 8,
        name: str = NAME,
        in_distribution: str | None = "imagenet",
        reading: Reading = Reading(),
    ) -> None:
        super().__init__(root, name, evaluation, eval_batch_size, num_workers, reading)
        check_choice("classes", classes, (NAME, "all"))
        if in_distribution is not None:
            check_given(in_distribution=in_distribution)
        self.classes = () if classes == "all" else imagenet_subset(classes)
        self.in_distribution = in_distribution

    def folders(self) -> list[Path]:
        """Return the folders that must be there."""
        names = [self.name] if self.in_distribution is None else [self.name, self.in_distribution]
        return [] if is_url(self.root) else [Path(self.root) / name for name in names]

    def open_samples(self) -> TableSplit:
        """Read the two shard indexes."""
        if is_url(self.root):
            raise UserError(f"ImageNet-O joins two sets, which {shown(self.root)} cannot: copy the shards to a disk.")
        unknown = table_split(open_index(Path(self.root) / self.name, "test", self.reading), "test")
        strangers = unknown.table.relabel(np.full(len(unknown), NO_CLASS))
        if self.in_distribution is None:
            return replace(unknown, num_classes=None, class_names=(), table=join([strangers], groups=[1]))
        known = open_table(Path(self.root) / self.in_distribution, "val", self.reading)
        table = known.table
        if self.classes:
            table = table.select(np.flatnonzero(np.isin(table.label, self.classes)))
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
                "out_of_distribution": {"count": len(strangers), **unknown.protocol},
            },
            table=join([table, strangers], groups=[0, 1]),
        )
