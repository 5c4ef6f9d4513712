"""``lit-robust sweep``: a table or figure of a paper as one list of commands, with a page of what came out."""

import json
import os
import shlex
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import lit_robust
from lit_robust import steps
from lit_robust.errors import UserError
from lit_robust.files import write_text
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
            return cls(**yaml.safe_load(file.read_text(encoding="utf-8")))
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}): name one of configs/sweeps/.") from error
        except (TypeError, yaml.YAMLError) as error:
            raise UserError(f"{file} is no sweep ({error}): see those in configs/sweeps/.") from error


def run_sweep(file: Path, output: Path, settings: Sequence[str], only_list: bool) -> None:
    """Run the commands of a sweep that are not finished, and write a page that compares its tests.

    Args:
        file: the sweep.
        output: folder for its runs and the page; ``{output}`` in the file.
        settings: ``name=value`` each, over the file's variables; values are read as YAML, and ``name.entry=value`` is
            an entry of a variable that is a mapping.
        only_list: print the command lines, for an array of jobs, which has folders of its own, and run none.

    Raises:
        UserError: the file, a setting or a run is wrong.
    """
    os.environ.setdefault("WANDB_SILENT", "true")  # The runs' summaries would bury the comparison.
    sweep = SweepFile.load(file)
    values = {**_settings(settings, sweep.variables), "output": str(output)}
    for variable, choices in sweep.choices.items():
        if values[variable] not in choices:
            raise UserError(f"{variable} is {values[variable]!r}: choose one of {', '.join(choices)}.")
        values |= choices[values[variable]]
    overlays = {name: filled(content, values) for name, content in sweep.overlays.items()}
    for name, content in overlays.items():
        path = output / "overlays" / f"{name}.yaml"
        write_text(path, f"# Overlay of {file.name}\n{yaml.safe_dump(content, sort_keys=False)}")
        values[f"overlay_{name}"] = str(path)
    asked = {name: {n for word in words for n in _placeholders(str(word))} for name, words in sweep.runs.items()}
    runs = [
        _run(name, words, {**values, "run": name})
        for name, words in sweep.runs.items()
        if all(values.get(variable, "") is not None for variable in asked[name])
    ]
    for variable, words in sweep.each.items():
        entries = {name: entry for name, entry in values[variable].items() if entry is not None}
        runs += [_run(name, words, {**values, "run": name, "entry": entry}) for name, entry in entries.items()]
    if only_list:
        print("\n".join(shlex.join(run.words) for run in runs))
        return
    for run in runs:
        folder = output / run.name
        made_of = [lit_robust.__version__, *run.words, str(folder), json.dumps(overlays, sort_keys=True)]
        if steps.begin(folder, f"the run {run.name} of {file.name}", " ".join(made_of)):
            print(f"{folder} is finished already.")
            continue
        has_folder = run.words[0] in ("fit", "test", "validate", "predict")
        steps.run_apart([*run.words, *(["--trainer.default_root_dir", str(folder)] if has_folder else [])])
        steps.finish(folder)
    folders = [output / run.name for run in runs if run.is_reported]
    print(f"\n{sweep.title}\n\n" + terminal(compare({run.label: run.found for run in load_runs(folders)})), end="\n\n")
    report(folders, output / "report.html")
    print(f"Open {output / 'report.html'} in a browser.")


def _run(name: str, words: Sequence[str], values: Mapping[str, Any]) -> Run:
    command, *options = [_text(filled(word, values)) for word in words]
    return Run(name, (*command.split(), *options), command == "test")


def _settings(settings: Sequence[str], variables: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(variables)
    for setting in settings:
        name, equals, text = setting.partition("=")
        variable, _, entry = name.partition(".")
        if not equals or variable not in variables:
            raise UserError(f"The setting {setting!r} names none of {', '.join(variables)}: write one as name=value.")
        value = yaml.safe_load(text)
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
