"""``lit-robust sweep``: a table or figure of a paper as one list of commands, with a page of what came out."""

import json
import os
import re
import shlex
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

import lit_robust
from lit_robust.cli import steps
from lit_robust.core.errors import UserError
from lit_robust.core.files import write_text
from lit_robust.report import compare, load_runs, report, terminal


@dataclass(frozen=True)
class Run:
    """One command of a sweep.

    Attributes:
        name: of the run, and of its folder.
        words: the command with its options, placeholders filled in.
        is_reported: whether it measures something.
    """

    name: str
    words: tuple[str, ...]
    is_reported: bool


@dataclass(frozen=True)
class SweepFile:
    """What a sweep's file says.

    Attributes:
        title: of the table or figure.
        variables: name to default; any can be set on the command line.
        overlays: name to settings that are written as a recipe's overlay, placeholders filled in.
        runs: name to the words of its command, in which ``{run}`` is that name; a command that begins with ``test`` is
            reported, one that asks for a variable that is null is left out.
        each: variable that holds a mapping to the words of a command that is run once for each of its entries, whose
            name is the run's and whose value is ``{entry}``; an entry that is null is left out.
        choices: variable to what each of its values stands for, further variables.
    """

    title: str
    variables: Mapping[str, Any]
    runs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    each: Mapping[str, Sequence[str]] = field(default_factory=dict)
    overlays: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)

    @classmethod
    def load(cls, file: Path) -> "SweepFile":
        """Read a sweep's file.

        Raises:
            UserError: it is not there, or no sweep.
        """
        try:
            found = cls(**yaml.safe_load(file.read_text(encoding="utf-8")))
            found.check()
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}): name one of configs/sweeps/.") from error
        except (TypeError, ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{file} is no sweep ({reason}): see those in configs/sweeps/.") from error
        return found

    def check(self) -> None:
        """Raise a ValueError where a part has another form than a sweep's."""
        for part in ("variables", "runs", "each", "overlays", "choices"):
            if not isinstance(getattr(self, part), Mapping):
                raise ValueError(f"its {part} are no mapping")
        for name, words in {**self.runs, **self.each}.items():
            if not re.fullmatch(r"\w[\w.-]*", str(name)):
                raise ValueError(f"{name!r} is no name of a folder")
            if not isinstance(words, list) or not words or any(isinstance(word, list | dict) for word in words):
                raise ValueError(f"{name} has no words of a command")
            for word in words:
                _placeholders(str(word))  # Raises where a brace is open.
        for name in (*self.each, *self.choices):
            if name not in self.variables:
                raise ValueError(f"{name!r} is none of its variables")
        for name in self.each:
            if not isinstance(self.variables[name], Mapping):
                raise ValueError(f"its variable {name} has no entries")


def run_sweep(
    file: Path, output: Path, settings: Sequence[str], only_list: bool = False, limit: int | None = None
) -> None:
    """Run the commands of a sweep that are not finished, and write a page that compares its tests.

    Args:
        file: the sweep.
        output: folder for its runs and the page, of no other sweep; ``{output}`` in the file.
        settings: ``name=value`` each, over the file's variables; values are read as YAML, and ``name.entry=value`` is
            an entry of a variable that is a mapping.
        only_list: print the command lines, for an array of jobs, which has folders of its own, and run none.
        limit: images of each test set for a quick look; None for all.

    Raises:
        UserError: the file, a setting or a run is wrong.
    """
    os.environ.setdefault("WANDB_SILENT", "true")  # The runs' summaries would bury the comparison.
    sweep = SweepFile.load(file)
    values = {**_settings(settings, sweep.variables), "output": str(output)}
    for variable, choices in sweep.choices.items():
        if str(values[variable]) not in choices:
            raise UserError(f"{variable} is {values[variable]!r}: choose one of {', '.join(choices)}.")
        values |= choices[str(values[variable])]
    steps.begin(output, f"the sweep {file.name}", "")
    for name, content in sweep.overlays.items():
        path = output / "overlays" / f"{name}.yaml"
        write_text(path, f"# Overlay of {file.name}\n{yaml.safe_dump(filled(content, values), sort_keys=False)}")
        values[f"overlay_{name}"] = str(path)
    quick = () if limit is None else ("--limit", str(limit))
    runs = [replace(run, words=(*run.words, *quick)) if run.is_reported else run for run in _runs(sweep, values)]
    if not any(run.is_reported for run in runs):
        raise UserError(f"No run of {file} that measures something is left: set its variables to other than null.")
    if only_list:
        print("\n".join(shlex.join(run.words) for run in runs))
        return
    identities: dict[str, str] = {}
    contents: dict[str, str] = {}  # Most runs are given the same weights and data, which are looked at once.
    for run in runs:
        identities[run.name] = _identity(run, output, identities, contents)
        _run_once(run, output / run.name, f"the run {run.name} of {file.name}", identities[run.name])
    folders = [output / run.name for run in runs if run.is_reported]
    print(f"\n{sweep.title}\n\n" + terminal(compare({run.label: run.found for run in load_runs(folders)})), end="\n\n")
    report(folders, output / "report.html")
    print(f"Open {output / 'report.html'} in a browser.")


def _runs(sweep: SweepFile, values: Mapping[str, Any]) -> list[Run]:
    found = []
    for name, words in sweep.runs.items():
        asked = {variable for word in words for variable in _placeholders(str(word))}
        if all(values.get(variable, "") is not None for variable in asked):
            found.append(_run(name, words, {**values, "run": name}))
    for variable, words in sweep.each.items():
        if not isinstance(values[variable], Mapping):
            raise UserError(f"{variable} is {values[variable]!r}: write it as {{name: value, ...}}.")
        entries = {name: entry for name, entry in values[variable].items() if entry is not None}
        found += [_run(name, words, {**values, "run": name, "entry": entry}) for name, entry in entries.items()]
    return found


def _run(name: str, words: Sequence[Any], values: Mapping[str, Any]) -> Run:
    command, *options = [_text(filled(word, values)) for word in words]
    return Run(name, (*command.split(), *options), command == "test")


def _identity(run: Run, output: Path, others: Mapping[str, str], contents: dict[str, str]) -> str:
    """Return a text of all that a run follows from: its words, recipes, weights and data, and the runs it builds on."""
    recipes = [Path(word) for before, word in pairwise(run.words) if before == "-c"]
    texts = [recipe.read_text(encoding="utf-8") for recipe in recipes if recipe.is_file()]
    values = [yaml.safe_load(text) for text in [*texts, *(word for word in run.words if word.startswith(("{", "[")))]]
    named = {*run.words, *_texts(values)}
    contents |= steps.content_of(named - contents.keys(), output)
    given = {name: contents[name] for name in sorted(named & contents.keys())}
    bases = [one for name, one in others.items() if any(f"{output / name}/" in f"{word}/" for word in run.words)]
    return json.dumps([lit_robust.__version__, run.words, texts, given, bases])


def _texts(value: Any) -> Iterator[str]:
    """Give every text in a value of YAML, however deep it stands."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(entry)


def _run_once(run: Run, folder: Path, what: str, identity: str) -> None:
    """Run a command, unless it is finished."""
    if steps.begin(folder, what, identity):
        print(f"{folder} is finished already.")
        return
    # A memory is whole where it lies in its place: only the mark was not set when an earlier call was killed.
    if not (folder / "memory").is_dir():
        has_folder = run.words[0] in ("fit", "test", "validate", "predict")
        steps.run_apart([*run.words, *(["--trainer.default_root_dir", str(folder)] if has_folder else [])])
    steps.finish(folder)


def _settings(settings: Sequence[str], variables: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(variables)
    for setting in settings:
        name, equals, text = setting.partition("=")
        variable, _, entry = name.partition(".")
        if not equals or variable not in variables:
            raise UserError(f"The setting {setting!r} names none of {', '.join(variables)}: write one as name=value.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"The setting {setting!r} is no YAML: put what stands behind = into quotes.") from error
        if entry and not isinstance(found[variable], Mapping):
            raise UserError(f"The setting {setting!r} names an entry of {variable}, which has none: write {variable}=.")
        found[variable] = _with_entry(found[variable], entry.split("."), value) if entry else value
    return found


def _with_entry(content: Any, path: Sequence[str], value: Any) -> dict[str, Any]:
    """Return a mapping with one entry changed; ``a.b`` is the entry ``b`` of the entry ``a``."""
    first, *rest = path
    inside = dict(content) if isinstance(content, Mapping) else {}
    return {**inside, first: _with_entry(inside.get(first), rest, value) if rest else value}


def filled(content: Any, values: Mapping[str, Any]) -> Any:
    """Return settings with every ``{name}`` in their strings replaced by a value.

    A string that is a placeholder and nothing else becomes the value itself, whatever its type.

    Raises:
        UserError: a name has no value.

    Example:
        >>> filled({"classes": "{n}", "folder": "runs/{n}"}, {"n": 8})
        {'classes': 8, 'folder': 'runs/8'}
    """
    if isinstance(content, Mapping):
        return {key: filled(value, values) for key, value in content.items()}
    if isinstance(content, list):
        return [filled(value, values) for value in content]
    if not isinstance(content, str):
        return content
    names = _placeholders(content)
    if missing := next((name for name in names if name not in values), None):
        raise UserError(f"{content!r} asks for {missing!r}, which is no variable: it has {', '.join(values)}.")
    if content == f"{{{names[0] if names else ''}}}":
        return values[names[0]]
    return content.format(**{name: _text(values[name]) for name in names})


def _placeholders(text: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]


def _text(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, dict | list | bool) else str(value)
