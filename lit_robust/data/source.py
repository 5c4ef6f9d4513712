"""Where a batch's encoded images come from: read in any order, or as they stream in."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from lit_robust.data.plan import Request
from lit_robust.data.table import Column, SampleTable


@dataclass(frozen=True)
class Encoded:
    """A batch before it is decoded.

    Attributes:
        data: the files' content; None for a sample that cannot be read and that the settings allow to skip.
        names: what to call each sample in a message.
        label: ``[B]`` class, or -1.
        group: ``[B]``, where the set has groups.
        texture: ``[B]``, for cue-conflict images.
    """

    data: list[bytes | None]
    names: list[str]
    label: Column
    group: Column | None = None
    texture: Column | None = None


class Source(ABC):
    """Gives the encoded images of a batch; used in worker processes, to which it is pickled."""

    @abstractmethod
    def fetch(self, request: Request) -> Encoded:
        """Return the batch that ``request`` asks for.

        Raises:
            DataError: a sample cannot be read.
        """


class TableSource(Source):
    """Reads by place, in any order.

    Args:
        table: the samples.
    """

    def __init__(self, table: SampleTable) -> None:
        self.table = table

    def fetch(self, request: Request) -> Encoded:
        """Return the samples of the request's numbers."""
        numbers = request.numbers
        found = [self.table.find(number) for number in numbers.tolist()]
        return Encoded(
            data=[reader.image_bytes(row) for reader, row in found],
            names=[reader.name(row) for reader, row in found],
            label=self.table.label[numbers],
            group=None if self.table.group is None else self.table.group[numbers],
            texture=None if self.table.texture is None else self.table.texture[numbers],
        )
