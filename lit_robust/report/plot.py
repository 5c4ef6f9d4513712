"""What every plot of the page has."""

from collections.abc import Mapping
from dataclasses import dataclass

WIDTH = 480.0
PARTIAL_MEANS = "measured on a part of the test set only."
HOLLOW = f" What is drawn hollow is partial: {PARTIAL_MEANS}"


@dataclass(frozen=True)
class Plot:
    """A plot with what must be said of it.

    Attributes:
        title: what it shows.
        caption: how it was measured and how to read it.
        svg: the plot, an ``svg`` element.
        labels: label of each run in it, to what a legend adds after the name.
    """

    title: str
    caption: str
    svg: str
    labels: Mapping[str, str]
