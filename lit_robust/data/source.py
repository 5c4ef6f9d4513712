"""Where a batch's encoded images come from: read in any order, or as they stream in."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from lit_robust.data.plan import Request
from lit_robust.data.table import Column, SampleTable


@dataclass(frozen=True)
class Encoded:
    """A batch before it is read and decoded.

    Attributes:
        read: place in the batch to the file's content; None for a sample that is lost and that the settings allow to
            skip. Samples are read one by one, so that each is decoded while it is in a processor's cache.
        name: place in the batch to what to call the sample in a message.
        label: ``[B]`` class, or -1.
        group: ``[B]``, where the set has groups.
        texture: ``[B]``, for cue-conflict images.
    """

    read: Callable[[int], bytes | None]
    name: Callable[[int], str]
    label: Column
    group: Column | None = None
    texture: Column | None = None


class Source(ABC):
    """Gives the encoded images of a batch; used in worker processes, to which it is pickled."""

    @abstractmethod
    def fetch(self, request: Request) -> Encoded:
        """Return the batch that ``request`` asks for.

        Raises:
            DataError: a sample is not there; here, or when it is read.
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

        def read(place: int) -> bytes:
            reader, row = self.table.find(int(numbers[place]))
            return reader.image_bytes(row)

        def name(place: int) -> str:
            reader, row = self.table.find(int(numbers[place]))
            return reader.name(row)

        return Encoded(
            read=read,
            name=name,
            label=self.table.label[numbers],
            group=None if self.table.group is None else self.table.group[numbers],
            texture=None if self.table.texture is None else self.table.texture[numbers],
        )
