"""How every plot of the page is drawn: its manner, and matplotlib figures as SVG text that can stand inside a page."""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

WIDTH = 480.0
PARTIAL_MEANS = "measured on a part of the test set only."
HOLLOW = f" What is drawn hollow is partial: {PARTIAL_MEANS}"


@dataclass(frozen=True)
class Plot:
    """A plot with what must be said of it.

    Attributes:
        dataset: title of its test set.
        title: what it shows.
        caption: how it was measured and how to read it.
        svg: the plot, an ``svg`` element.
        labels: label of each run in it, to what a legend adds after the name.
    """

    dataset: str
    title: str
    caption: str
    svg: str
    labels: Mapping[str, str]


# matplotlib cannot write CSS variables: these colours, which nothing else uses, are put in their places afterwards.
INK, RULE, PAPER = "#010203", "#040506", "#070809"
_IN_CSS = {INK: "currentColor", RULE: "var(--rule, #d9dce1)", PAPER: "var(--paper, #ffffff)"}

# Of Okabe and Ito's colours for all kinds of colour vision (2008), those that show on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# Seven marks and six colours have no common factor: 42 runs before a pair comes again.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LineStyle = Literal["-", "--", ":"]
LINES: tuple[LineStyle, ...] = ("-", "--", ":")


def run_style(number: int) -> tuple[str, str, LineStyle]:
    """Return colour, marker and line style of the run with this number, from 0; the same in all plots of a page."""
    line = LINES[number // len(COLOURS) % len(LINES)]
    return COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)], line


def plot_settings() -> AbstractContextManager[None]:
    """Return a context in which matplotlib draws in the report's manner; nothing of it stays behind."""
    import matplotlib

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "lit_robust",
        "text.parse_math": False,  # a dollar sign in a name does not begin a formula
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 12,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": RULE,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "xtick.color": RULE,
        "ytick.color": RULE,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "grid.color": RULE,
        "grid.linewidth": 0.8,
        "lines.linewidth": 2.0,
        "lines.markersize": 7.5,
    }
    return matplotlib.rc_context(settings)


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of ``width`` x ``height`` CSS pixels, to be drawn on inside ``plot_settings``."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), layout="constrained")


def to_svg(figure: "Figure", name: str, title: str, description: str) -> str:
    """Return a figure as an ``svg`` element with readable text, to be called inside ``plot_settings``.

    Args:
        figure: what to write.
        name: put before all ids, which several plots on one page would otherwise share.
        title: for people who cannot see the plot.
        description: what the plot shows, in words, for the same people.
    """
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    for colour, value in _IN_CSS.items():
        svg = svg.replace(colour, value)
    labels = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
    svg = svg.replace("<svg ", f'<svg role="img" aria-labelledby="{name}-title {name}-desc" ', 1)
    place = svg.index(">") + 1
    return svg[:place] + labels + svg[place:].rstrip()


def swatch(number: int) -> str:
    """Return the ``svg`` element of a run's line and mark, for legends; 28 x 14 pixels."""
    colour, _, dashes = run_style(number)
    with plot_settings():
        from matplotlib.lines import Line2D

        line = Line2D([0.0, 1.0], [0.5, 0.5], color=colour, linestyle=dashes)
        return _swatch(number, [line, _mark(number)], "line and mark")


def mark_swatch(number: int) -> str:
    """Return the ``svg`` element of a published network's mark, which has no line; 28 x 14 pixels."""
    with plot_settings():
        return _swatch(number, [_mark(number)], "mark")


def _mark(number: int) -> "Line2D":
    from matplotlib.lines import Line2D

    colour, marker, _ = run_style(number)
    return Line2D([0.5], [0.5], color=colour, marker=marker, linestyle="none")


def _swatch(number: int, lines: list["Line2D"], description: str) -> str:
    figure = new_figure(28, 14)
    for line in lines:
        figure.add_artist(line)
    return to_svg(figure, f"swatch-{number}", f"run {number + 1}", description)
