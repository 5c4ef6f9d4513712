"""A command's options, read from the signature and the docstring of the function that does its work."""

import inspect
import json
import re
import shlex
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args, get_origin

import docstring_parser
import yaml
from jsonargparse import ArgumentParser
from jsonargparse._loaders_dumpers import get_yaml_default_loader

from lit_robust.cli.mistakes import explain
from lit_robust.core.errors import UserError

if TYPE_CHECKING:
    Count = int
    Seed = int
else:
    from jsonargparse.typing import NonNegativeInt as Seed
    from jsonargparse.typing import PositiveInt as Count

__all__ = ["Count", "Seed", "StrictParser", "call", "made", "read_words"]

Made = TypeVar("Made")
Settings = dict[str, Any]
Function = Callable[..., object]


class StrictParser(ArgumentParser):
    """A parser that takes no abbreviated option, nor does any that it makes for the settings of a class.

    jsonargparse hands ``allow_abbrev`` on to none of those.
    """

    def __init__(self, *args: Any, allow_abbrev: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=allow_abbrev, **kwargs)


def read_words() -> None:
    """Let ``4/255`` be a number and ``None`` be nothing, in YAML and on the command line.

    A ``null`` for a setting of a class becomes ``None`` inside jsonargparse, which then reads it as a word.
    The loader is jsonargparse's own, under a private name: it has no public way to say how a word becomes a number, and
    to wrap the type of every option would be two hundred changes. A test fails when it moves.
    """
    loader = get_yaml_default_loader()  # type: ignore[no-untyped-call]
    tag, number = "!fraction", r"\d+(?:\.\d*)?(?:[eE][-+]?\d+)?"
    if tag not in loader.yaml_constructors:
        loader.add_implicit_resolver(tag, re.compile(rf"^[-+]?{number}/{number}$"), list("-+0123456789"))
        loader.add_constructor(tag, _fraction)
        loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^None$"), ["N"])


def _fraction(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float | str:
    text = str(loader.construct_scalar(node))
    above, below = text.split("/")
    return float(above) / float(below) if float(below) else text


def call(
    name: str, words: Sequence[str], function: Callable[..., object], *more: Callable[..., object]
) -> list[Settings]:
    """Read a command's words as the arguments of functions.

    What stands before the ``*`` of a signature is given by place, what stands behind it as ``--name``. A ``bool`` is a
    flag; a ``tuple`` is given as several words, a sequence in brackets; one entry of a mapping is changed by
    ``--name.entry VALUE``. The parameter ``command`` is the command line, for the record; those before a ``/`` are no
    options.

    Args:
        name: of the command, one or two words.
        words: behind the name.
        function: whose arguments they are, and whose docstring describes the command.
        more: others that take some of them.

    Returns:
        For each function its arguments by name.

    Raises:
        UserError: a word is not one of the options, or a value does not fit.
    """
    read_words()
    document = docstring_parser.parse(inspect.getdoc(function) or "")
    about = document.description
    parser = StrictParser(prog=f"lit-robust {name}", description=about, exit_on_error=False)
    mappings: dict[str, Any] = {}
    for each in (function, *more):
        helps = {
            entry.arg_name: entry.description for entry in docstring_parser.parse(inspect.getdoc(each) or "").params
        }
        for parameter in _options(each):
            if parameter.name != "command":
                _add(parser, parameter, helps[parameter.name] or "")
            if get_origin(parameter.annotation) is Mapping and parameter.default is not parameter.empty:
                mappings[parameter.name] = parameter.default
    try:
        found = vars(parser.parse_args(_whole_mappings(words, mappings)))
    except ArgumentError as error:
        options = [option.name.replace("_", "-") for each in (function, *more) for option in _options(each)]
        raise UserError(explain(error, options)) from error
    found["command"] = shlex.join(["lit-robust", *name.split(), *words])
    return [{option.name: found[option.name] for option in _options(each)} for each in (function, *more)]


def _options(function: Function) -> list[inspect.Parameter]:
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return [parameter for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY]


def _add(parser: ArgumentParser, parameter: inspect.Parameter, text: str) -> None:
    """Add one option, or one word, to a parser."""
    kind, default = parameter.annotation, parameter.default
    settings: dict[str, Any] = {"help": " ".join(text.split()).replace("%", "%%"), "type": kind}
    if get_origin(kind) is tuple:
        settings |= {"type": get_args(kind)[0], "nargs": "+"}
    if kind is bool:
        settings = {"help": settings["help"], "action": "store_true"}
    elif default is not parameter.empty:
        settings |= {"default": list(default) if isinstance(default, tuple) else default}
    elif parameter.kind is parameter.KEYWORD_ONLY:
        settings |= {"required": True}
    if parameter.kind is not parameter.KEYWORD_ONLY and default is not parameter.empty:
        settings |= {"nargs": "?"}
    option = f"--{parameter.name.replace('_', '-')}"
    names = ["-o", option] if option == "--output" else [option]
    parser.add_argument(*names if parameter.kind is parameter.KEYWORD_ONLY else [parameter.name], **settings)


def made(kind: type[Made], option: str, settings: Mapping[str, Any]) -> Made:
    """Build a dataclass from the settings that an option collected.

    Raises:
        UserError: a setting is not one of the class's, or its value does not fit.
    """
    parser = StrictParser(exit_on_error=False)
    parser.add_argument(f"--{option}", type=kind)
    try:
        return cast(Made, parser.instantiate_classes(parser.parse_object({option: dict(settings)}))[option])
    except ArgumentError as error:
        raise UserError(explain(error, [one.name for one in fields(kind)])) from error  # type: ignore[arg-type]


def _whole_mappings(words: Sequence[str], defaults: Mapping[str, Any]) -> list[str]:
    """Return the words with each ``--name.entry value`` replaced by the whole mapping, in which that entry is changed.

    Args:
        words: of a command.
        defaults: name of each option that is a mapping to what it is by default.
    """
    values, kept, waiting = dict(defaults), [], list(words)
    while waiting:
        word = waiting.pop(0)
        option, equals, value = word.partition("=")
        name, *path = option.removeprefix("--").split(".")
        if not word.startswith("--") or name not in values or not (equals or waiting):
            kept.append(word)
            continue
        text = value if equals else waiting.pop(0)
        try:
            read = yaml.load(text, get_yaml_default_loader())  # type: ignore[no-untyped-call]
        except yaml.YAMLError as error:
            raise UserError(f"{option} is {text!r}, which is not YAML: write quotation marks around it.") from error
        values[name] = _changed(values[name], path, read)
    return [*kept, *(word for name, value in values.items() for word in (f"--{name}", json.dumps(value)))]


def _changed(content: Any, path: Sequence[str], value: Any) -> Any:
    if not path:
        return value
    inside = content if isinstance(content, Mapping) else {}
    return {**inside, path[0]: _changed(inside.get(path[0]), path[1:], value)}
