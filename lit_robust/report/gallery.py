"""The page's images: clean beside attacked, and cue-conflict images with the decision."""

from html import escape
from itertools import groupby

from lit_robust.report.markup import named
from lit_robust.report.runs import Run, read_picture
from lit_robust.report.titles import dataset_title
from lit_robust.results import Example

MOST_EXAMPLES = 36
TITLES = {"adversarial": "clean and attacked", "cue-conflict": "shape against texture"}


def gallery(runs: list[Run]) -> str:
    """Return the runs' images, a foldable block a run; empty if no run kept any.

    Few runs show up to 12 examples of a kind each; many show fewer, or the page would not open on a phone.

    Args:
        runs: the runs, in order.

    Raises:
        UserError: an image is missing, is no PNG, or lies outside its run's folder.
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
    title = f"{dataset_title(dataset)}: {TITLES.get(kind, kind)}"
    return f'<h3>{escape(title)} <small>{amount}</small></h3><div class="cards">{cards}</div>'


def _card(run: Run, example: Example) -> str:
    pictures = "".join(_picture(run, example, role) for role in example.images)
    rest = [words if role == "label" else f"{role}: {words}" for role, words in example.captions.items()
            if role not in example.images]  # fmt: skip
    head = escape(", ".join([*rest, f"image {example.index}"]))
    wide = " pair" if len(example.images) > 1 else ""
    return f'<div class="card{wide}"><p>{head}</p><div>{pictures}</div></div>'


def _picture(run: Run, example: Example, role: str) -> str:
    picture = read_picture(run, example.images[role])
    words = example.captions.get(role, "")
    verdict = ""
    if words and "label" in example.captions:
        right = words == example.captions["label"]
        verdict = '<b class="right">\N{CHECK MARK}</b> ' if right else '<b class="wrong">\N{BALLOT X}</b> '
    name = f"<small>{escape(role)}</small> " if len(example.images) > 1 else ""
    # Small images are enlarged in whole pixels: smoothing would hide what an attack changed.
    sharp = ' class="pixels"' if picture.width < 128 else ""
    alternative = escape(f"{dataset_title(example.dataset)}, image {example.index}, {role}: {words}")
    size = f'width="{picture.width}" height="{picture.height}"'
    return (
        f'<figure><img src="{picture.uri}" {size} alt="{alternative}"{sharp}>'
        f"<figcaption>{name}{verdict}{escape(words)}</figcaption></figure>"
    )
