"""The sections of the page beneath the score card. To add one, write a function like these and list it in SECTIONS."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from lit_robust.core.results import RunResults
from lit_robust.report.cues import cue_examples, cue_table
from lit_robust.report.differences import difference_table
from lit_robust.report.gallery import gallery
from lit_robust.report.html import legend, memory_models, record, results_table
from lit_robust.report.humans import ranking, ranking_html
from lit_robust.report.plots.accuracy import accuracy_plots
from lit_robust.report.plots.conditions import condition_plots
from lit_robust.report.plots.corruptions import corruption_error_plots, heat_maps
from lit_robust.report.plots.drawing import Plot
from lit_robust.report.plots.effective import effective_plots
from lit_robust.report.plots.precision_recall import precision_recall_plots
from lit_robust.report.plots.shape_bias import shape_bias_plots
from lit_robust.report.runs import Run
from lit_robust.report.studies import detector_plots, distance_plots, layer_tables, study_pictures
from lit_robust.report.table import Table, compare, compare_observers
from lit_robust.report.titles import dataset_title, order

MOST_COLUMNS = 7  # fit on an upright sheet of A4 and on a screen of 1280 px


@dataclass(frozen=True)
class Section:
    """A part of the page, folded until a reader opens it.

    Attributes:
        title: of it.
        about: a few words behind the title, such as how many values are in it.
        html: what it holds.
        is_open: whether it is unfolded from the start.
    """

    title: str
    about: str
    html: str
    is_open: bool = False


def found_of(runs: Sequence[Run]) -> dict[str, RunResults]:
    """Return each run's results by its label."""
    return {run.label: run.found for run in runs}


def set_sections(runs: Sequence[Run]) -> list[Section]:
    """Return a section a test set: its values, plots, accuracies by corruption, and images."""
    found, labels = found_of(runs), [run.label for run in runs]
    table, observers = compare(found), compare_observers(found)
    plots = [
        *accuracy_plots(found),
        *shape_bias_plots(found),
        *corruption_error_plots(found),
        *precision_recall_plots(found),
        *condition_plots(found),
        *effective_plots(found),
    ]
    sections = []
    for title, names in _names(runs).items():
        drawn = [plot for plot in plots if plot.dataset == title]
        values = sum(column.dataset == title for column in table.columns)
        heats = "".join(heat_maps(found, name) for name in names)
        images = "".join(gallery(runs, name, title) for name in names)
        parts = [
            results_table(table, list(runs), MOST_COLUMNS, title),
            _observers(observers, runs, title),
            f'<div class="plots">{"".join(_figure(plot, labels) for plot in drawn)}</div>' if drawn else "",
            heats,
            images,
        ]
        counts = {"value": values, "plot": len(drawn)}
        about = [f"{count} {word}{'s' if count > 1 else ''}" for word, count in counts.items() if count]
        about += [word for word, part in (("corruptions", heats), ("images", images)) if part]
        sections.append(Section(title, ", ".join(about), "".join(parts)))
    return sections


def _names(runs: Sequence[Run]) -> Mapping[str, list[str]]:
    """Return the test sets' names by their titles, in reading order; sets of one name may have titles of their own."""
    results = sorted((result for run in runs for result in run.found.results), key=order)
    names: dict[str, dict[str, None]] = {}
    for result in results:
        names.setdefault(dataset_title(result.dataset, [result]), {})[result.dataset] = None
    return {title: list(found) for title, found in names.items()}


def _observers(table: Table, runs: Sequence[Run], title: str) -> str:
    if not any(column.dataset == title for column in table.columns):
        return ""
    return f"<h4>Error consistency by observer</h4>{results_table(table, list(runs), MOST_COLUMNS, title)}"


def _figure(plot: Plot, labels: list[str]) -> str:
    return (
        f'<figure class="plot"><h4>{escape(plot.title)}</h4>{plot.svg}{legend(plot.labels, labels)}'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
    )


def cue_section(runs: Sequence[Run]) -> list[Section]:
    """Return accuracies on images with one cue less, by kind of cue, and such images side by side."""
    table, images = cue_table(runs), cue_examples(runs)
    about = " and ".join(word for word, part in (("values", table), ("images", images)) if part)
    return [Section("Images with one cue less", about, table + images)] if about else []


def study_sections(runs: Sequence[Run]) -> list[Section]:
    """Return a section for each kind of study that `lit-robust analyze` ran: pictures and curves, run against run."""
    labels, found = [run.label for run in runs], found_of(runs)
    curves = {
        kind: "".join(_figure(plot, labels) for plot in drawn)
        for kind, drawn in (("inversion", distance_plots(found)), ("dissection", detector_plots(found)))
    }
    sections = []
    pictures, tables = study_pictures(runs), layer_tables(found)
    for kind in dict.fromkeys([*pictures, *tables]):
        plots = f'<div class="plots">{curves[kind]}</div>' if curves.get(kind) else ""
        about = "pictures, and tables of values" if kind in tables else "pictures"
        sections.append(Section(f"Study: {kind}", about, f"{plots}{tables.get(kind, '')}{pictures.get(kind, '')}"))
    return sections


def difference_section(runs: Sequence[Run]) -> list[Section]:
    """Return the runs that were compared with another on the same images."""
    inside = difference_table(runs)
    return [Section("On the same images", "run against run", inside)] if inside else []


def people_section(runs: Sequence[Run]) -> list[Section]:
    """Return the networks ranked by how near their decisions are to people's."""
    rows = ranking(runs)
    return [Section("Nearness to people", "a ranking", ranking_html(rows))] if rows else []


def memory_section(runs: Sequence[Run]) -> list[Section]:
    """Return the settings of the memory models among the runs."""
    inside = memory_models(runs)
    return [Section("Memory models", "what they ask", inside)] if inside else []


def record_section(runs: Sequence[Run]) -> list[Section]:
    """Return all that the results files tell, a block a run."""
    about = "one run" if len(runs) == 1 else f"{len(runs)} runs"
    return [Section("How each number was measured", about, record(list(runs)))]


SECTIONS: tuple[Callable[[Sequence[Run]], list[Section]], ...] = (
    set_sections,
    difference_section,
    cue_section,
    study_sections,
    people_section,
    memory_section,
    record_section,
)


def section_html(section: Section) -> str:
    """Return a section as a foldable block."""
    is_open = " open" if section.is_open else ""
    return (
        f'<details class="section"{is_open}><summary><h2>{escape(section.title)}</h2> '
        f"<small>{escape(section.about)}</small></summary>{section.html}</details>"
    )
