"""The page's section of images with one cue less: accuracies by kind of cue, and the images side by side."""

from collections.abc import Mapping, Sequence
from html import escape

from lit_robust.core.results import Example, Result
from lit_robust.report.differences import DIFFERENCE, points_text
from lit_robust.report.gallery import CUE_EXAMPLES, picture_of, says
from lit_robust.report.html import named
from lit_robust.report.protocol import is_partial
from lit_robust.report.runs import Run, read_picture
from lit_robust.report.titles import interval_text, metric_title, value_text

# What a stimulus takes from an image, by how its name begins; those of none of them are not shown here.
CUES: Mapping[str, Sequence[str]] = {
    "Shape destroyed, texture kept": ("scrambled",),
    "Texture exchanged": ("stylised", "stylized"),
    "Texture removed": ("black-and-white", "edges", "silhouettes"),
}
# Sets of this name were not made here, and their info files do not say what made them.
PUBLISHED = {"stylized-imagenet": "stylized-imagenet"}


def cue_of(result: Result) -> str | None:
    """Return which cue the images of a result lack; None where they lack none.

    Example:
        >>> scrambled = {"generated": {"stimulus": "scrambled", "grid": 4}}
        >>> cue_of(Result("scrambled-4", "top1", 0.5, "fraction", 9, scrambled))
        'Shape destroyed, texture kept'
    """
    said = [result.protocol.get(name) for name in ("generated", "as_loaded")]
    kinds = [str(one["stimulus"]) for one in said if isinstance(one, Mapping) and "stimulus" in one]
    kind = next(iter(kinds), PUBLISHED.get(result.dataset, ""))
    return next((cue for cue, starts in CUES.items() if kind.startswith(tuple(starts))), None)


def cue_table(runs: Sequence[Run]) -> str:
    """Return accuracies by kind of cue as HTML, a column a run: empty where no run has any.

    Args:
        runs: in the order of the page; those without such a value have no column.
    """
    values: dict[str, dict[str, dict[str, Result]]] = {}
    gaps: dict[tuple[str, str], Result] = {}
    for run in runs:
        for result in run.found.results:
            cue = cue_of(result)
            if cue is not None and (result.metric == "top1" or _is_by_category(result)):
                by = "" if result.metric == "top1" else f", {metric_title(result).lower()}"
                values.setdefault(cue, {}).setdefault(f"{result.dataset}{by}", {})[run.label] = result
            elif result.metric == DIFFERENCE:
                gaps[result.dataset, run.label] = result
    shown = [
        (number, run)
        for number, run in enumerate(runs)
        if any(run.label in found for sets in values.values() for found in sets.values())
    ]
    if not shown:
        return ""
    clean = {
        run.label: result
        for _, run in shown
        for result in run.found.results
        if (result.dataset, result.metric) == ("imagenet", "top1")
    }
    lines = [_line("imagenet", clean, gaps, shown)] if clean else []
    for cue in CUES:
        if cue in values:
            lines.append(f'<tr><th scope="rowgroup" colspan="{len(shown) + 1}">{escape(cue)}</th></tr>')
            lines += [_line(name, found, gaps, shown) for name, found in values[cue].items()]
    heads = "".join(f'<th scope="col">{named(number, run.label)}</th>' for number, run in shown)
    about = (
        "Top-1 accuracy in per cent, with its 95 % interval, and beneath it the difference to the run that a pair is "
        "compared with, in percentage points: the interval of a difference on the same images."
        if gaps
        else "Top-1 accuracy in per cent, with its 95 % interval."
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Accuracy by kind of cue">'
        f'<table class="results cues"><thead><tr><th scope="col">Images</th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
        f'<p class="about">{about}</p>'
    )


def _is_by_category(result: Result) -> bool:
    """Tell whether a value is an accuracy among categories, over all of them: how silhouettes are scored."""
    return result.measure == "category_accuracy" and "category" not in result.facets


def _line(
    name: str, found: Mapping[str, Result], gaps: Mapping[tuple[str, str], Result], shown: Sequence[tuple[int, Run]]
) -> str:
    cells = "".join(_cell(found.get(run.label), gaps.get((name, run.label))) for _, run in shown)
    counts = sorted({result.count for result in found.values()})
    images = f"{counts[0]:,} images" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,} images"
    return f'<tr><th scope="row">{escape(name)}<small>{images}</small></th>{cells}</tr>'


def _cell(result: Result | None, gap: Result | None) -> str:
    if result is None:
        return '<td class="missing">\N{EN DASH}</td>'
    partial = '<span class="tag">partial</span>' if is_partial(result) else ""
    words = f'<span class="value">{value_text(result.value, result.unit)}</span>{partial}'
    words += f'<small class="interval">{interval_text(result)}</small>' if result.interval else ""
    if gap is not None and gap.interval is not None:
        low, high = gap.interval
        less = gap.protocol.get("less")
        other = escape(str(less.get("run", ""))) if isinstance(less, Mapping) else ""
        words += (
            f'<small class="interval" title="less {other}">{points_text(gap.value)} ({points_text(low)} to '
            f"{points_text(high)})</small>"
        )
    return f"<td>{words}</td>"


def cue_examples(runs: Sequence[Run]) -> str:
    """Return the same images as they are and in each derived set, side by side, with every run's answers.

    Args:
        runs: all runs of the page, whose places settle their marks.

    Raises:
        UserError: an image cannot be read, is not a PNG, or lies outside its run's folder.
    """
    images: dict[tuple[str, str, int], list[tuple[int, Run, Example]]] = {}
    for number, run in enumerate(runs):
        for example in run.found.examples:
            if example.kind == CUE_EXAMPLES:
                picture = example.dataset, *picture_of(run, example)
                images.setdefault(picture, []).append((number, run, example))
    roles = list(dict.fromkeys(role for seen in images.values() for _, _, one in seen for role in one.images))
    if not roles:
        return ""
    heads = "".join(f'<th scope="col">{escape(role)}</th>' for role in roles)
    rows = "".join(
        f'<tr><th scope="row">{escape(seen[0][2].captions.get("label", ""))}</th>'
        + "".join(f"<td>{_example(seen, role)}</td>" for role in roles)
        + "</tr>"
        for _, seen in sorted(images.items())
    )
    return (
        "<h4>Images: the same ones with one cue less</h4>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Images with one cue less">'
        f'<table class="cue-images"><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _example(seen: Sequence[tuple[int, Run, Example]], role: str) -> str:
    have = [(number, run, example) for number, run, example in seen if role in example.images]
    if not have:
        return "\N{EN DASH}"
    _, run, example = have[0]
    picture = read_picture(run, example.images[role])
    if picture is None:
        image = f'<p class="gone">{escape(example.images[role])} is missing from the run\'s folder.</p>'
    else:
        sharp = ' class="pixels"' if picture.width < 128 else ""
        words = escape(f"{role}, image {example.index}, {example.captions.get('label', '')}")
        image = f'<img src="{picture.uri}" width="{picture.width}" height="{picture.height}" alt="{words}"{sharp}>'
    answers = "".join(f"<li>{says(number, run, example, role)}</li>" for number, run, example in have)
    return f'<figure>{image}<figcaption><ul class="says">{answers}</ul></figcaption></figure>'
