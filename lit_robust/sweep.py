"""``lit-robust sweep``: a table or figure of a paper as one list of commands, with a page of what came out."""

import json
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
            reported.
        choices: variable to what each of its values stands for, further variables.
    """

    title: str
    variables: Mapping[str, Any]
    runs: Mapping[str, Sequence[str]]
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
        settings: ``name=value`` each, over the file's variables; values are read as YAML.
        only_list: print the command lines, for an array of jobs, and run none.

    Raises:
        UserError: the file, a setting or a run is wrong.
    """
    sweep = SweepFile.load(file)
    values = {**sweep.variables, **_settings(settings, sweep.variables), "output": str(output)}
    for variable, choices in sweep.choices.items():
        if values[variable] not in choices:
            raise UserError(f"{variable} is {values[variable]!r}: choose one of {', '.join(choices)}.")
        values |= choices[values[variable]]
    overlays = {name: filled(content, values) for name, content in sweep.overlays.items()}
    for name, content in overlays.items():
        path = output / "overlays" / f"{name}.yaml"
        write_text(path, f"# Overlay of {file.name}\n{yaml.safe_dump(content, sort_keys=False)}")
        values[f"overlay_{name}"] = str(path)
    runs = [_run(name, words, values, output) for name, words in sweep.runs.items()]
    if only_list:
        print("\n".join(shlex.join(run.words) for run in runs))
        return
    for run in runs:
        folder = output / run.name
        made_of = [lit_robust.__version__, *run.words, json.dumps(overlays, sort_keys=True)]
        if steps.begin(folder, f"the run {run.name} of {file.name}", " ".join(made_of)):
            print(f"{folder} is finished already.")
            continue
        steps.run_apart(list(run.words))
        steps.finish(folder)
    folders = [output / run.name for run in runs if run.is_reported]
    print(f"\n{sweep.title}\n\n" + terminal(compare({run.label: run.found for run in load_runs(folders)})), end="\n\n")
    report(folders, output / "report.html")
    print(f"Open {output / 'report.html'} in a browser.")


def _run(name: str, words: Sequence[str], values: Mapping[str, Any], output: Path) -> Run:
    words = [_text(filled(word, {**values, "run": name})) for word in words]
    made = [*words[0].split(), *words[1:]]
    is_training = made[0] in ("fit", "test", "validate", "predict")
    folder = ["--trainer.default_root_dir", str(output / name)] if is_training else []
    return Run(name, (*made, *folder), made[0] == "test")


def _settings(settings: Sequence[str], variables: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or name not in variables:
            raise UserError(f"The setting {setting!r} names none of {', '.join(variables)}: write one as name=value.")
        found[name] = yaml.safe_load(value)
    return found


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
    names = [name for _, name, _, _ in string.Formatter().parse(content) if name is not None]
    if missing := next((name for name in names if name not in values), None):
        raise UserError(f"{content!r} asks for {missing!r}, which is no variable: it has {', '.join(values)}.")
    if content == f"{{{names[0] if names else ''}}}":
        return values[names[0]]
    return content.format(**{name: _text(values[name]) for name in names})


def _text(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, dict | list | bool) else str(value)
