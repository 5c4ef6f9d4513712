"""The images that runs kept, each once, with what every run says of it."""

from collections.abc import Sequence
from html import escape

from lit_robust.core.results import Example
from lit_robust.report.html import named
from lit_robust.report.protocol import is_partial
from lit_robust.report.runs import Run, read_picture
from lit_robust.report.titles import dataset_title

MOST_EXAMPLES = 36
CUE_EXAMPLES = "one cue less"  # These stand in a section of their own.
TITLES = {"adversarial": "clean and attacked", "cue-conflict": "shape against texture"}
Seen = tuple[int, Run, Example]
"""A run's number and the run, with its example of an image."""
Picture = tuple[str, int]
"""Digest of the data, empty where unknown, and the number of the image in it."""


def gallery(runs: Sequence[Run], dataset: str, title: str) -> str:
    """Return the runs' images of a test set as HTML, paired by image; empty if no run kept any.

    Runs on other data of the same name, such as another number of images, are not paired.

    Few runs show up to 12 images of a kind; many show fewer, or the page would not open on a phone. Where a file is
    missing, words stand in its place.

    Args:
        runs: all runs of the page, whose places settle their marks.
        dataset: name of the test set.
        title: of the test set, which sets of one name with other classes do not share.

    Raises:
        UserError: an image cannot be read, is not a PNG, or lies outside its run's folder.
    """
    groups: dict[tuple[str, str], dict[Picture, list[Seen]]] = {}
    for number, run in enumerate(runs):
        own = [result for result in run.found.results if result.dataset == dataset]
        if dataset_title(dataset, own) != title:
            continue
        for example in run.found.examples:
            if example.dataset == dataset and example.kind != CUE_EXAMPLES:
                images = groups.setdefault((example.kind, example.series), {})
                images.setdefault(picture_of(run, example), []).append((number, run, example))
    return "".join(_group(kind, images) for (kind, _), images in groups.items())


def picture_of(run: Run, example: Example) -> Picture:
    """Return which image an example is of: of two runs the same only where they saw the same data."""
    digests = (one.protocol.get("shards_sha256") for one in run.found.results if one.dataset == example.dataset)
    return next((str(digest) for digest in digests if digest), ""), example.index


def _group(kind: str, images: dict[Picture, list[Seen]]) -> str:
    most = max(map(len, images.values()))
    chosen = sorted(images, key=lambda picture: (-len(images[picture]), picture[1], picture[0]))[
        : max(2, min(12, MOST_EXAMPLES // most))
    ]
    amount = f"{len(chosen)} of {len(images)}" if len(chosen) < len(images) else str(len(images))
    cards = "".join(_card(images[picture]) for picture in sorted(chosen, key=lambda picture: picture[::-1]))
    owners = [(run, example.dataset) for seen in images.values() for _, run, example in seen]
    is_part = any(is_partial(r) for run, name in owners for r in run.found.results if r.dataset == name)
    partial = ' <span class="tag">partial</span>' if is_part else ""
    wide = f' style="--across: {min(most + 1, 4)}"' if kind == "adversarial" else ""
    title = escape(TITLES.get(kind, kind))
    return f'<h4>Images: {title} <small>{amount}</small>{partial}</h4><div class="cards"{wide}>{cards}</div>'


def _card(seen: list[Seen]) -> str:
    """Return one image: what it is, its picture as it was, and where it was changed each run's picture of it."""
    _, first_run, first = seen[0]
    rest = [
        words if role == "label" else f"{role} {words}"
        for role, words in first.captions.items()
        if role not in first.images
    ]
    head = escape(", ".join([*rest, f"image {first.index}"]))
    clean, *changed = first.images
    own = "".join(f"<li>{says(number, run, example, clean)}</li>" for number, run, example in seen)
    figures = [_figure(first_run, first, clean, f'<ul class="says">{own}</ul>', named_role=bool(changed))]
    figures += [
        _figure(run, example, role, says(number, run, example, role), named_role=True)
        for number, run, example in seen
        for role in example.images
        if role != clean
    ]
    return f'<div class="card"><p>{head}</p><div>{"".join(figures)}</div></div>'


def says(number: int, run: Run, example: Example, role: str) -> str:
    """Return what a run says of a picture, behind its mark; a tick or a cross where the class is known."""
    words, verdict = example.captions.get(role, ""), ""
    if words and "label" in example.captions:
        right = words == example.captions["label"]
        verdict = '<b class="right">\N{CHECK MARK}</b> ' if right else '<b class="wrong">\N{BALLOT X}</b> '
    return f"{named(number, run.label)} {verdict}{escape(words)}"


def _figure(run: Run, example: Example, role: str, caption: str, named_role: bool) -> str:
    name = f"<small>{escape(role)}</small> " if named_role else ""
    return f"<figure>{_image(run, example, role)}<figcaption>{name}{caption}</figcaption></figure>"


def _image(run: Run, example: Example, role: str) -> str:
    picture = read_picture(run, example.images[role])
    if picture is None:
        return f'<p class="gone">{escape(example.images[role])} is missing from the run\'s folder.</p>'
    # Small images are enlarged in whole pixels: smoothing would hide what an attack changed.
    sharp = ' class="pixels"' if picture.width < 128 else ""
    words = example.captions.get(role, "")
    alternative = escape(f"{example.dataset}, image {example.index}, {role}, {run.label}: {words}")
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img src="{picture.uri}" {size} alt="{alternative}"{sharp}>'
