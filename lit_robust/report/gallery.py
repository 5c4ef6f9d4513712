"""The page's images: clean beside attacked, and cue-conflict images with the decision."""

from html import escape
from itertools import groupby

from lit_robust.core.results import Example
from lit_robust.report.markup import named
from lit_robust.report.protocol import is_partial
from lit_robust.report.runs import Run, read_picture
from lit_robust.report.titles import dataset_title

MOST_EXAMPLES = 36
TITLES = {"adversarial": "clean and attacked", "cue-conflict": "shape against texture"}


def gallery(runs: list[Run]) -> str:
    """Return the runs' images, a foldable block a run; empty if no run kept any.

    Few runs show up to 12 examples of a kind each; many show fewer, or the page would not open on a phone. Where a
    file is missing, words stand in its place.

    Args:
        runs: the runs, in order.

    Raises:
        UserError: an image cannot be read, is no PNG, or lies outside its run's folder.
    """
    limit = max(2, min(12, MOST_EXAMPLES // len(runs)))
    blocks = []
    for number, run in enumerate(runs):
        examples = sorted(run.found.examples, key=lambda example: (example.kind, example.dataset))
        if not examples:
            continue
        groups = groupby(examples, key=lambda example: (example.kind, example.dataset))
        inside = "".join(_group(run, *key, list(members), limit) for key, members in groups)
        unfolded = " open" if len(runs) <= 3 else ""
        blocks.append(
            f'<details class="gallery"{unfolded}><summary>{named(number, run.label)}</summary>{inside}</details>'
        )
    return "".join(blocks)


def _group(run: Run, kind: str, dataset: str, examples: list[Example], limit: int) -> str:
    shown = examples[:limit]
    amount = f"{len(shown)} of {len(examples)}" if len(shown) < len(examples) else str(len(examples))
    cards = "".join(_card(run, example) for example in shown)
    own = [result for result in run.found.results if result.dataset == dataset]
    title = f"{dataset_title(dataset, own)}: {TITLES.get(kind, kind)}"
    partial = ' <span class="tag">partial</span>' if any(map(is_partial, own)) else ""
    return f'<h3>{escape(title)} <small>{amount}</small>{partial}</h3><div class="cards">{cards}</div>'


def _card(run: Run, example: Example) -> str:
    pictures = "".join(_picture(run, example, role) for role in example.images)
    rest = [words if role == "label" else f"{role}: {words}" for role, words in example.captions.items()
            if role not in example.images]  # fmt: skip
    head = escape(", ".join([*rest, f"image {example.index}"]))
    wide = " pair" if len(example.images) > 1 else ""
    return f'<div class="card{wide}"><p>{head}</p><div>{pictures}</div></div>'


def _picture(run: Run, example: Example, role: str) -> str:
    words = example.captions.get(role, "")
    verdict = ""
    if words and "label" in example.captions:
        right = words == example.captions["label"]
        verdict = '<b class="right">\N{CHECK MARK}</b> ' if right else '<b class="wrong">\N{BALLOT X}</b> '
    name = f"<small>{escape(role)}</small> " if len(example.images) > 1 else ""
    caption = f"<figcaption>{name}{verdict}{escape(words)}</figcaption>"
    return f"<figure>{_image(run, example, role, words)}{caption}</figure>"


def _image(run: Run, example: Example, role: str, words: str) -> str:
    picture = read_picture(run, example.images[role])
    if picture is None:
        return f'<p class="gone">{escape(example.images[role])} is missing from the run\'s folder.</p>'
    # Small images are enlarged in whole pixels: smoothing would hide what an attack changed.
    sharp = ' class="pixels"' if picture.width < 128 else ""
    dataset = dataset_title(example.dataset, run.found.results)
    alternative = escape(f"{dataset}, image {example.index}, {role}: {words}")
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img src="{picture.uri}" {size} alt="{alternative}"{sharp}>'
