"""Stylized-ImageNet: ImageNet in the styles of paintings (Geirhos et al. 2019)."""

from pathlib import Path

from lit_robust.data.imagenet import ImageNetDataModule
from lit_robust.data.split import Reading
from lit_robust.data.transforms import EvaluationCrop, TrainingCrop


class StylizedImageNetDataModule(ImageNetDataModule):
    """Shards in ``<root>/stylized-imagenet/`` with the splits ``train`` and ``val``; the test loader has that name.

    There is no canonical copy of these images: everybody draws them with rgeirhos/Stylized-ImageNet. So accuracies on
    ``val`` are comparable only on the same shards, whose digest the results hold. To train on these and ImageNet
    together, see `JoinedDataModule`.

    Args:
        root: folder that holds ``stylized-imagenet/``, or its URL.
        training: crop and flip of training images.
        evaluation: resize and crop of validation and test images.
        batch_size: samples a rank and training batch.
        eval_batch_size: samples a rank and evaluation batch.
        num_workers: processes a loader that read and decode; 0 does both in the main process.
        seed: of order and augmentation; null takes that of ``seed_everything``.
        name: subfolder of ``root``, and name of the test loader.
        reading: how shards are read.
    """

    def __init__(
        self,
        root: str | Path = "data",
        training: TrainingCrop = TrainingCrop(),
        evaluation: EvaluationCrop = EvaluationCrop(),
        batch_size: int = 256,
        eval_batch_size: int = 256,
        num_workers: int = 8,
        seed: int | None = None,
        name: str = "stylized-imagenet",
        reading: Reading = Reading(),
    ) -> None:
        super().__init__(root, training, evaluation, batch_size, eval_batch_size, num_workers, seed, name, reading)
