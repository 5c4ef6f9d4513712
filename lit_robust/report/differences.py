"""The page's section of runs compared on the same images, which tells smaller differences than two intervals do."""

from collections.abc import Mapping, Sequence
from html import escape

from lit_robust.core.results import Result
from lit_robust.report.html import named
from lit_robust.report.runs import Run
from lit_robust.report.titles import dataset_title, value_text

DIFFERENCE = "top1_difference"
MINUS = "\N{MINUS SIGN}"


def difference_table(runs: Sequence[Run]) -> str:
    """Return as HTML what each run has more or less than the one it is compared with; empty where none is.

    A row is a test set and the run that stands for zero, a column a compared run. A difference whose 95 % interval
    does not hold zero is bold.

    Args:
        runs: of the page, whose places settle their marks; differences are results ``top1_difference``, whose protocol
            says by ``less`` the other run's name and accuracy.
    """
    rows: dict[tuple[str, str], dict[str, Result]] = {}
    for run in runs:
        for result in run.found.results:
            less = result.protocol.get("less")
            if result.measure == DIFFERENCE and isinstance(less, Mapping):
                key = dataset_title(result.dataset, [result]), str(less.get("run"))
                rows.setdefault(key, {})[run.label] = result
    compared = [(n, run.label) for n, run in enumerate(runs) if any(run.label in found for found in rows.values())]
    if not rows:
        return ""
    heads = "".join(f'<th scope="col">{named(number, label)}</th>' for number, label in compared)
    body = "".join(_row(*key, [found.get(label) for _, label in compared]) for key, found in rows.items())
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Differences on the same images">'
        '<table class="results"><thead><tr><th scope="col">Images</th><th scope="col">Compared with</th>'
        f"{heads}</tr></thead><tbody>{body}</tbody></table></div>"
        '<p class="about">Top-1 accuracy less that of the run compared with, in percentage points, on the same images; '
        "beneath it the 95 % interval of the difference. Bold is what differs from zero.</p>"
    )


def _row(title: str, other: str, cells: Sequence[Result | None]) -> str:
    first = next(result for result in cells if result is not None)
    accuracy = first.protocol["less"].get("top1")
    share = f" <small>{value_text(accuracy, 'fraction')} %</small>" if isinstance(accuracy, float) else ""
    return (
        f'<tr><th scope="row">{escape(title)}<small>{first.count:,} images</small></th>'
        f"<td>{escape(other)}{share}</td>{''.join(map(_cell, cells))}</tr>"
    )


def _cell(result: Result | None) -> str:
    if result is None:
        return '<td class="missing">\N{EN DASH}</td>'
    ends, is_told = "", False
    if result.interval is not None:
        low, high = result.interval
        is_told = low > 0 or high < 0
        ends = f'<small class="interval">{points_text(low)} to {points_text(high)}</small>'
    tag = "b" if is_told else "span"
    return f'<td><{tag} class="value">{points_text(result.value)}</{tag}>{ends}</td>'


def points_text(value: float) -> str:
    """Return a fraction as percentage points with their sign.

    Example:
        >>> points_text(0.0123), points_text(-0.2) == MINUS + "20.0"
        ('+1.2', True)
    """
    return f"{100 * value:+.1f}".replace("-", MINUS)
