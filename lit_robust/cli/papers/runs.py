"""What a paper's table or figure is: a list of commands, run one after another, with a page of what came out."""

import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

import lit_robust
from lit_robust.cli import steps
from lit_robust.cli.options import Count, call
from lit_robust.cli.recipes import with_recipes
from lit_robust.core.errors import UserError
from lit_robust.core.files import write_text


@dataclass(frozen=True)
class Command:
    """One command of a table or figure.

    Attributes:
        name: of the run, and of its folder.
        words: the command with its options; what ``test``, ``analyze`` and ``data filter transfer`` measure is shown on
            the page.

    Raises:
        UserError: the name is not that of a folder.
    """

    name: str
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise UserError(f"The run {self.name!r} cannot name a folder: use letters, digits, '_', '-' and '.'.")

    @property
    def is_test(self) -> bool:
        """Whether it measures something."""
        return self.words[0] in ("test", "analyze") or self.words[:3] == ("data", "filter", "transfer")


Paper = Callable[..., list[Command]]


def run(name: str, *command: object) -> Command:
    """Return a run.

    Args:
        name: of the run.
        command: its words; what is not a text is written as JSON.
    """
    return Command(name, tuple(word if isinstance(word, str) else _text(word) for word in command))


def overlay(output: Path, name: str, settings: Mapping[str, Any]) -> str:
    """Write settings as a recipe that is given behind another, and return its path."""
    path = output / "overlays" / f"{name}.yaml"
    write_text(path, yaml.safe_dump(json.loads(json.dumps(settings)), sort_keys=False))
    return str(path)


def part(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a class of this package and its settings as a recipe names them.

    Example:
        >>> part("callbacks.CleanAccuracy", {"dataset": "imagenet"})
        {'class_path': 'lit_robust.callbacks.CleanAccuracy', 'init_args': {'dataset': 'imagenet'}}
    """
    return {"class_path": f"lit_robust.{name}", "init_args": settings}


def recipes(first: str, *overlays: str) -> list[str]:
    """Return the words that name a recipe, by its short name or a path, and overlays behind it."""
    return [word for name in (first, *overlays) for word in ("-c", name)]


def _common(*, output: Path | None = None, list: bool = False, limit: Count | None = None) -> None:
    """Take what every table and figure takes.

    Args:
        output: folder for the runs and the page; null for runs/NAME
        list: print the commands, one a line, for an array of jobs, and run none
        limit: images of each test set for a quick look, drawn once and for all; the results are marked as partial
    """


def run_paper(name: str, words: Sequence[str], paper: Paper) -> None:
    """Run the commands of a table or figure that are not finished, and write a page that compares its tests.

    Args:
        name: of the table or figure.
        words: the options.
        paper: gives the runs for a folder and its options.

    Raises:
        UserError: an option or a run is wrong, or the folder holds something else.
    """
    os.environ.setdefault("WANDB_SILENT", "true")  # The runs' summaries would bury the comparison.
    settings, common = call(f"paper {name}", words, paper, _common)
    output = Path("runs", name) if common["output"] is None else common["output"]
    steps.begin(output, f"the paper's {name}", "")
    runs = paper(output, **settings)
    if not any(run.is_test for run in runs):
        raise UserError(f"No run of {name} that measures something is left: set its options to other than null.")
    if common["limit"] is not None:
        quick = ("--limit", str(common["limit"]))
        runs = [Command(run.name, (*run.words, *quick)) if run.words[0] == "test" else run for run in runs]
    if common["list"]:
        print("\n".join(shlex.join(run.words) for run in runs))
        return
    identities: dict[str, str] = {}
    contents: dict[str, str] = {}  # Most runs are given the same weights and data, which are looked at once.
    for run in runs:
        identities[run.name] = _identity(run, output, identities, contents)
        _run_once(run, output / run.name, f"the run {run.name} of {name}", identities[run.name])
    _compare((paper.__doc__ or name).split("\n")[0], [output / run.name for run in runs if run.is_test], output)


def _compare(title: str, folders: list[Path], output: Path) -> None:
    """Print what the tests measured, and write the page."""
    from lit_robust.report import compare, load_runs, report, terminal

    print(f"\n{title}\n\n" + terminal(compare({run.label: run.found for run in load_runs(folders)})), end="\n\n")
    report(folders, output / "report.html")
    print(f"Open {output / 'report.html'} in a browser.")


def _identity(run: Command, output: Path, others: Mapping[str, str], contents: dict[str, str]) -> str:
    """Return a text of all that a run follows from: its words, recipes, weights and data, and the runs it builds on."""
    recipes = [word for before, word in pairwise(with_recipes(run.words)) if before == "-c"]
    texts = [Path(recipe).read_text(encoding="utf-8") for recipe in recipes]
    values = [yaml.safe_load(text) for text in [*texts, *(word for word in run.words if word.startswith(("{", "[")))]]
    named = {*run.words, *_texts(values)}
    contents |= steps.content_of(named - contents.keys(), output)
    given = {name: contents[name] for name in sorted(named & contents.keys())}
    bases = [one for name, one in others.items() if any(f"{output / name}/" in f"{word}/" for word in named)]
    return json.dumps([lit_robust.__version__, run.words, texts, given, bases])


def _texts(value: Any) -> Iterator[str]:
    """Give every text in a value of YAML, however deep it stands."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(entry)


def _run_once(run: Command, folder: Path, what: str, identity: str) -> None:
    """Run a command, unless it is finished."""
    if steps.begin(folder, what, identity):
        print(f"{folder} is finished already.")
        return
    # A memory is whole where it lies in its place: only the mark was not set when an earlier call was killed.
    if not (folder / "memory").is_dir():
        has_folder = run.words[0] in ("fit", "test", "validate", "predict")
        steps.run_apart([*run.words, *(["--trainer.default_root_dir", str(folder)] if has_folder else [])])
    steps.finish(folder)


def _text(value: object) -> str:
    return str(value) if isinstance(value, Path) else json.dumps(dict(value) if isinstance(value, Mapping) else value)
