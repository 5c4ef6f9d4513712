"""A command's options, read from the signature and the docstring of the function that does its work."""

import inspect
import json
import re
import shlex
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
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


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Attributes:
        parameter: its name, type, default and whether it is given by place.
        text: its help.
        group: the parameter of a dataclass that it is a field of; None for a parameter of its own.
    """

    parameter: inspect.Parameter
    text: str
    group: inspect.Parameter | None = None


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
    ``--name.entry VALUE``. A parameter of a dataclass is a group of options, its fields: the parameter's default is
    theirs, and the function's docstring may say more of a field than the class's does. The parameter ``command`` is the
    command line, for the record; those before a ``/`` are not options.

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
    about = docstring_parser.parse(inspect.getdoc(function) or "").description
    parser = StrictParser(prog=f"lit-robust {name}", description=about, exit_on_error=False)
    options = {each: list(_options(each)) for each in (function, *more)}
    mappings: dict[str, Any] = {}
    for option in (option for own in options.values() for option in own):
        parameter = option.parameter
        if parameter.name != "command":
            _add(parser, option)
        if get_origin(parameter.annotation) is Mapping and parameter.default is not parameter.empty:
            mappings[parameter.name] = parameter.default
    try:
        found = vars(parser.parse_args(_whole_mappings(words, mappings)))
    except ArgumentError as error:
        names = [option.parameter.name.replace("_", "-") for own in options.values() for option in own]
        raise UserError(explain(error, names)) from error
    found["command"] = shlex.join(["lit-robust", *name.split(), *words])
    return [_arguments(own, found) for own in options.values()]


def _options(function: Function) -> Iterator[Option]:
    texts = _texts(function)
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        kind, default = parameter.annotation, parameter.default
        if is_dataclass(kind) and isinstance(kind, type):
            own = _texts(kind)
            built = {one.name: one.default_factory() for one in fields(kind) if one.default_factory is not MISSING}
            for field in inspect.signature(kind, eval_str=True).parameters.values():
                name = field.name
                given = getattr(default, name, built.get(name, field.default))
                option = field.replace(kind=field.KEYWORD_ONLY, default=given)
                yield Option(option, texts.get(name, own[name]), parameter)
        elif parameter.kind is not parameter.POSITIONAL_ONLY:
            yield Option(parameter, texts.get(parameter.name, ""))


def _texts(function: Function) -> dict[str, str]:
    """Return what a docstring says of each parameter or field."""
    document = docstring_parser.parse(inspect.getdoc(function) or "")
    return {entry.arg_name: " ".join((entry.description or "").split()) for entry in document.params}


def _arguments(options: Sequence[Option], found: Settings) -> Settings:
    """Return a function's arguments, of which a group is one."""
    given: Settings = {}
    groups: dict[str, Settings] = {}
    for option in options:
        name = option.parameter.name
        where = given if option.group is None else groups.setdefault(option.group.name, {})
        where[name] = found[name]
    kinds = {option.group.name: option.group.annotation for option in options if option.group is not None}
    return given | {name: kinds[name](**settings) for name, settings in groups.items()}


def _add(parser: ArgumentParser, option: Option) -> None:
    """Add one option, or one word, to a parser."""
    parameter = option.parameter
    kind, default = parameter.annotation, parameter.default
    settings: dict[str, Any] = {"help": option.text.replace("%", "%%"), "type": kind}
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
    name = f"--{parameter.name.replace('_', '-')}"
    names = ["-o", name] if name == "--output" else [name]
    parser.add_argument(*names if parameter.kind is parameter.KEYWORD_ONLY else [parameter.name], **settings)


def made(kind: type[Made], option: str, settings: Mapping[str, Any]) -> Made:
    """Build a dataclass from the settings that an option collected.

    Raises:
        UserError: a setting is not one of the class's, or its value does not fit.
    """
    parser = StrictParser(exit_on_error=False)
    name = option.replace("-", "_")  # As the parser does; a user's name for a network may have either.
    parser.add_argument(f"--{name}", type=kind)
    try:
        return cast(Made, parser.instantiate_classes(parser.parse_object({name: dict(settings)}))[name])
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
