"""The first screen: one sentence of what was found, and the ten values that matter, a row a run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from lit_robust.core.results import Result
from lit_robust.core.scorecard import (
    ADVERSARIAL,
    AUTOATTACK,
    CALIBRATION,
    CLEAN,
    CORRUPTED,
    MEMORY,
    OUTLIERS,
    SCORES,
    SHAPE,
    ScoredMeasure,
    main_strength,
    scores,
)
from lit_robust.report.grouping import seeds_of
from lit_robust.report.html import bar_scale, notes, row_class, run_head, value_cell
from lit_robust.report.protocol import is_partial
from lit_robust.report.published import published_results
from lit_robust.report.runs import Run
from lit_robust.report.table import Table
from lit_robust.report.titles import DATASETS, NORM_TITLES, dataset_title, eps_text, interval_text, value_text

ARROWS = {1: "\N{UPWARDS ARROW}", -1: "\N{DOWNWARDS ARROW}", 0: ""}
PEOPLE = "humans"
SHORT = 8  # characters of a heading that stands in one line


@dataclass(frozen=True)
class CardColumn:
    """One column of the card.

    Attributes:
        score: what it is.
        detail: what the title leaves open, such as norm and eps; may be empty.
        found: a run's label to its value.
        best: labels of the measured runs with the best value; empty where nothing is better, or nothing compares.
        marks: name to value of what a value is held against: chance, AlexNet, humans.
    """

    score: ScoredMeasure
    detail: str
    found: dict[str, Result]
    best: frozenset[str]
    marks: dict[str, float]


def card_columns(runs: Sequence[Run]) -> list[CardColumn]:
    """Return the card's columns that any run has a value in.

    Args:
        runs: measured and published ones.
    """
    strength = main_strength([run.found.results for run in runs if not run.published])
    strength = strength or main_strength([run.found.results for run in runs])
    found = {run.label: scores(run.found.results, strength) for run in runs}
    measured = [run.label for run in runs if not run.published]
    columns = []
    for score in SCORES:
        values = {label: own[score.name] for label, own in found.items() if score.name in own}
        if any(label in values for label in measured) or (values and not measured):
            best = _best(score, {label: values[label] for label in measured if label in values})
            columns.append(CardColumn(score, _detail(score, values), values, best, _marks(score, values)))
    return columns


def _best(score: ScoredMeasure, values: Mapping[str, Result]) -> frozenset[str]:
    finite = {label: result.value for label, result in values.items() if math.isfinite(result.value)}
    if not score.better or len(finite) < 2:
        return frozenset()
    top = max(score.better * value for value in finite.values())
    best = frozenset(label for label, value in finite.items() if score.better * value == top)
    return best if len(best) < len(finite) else frozenset()


def _detail(score: ScoredMeasure, values: Mapping[str, Result]) -> str:
    first = next(iter(values.values()))
    if score.name in (ADVERSARIAL, MEMORY):
        return strength_words(first)
    if score.name == AUTOATTACK:
        kinds = {strength_words(result) for result in values.values()}
        return kinds.pop() if len(kinds) == 1 else "several eps"
    named = {result.dataset: DATASETS.get(result.dataset) for result in values.values()}
    # A set of other classes than the papers' goes by its own name.
    known = {
        result.dataset for result in values.values() if dataset_title(result.dataset, [result]) in DATASETS.values()
    }
    titles = [str(title) if name in known else name for name, title in named.items()]
    return ", ".join(titles) if len(titles) < 3 else "several sets"


def strength_words(result: Result) -> str:
    """Return norm and eps of an attack, such as ``L2, eps 3``."""
    norm = str(result.facets["norm"])
    return f"{NORM_TITLES.get(norm, norm)}, eps {eps_text(norm, result.facets['eps'])}"


def _marks(score: ScoredMeasure, values: Mapping[str, Result]) -> dict[str, float]:
    first = next(iter(values.values())).protocol
    if score.name == CORRUPTED:
        return {"AlexNet": 1.0}
    if score.name == SHAPE:
        humans = [result.value for result in published_results(PEOPLE) if result.metric == "shape_bias"]
        return {PEOPLE: humans[0]} if humans and first.get("number_of_categories") == 16 else {}
    if score.name == OUTLIERS and {"positives", "negatives"} <= first.keys():
        return {"chance": first["positives"] / (first["positives"] + first["negatives"])}
    classes = first.get("decided_among", first.get("num_classes"))
    is_accuracy = score.better == 1 and score.name not in (ADVERSARIAL, AUTOATTACK, MEMORY, OUTLIERS)
    return {"chance": 1 / classes} if is_accuracy and isinstance(classes, int) and classes > 0 else {}


def finding(runs: Sequence[Run], columns: Sequence[CardColumn]) -> str:
    """Return one sentence of what the runs show; empty where they share no value.

    Args:
        runs: measured and published ones; of the latter nothing is said.
        columns: of the card.
    """
    labels = [run.label for run in runs if not run.published]
    present = [column for column in columns if any(label in column.found for label in labels)]
    if len(labels) == 1:
        parts = [_own(column, column.found[labels[0]]) for column in present[:4]]
        return f"{labels[0]}: {', '.join(parts)}." if parts else ""
    under_attack = next((c for c in present if c.score.name in (AUTOATTACK, ADVERSARIAL) and c.best), None)
    wanted = [column for column in present if column.best and column.score.name != AUTOATTACK]
    first = under_attack or next((c for c in wanted if c.score.name != CLEAN), None)
    clean = next((column for column in wanted if column.score.name == CLEAN), None)
    clauses = [_ahead(column, labels) for column in (first, clean) if column is not None]
    sentence = "; ".join(clauses)
    return f"{sentence[:1].upper()}{sentence[1:]}." if sentence else ""


def _own(column: CardColumn, result: Result) -> str:
    detail = f" ({column.detail})" if column.score.name in (ADVERSARIAL, AUTOATTACK, MEMORY) else ""
    title = column.score.title
    # The sets of one letter go by their whole names.
    words = column.detail if len(title) == 1 else title if column.score.name == CORRUPTED else title.lower()
    return f"{words}{detail} {_percent(result)}"


def _ahead(column: CardColumn, labels: Sequence[str]) -> str:
    """Say which of the runs is best in a column, and whether the second best can be told from it."""
    place = {ADVERSARIAL: f"under attack ({column.detail})", AUTOATTACK: f"under AutoAttack ({column.detail})",
             CLEAN: "on clean images", OUTLIERS: f"by AUPR on {column.detail}", "corrupted": f"on {column.detail}",
             CALIBRATION: "by calibration error"}.get(column.score.name, f"by {column.score.title}")  # fmt: skip
    place = f"on {column.detail}" if len(column.score.title) == 1 else place
    order = sorted(
        (label for label in labels if label in column.found and math.isfinite(column.found[label].value)),
        key=lambda label: -column.score.better * column.found[label].value,
    )
    best = next(label for label in order if label in column.best)
    result = column.found[best]
    others = [label for label in order if label not in column.best]
    span = f" (95 % interval {interval_text(result)})" if result.interval else ""
    if seeds := seeds_of(result):
        deviation = value_text(seeds["sd"], result.unit)
        span = f" (mean of {seeds['count']} seeds, standard deviation {deviation})"
    if len(column.best) > 1:
        return (
            f"{place} {' and '.join(label for label in order if label in column.best)} are best, at {_percent(result)}"
        )
    second = column.found[others[0]]
    if not result.interval or not second.interval:
        return f"{place} {best} is best, at {_percent(result)}{span}"
    if result.interval[0] > second.interval[1] or result.interval[1] < second.interval[0]:
        return f"{place} {best} is best, at {_percent(result)}{span}, before {others[0]} at {_percent(second)}"
    return f"{place} {best} and {others[0]} lead, at {_percent(result)} and {_percent(second)}; their intervals overlap"


def _percent(result: Result) -> str:
    words = value_text(result.value, result.unit)
    return f"{words} %" if result.unit == "fraction" and math.isfinite(result.value) else words


def card_table(runs: Sequence[Run], columns: Sequence[CardColumn]) -> Table:
    """Return the card as a table, whose notes say what does not compare, and why a value may mislead."""
    table = Table([], {run.label: [] for run in runs})
    for column in columns:
        table.add(column.found)
    return table


def card_html(runs: Sequence[Run], columns: Sequence[CardColumn]) -> str:
    """Return the card as HTML, with the notes beneath; empty without columns."""
    if not columns:
        return ""
    table = card_table(runs, columns)
    scales = [bar_scale([row[place] for row in table.rows.values()]) for place in range(len(columns))]
    rows = []
    for number, run in enumerate(runs):
        if "study" in run.found.run:  # It has a section, and no value of the card.
            continue
        cells = "".join(
            value_cell(table, cell, scale, run.label in column.best, column.marks)
            for cell, scale, column in zip(table.rows[run.label], scales, columns, strict=True)
        )
        rows.append(f"<tr{row_class(run)}>{run_head(number, run)}{cells}</tr>")
    heads = "".join(map(_head, columns))
    about = " ".join(column.score.about for column in columns)
    values = [result for column in columns for result in column.found.values()]
    spans = " Beneath a value stands its 95 % interval." if any(result.interval for result in values) else ""
    bold = " The best measured value is bold; arrows point to better." if any(c.best for c in columns) else ""
    ticks = " A tick on a bar is what the heading names." if any(column.marks for column in columns) else ""
    part = " What is partial saw a part of its set." if any(map(is_partial, values)) else ""
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Score card"><table class="results card-table">'
        f'<thead><tr><th scope="col">Run</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f'{notes(table)}<details class="sources"><summary>How to read the card</summary>'
        f'<p class="about">All in per cent. {escape(about + bold + ticks + spans + part)}</p></details>'
    )


def _head(column: CardColumn) -> str:
    arrow = ARROWS[column.score.better]
    word = {1: "more is better", -1: "less is better"}.get(column.score.better, "")
    mark = f' <span class="arrow" title="{word}">{arrow}</span>' if arrow else ""
    held = "".join(f"<small>{escape(name)} {100 * value:.3g}</small>" for name, value in column.marks.items())
    words = column.score.title.rsplit(" ", 1) if len(column.score.title) > SHORT else [column.score.title]
    title = "<br>".join(map(escape, words))
    return f'<th scope="col"><span class="head">{title}{mark}</span><small>{escape(column.detail)}</small>{held}</th>'
