"""What benchmarks of Lightning's loops share: batches that are ready, and silence."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lit_robust.batch import Batch


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning from telling of devices, and warning of missing loggers, in every pass."""
    log = logging.getLogger("pytorch_lightning")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


class Repeatable:
    """A loader over batches that are there; of a bare list Lightning would make one loader a batch."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
