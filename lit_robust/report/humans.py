"""Nearness to people over the sets of model-vs-human: measured and published networks, ranked as there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from lit_robust.core.results import Result
from lit_robust.reference import human_sets
from lit_robust.report.published import published_names, published_results, published_title
from lit_robust.report.runs import Run

MEASURES = ("accuracy_difference", "observed_consistency", "error_consistency")
BENCHMARK, PEOPLE, ACCURACY = "model-vs-human", "Humans", "accuracy_among_categories"
TITLES = {
    ACCURACY: "Accuracy",
    "accuracy_difference": "Accuracy difference",
    "observed_consistency": "Observed consistency",
    "error_consistency": "Error consistency",
}


@dataclass(frozen=True)
class Row:
    """One network, or people among themselves.

    Attributes:
        label: for a reader.
        values: measure to its mean over the sets.
        sets: over how many.
        published: whether nothing of it was measured here.
        rank: mean of its ranks by the three measures, 1 the nearest; None for people and where a measure is lacking.
    """

    label: str
    values: Mapping[str, float]
    sets: int
    published: bool
    rank: float | None = None


def ranking(runs: Sequence[Run]) -> list[Row]:
    """Return the networks by their mean rank, then people; nothing where no run was compared with people.

    A rank is among all rows that have all 17 sets, as in model-vs-human ``plot.py``; equal values share theirs.
    """
    measured = [_of_run(run) for run in runs if not run.published]
    rows = [row for row in measured if row.sets]
    if not rows:
        return []
    for name in published_names():
        values = {one.metric: one.value for one in published_results(name) if one.dataset == BENCHMARK}
        if values:
            rows.append(Row(published_title(name), values, len(human_sets()), True))
    whole = [row for row in rows if _ranks(row)]
    ranked = [
        Row(row.label, row.values, row.sets, row.published, sum(_rank(row, whole, name) for name in MEASURES) / 3)
        if _ranks(row)
        else row
        for row in rows
    ]
    return sorted(ranked, key=lambda row: (row.rank is None, row.rank or 0.0, row.label == PEOPLE))


def _ranks(row: Row) -> bool:
    return row.label != PEOPLE and row.sets == len(human_sets()) and set(MEASURES) <= row.values.keys()


def _rank(row: Row, whole: Sequence[Row], name: str) -> float:
    sign = 1 if name == "accuracy_difference" else -1
    own, others = sign * row.values[name], [sign * other.values[name] for other in whole]
    return sum(value < own for value in others) + (sum(value == own for value in others) + 1) / 2


def _of_run(run: Run) -> Row:
    found: dict[str, list[Result]] = {name: [] for name in TITLES}
    for result in run.found.results:
        if result.metric in found and result.dataset in human_sets() and "humans" in result.protocol:
            found[result.metric].append(result)
    values = {name: sum(r.value for r in results) / len(results) for name, results in found.items() if results}
    return Row(run.label, values, len(found[MEASURES[0]]), False)


def ranking_html(rows: Sequence[Row]) -> str:
    """Return the ranking as a table."""
    heads = "".join(f'<th scope="col">{title}</th>' for title in ("", *TITLES.values(), "Mean rank", "Sets"))
    lines = []
    for row in rows:
        cells = [f"{row.values[name]:.3f}" if name in row.values else "\N{EN DASH}" for name in TITLES]
        cells += ["\N{EN DASH}" if row.rank is None else f"{row.rank:.2f}", f"{row.sets}"]
        label = escape(row.label) + (", published" if row.published else "")
        lines.append(f'<tr><th scope="row">{label}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    about = (
        "Means over the sets of model-vs-human, of conditions that count there. The accuracy difference is squared. "
        "Rows of fewer sets than 17 have no rank. People among themselves stand last."
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table><p>{about}</p>"
