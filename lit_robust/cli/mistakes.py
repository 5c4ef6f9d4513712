"""Users' mistakes in one sentence: what was wrong, where, and what to write instead."""

import errno
import inspect
import pickle
import pkgutil
import re
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from importlib import import_module
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints
from urllib.error import URLError

from jsonargparse import Namespace

from lit_robust.core.errors import UserError
from lit_robust.core.files import FULL, refused_write

ROOMS = ("callbacks", "data", "modules", "attacks")  # Whose classes a recipe names.
NOISE = re.compile(
    r"Does not validate against|Subtypes: |Errors:|Subclass types expect|Expected a path but|- a (class|dict)"
)


def explain(error: BaseException | None, options: Sequence[str] = ()) -> str | None:
    """Return the sentence for a user's mistake, however deep a library has wrapped it; null for anything else.

    Args:
        error: what was raised.
        options: dotted names of the options there are, of which the nearest is suggested.
    """
    outermost = error
    while error is not None:
        if isinstance(error, UserError):
            return str(error)
        if isinstance(error, pickle.UnpicklingError):
            return "A checkpoint holds Python objects besides tensors and plain values: load one that was saved here."
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, *FULL):
            return refused_write(error.filename or "a file", error)
        # Named, not imported: neither library may be loaded for the sake of its errors.
        if type(error).__name__ == "MisconfigurationException":
            if "gpu backend" in str(error):
                return "torch has no GPU here: use a machine with one, or the processor, by -c trainer/cpu at the end."
            return f"{' '.join(str(error).split()).rstrip('.!')}; change the trainer's settings."
        if isinstance(error, URLError) or type(error).__module__.startswith(("huggingface_hub.", "httpx")):
            return (
                f"Nothing can be downloaded from here ({' '.join(str(error).split()).rstrip('.')}): where the network "
                "has pretrained weights, give them as a file, or copy the cache of a machine that has them "
                "(TORCH_HOME, HF_HOME)."
            )
        if type(error).__module__.startswith("wandb."):
            return f"W&B refuses: {' '.join(str(error).split()).rstrip('.')}; run `wandb login`, or log offline."
        error = error.__cause__ or error.__context__
    return parser_sentence(str(outermost), options) if isinstance(outermost, ArgumentError) else None


def parser_sentence(message: str, options: Sequence[str] = ()) -> str:
    """Return the innermost reason of a message of jsonargparse's, which nests one for every class on the way.

    Args:
        message: of an ``ArgumentError``, many lines.
        options: dotted names of those that the parser takes.
    """
    keys: list[str] = []
    owner, reason = "", ""
    for line in _first_alternative(message):
        key = re.match(r'(?:- )?Parser key "([^"]+)":\s*(.*)', line)
        problem = re.match(r"(?:- )?Problem with given class_path '([^']+)':\s*(.*)", line)
        if key:
            keys.append(key[1])
        if problem:
            owner = problem[1]
        rest = key[2] if key else problem[2] if problem else line
        if rest and not NOISE.search(rest):
            reason = reason or rest.removeprefix("- ")
    given = re.search(r"^\s*Given value: (.*)$", message, re.MULTILINE)
    value = given[1] if given else ""
    where = f"In {'.'.join(keys)}" if keys else ""
    where += f" ({owner.rsplit('.', 1)[-1]})" if owner else ""
    if reason.startswith("Expected a <class"):
        # Each alternative of a union of simple types has a line of its own.
        union = re.search(rf"Subtypes: \[((?:<class '[^']+'>(?:, )?)+)\]\s+Errors:\s+- {re.escape(reason)}", message)
        reason = f"Expected a {union[1]}. Got value: {value}" if union else reason
    return f"{where}: {_plain(reason, owner, value, options)}".removeprefix(": ")


def _first_alternative(message: str) -> list[str]:
    """Return the stripped lines up to the second alternative of a union, which mostly is "or nothing"."""
    kept: list[str] = []
    bullet = None
    for line in message.splitlines():
        text, indent = line.strip(), len(line) - len(line.lstrip())
        if text.startswith("Given value"):
            break
        if text.startswith("- ") and not NOISE.search(text):
            if bullet is not None and indent <= bullet:
                break
            bullet = indent if bullet is None else bullet
        kept.append(text)
    return kept


def _plain(reason: str, owner: str, value: str, options: Sequence[str]) -> str:
    """Return a reason in plain words, with what to write instead.

    Args:
        reason: one line of jsonargparse's.
        owner: import path of the class whose setting it is; empty for the command itself.
        value: what was given.
        options: dotted names of the command's options.
    """
    if "arguments are required: " in reason and {"data", "model"} & set(re.findall(r"\w+", reason)):
        return "name a recipe by -c; `lit-robust recipes` lists them."
    if unvalued := re.search(r"argument (--[\w.]+): expected one argument", reason):
        return f"the last option that begins with {unvalued[1]} has no value: write one after it."
    if unknown := re.search(r"option '([^']+)'|unrecognized arguments: (?:--)?([^\s=]+)|Option '([^']+)'", reason):
        name = next(filter(None, unknown.groups()))
        group = re.search(r"Group '([^']+)'", reason)
        return f"there is no option {name!r}; {_suggest(name, _options(owner, group) if owner else options)}"
    if choice := re.search(r"Expected an? typing\.Literal\[(.*?)\](?:\. Got value: (.*))?", reason):
        choices, value = re.findall(r"'([^']*)'", choice[1]), choice[2] or value
        near = _near(value, choices)
        return f"expected one of {', '.join(choices)}, got {value!r}" + (f"; {_did_you_mean(near)}" if near else ".")
    if expected := re.search(r"Expected an? (.*<class .*?>.*?)(?:\.? Got value: (.*)|$)", reason):
        value = expected[2] or value
        kinds = [kind for kind in re.findall(r"<class '([^']+)'>", expected[1]) if kind != "NoneType"]
        if kinds[0] == "collections.abc.Mapping":
            value = value.strip("\"'")
            return f"expected settings by name, got {value!r}; write one as --OPTION.NAME VALUE."
        if kinds[0] in ("collections.abc.Sequence", "list"):
            example = f"[{value}]" if re.fullmatch(r"[\w., /-]+", value) else "[1, 2]"
            return f"expected a list, got {value!r}; write it in brackets, such as {example}."
        return f"expected {' or '.join(kinds)}, got {value!r}; `--help` tells what it means."
    if number := re.match(r"Not of type \w+: (?:(\S+) )?does not conform to restriction v(>=?)(\S+)", reason):
        low = "above" if number[2] == ">" else "of at least"
        return f"expected a whole number {low} {number[3]}, got {number[1] or value!r}."
    if re.match(r"Not of type \w+: int\(\) argument .* 'NoneType'", reason):
        return "expected a whole number, got null."
    if number := re.match(r"Not of type \w+: invalid literal .* '(.*)'", reason):
        return f"expected a whole number, got {number[1]!r}."
    if missing := re.search(r"Expected a dot import path string: (\S+)|no attribute '([^']+)'|No module named", reason):
        name = missing[1] or missing[2] or owner
        near = _near(name, _classes())
        return f"there is no class {name!r}; {_did_you_mean(near)}" if near else _why_no_class(owner or name)
    if subclass := re.search(r"Not a valid subclass of (\w+)", reason):
        return f"{value!r} is not a {subclass[1]}: write the name or the import path of one."
    if "codec can't decode" in reason:
        return "a file that is not a text stands where settings are read; give weights as --model.network.weights FILE."
    if "instantiatable class" in reason:
        is_path = re.fullmatch(r"\w+(\.\w+)+", value)
        return _why_no_class(value) if is_path else "give -c, or a class, before the options that change it."
    if kind := re.match(r"Import path does not correspond to a subclass of (\w+)", reason):
        return f"{value} is not a {kind[1]}: write the import path of one."
    if value.endswith(".py") and "sub-config file" in reason:
        return f"{value} is a file of Python: write the import path of a class in it, such as {value[:-3]}.NAME."
    return f"{reason.rstrip('.')}; `--help` shows the options and their types."


def _why_no_class(path: str) -> str:
    """Return why an import path names no class that can be made, and what to do about it."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name, None) if module else None
    except ModuleNotFoundError as error:
        if f"{module}.".startswith(f"{error.name}."):
            return f"there is no class {path!r}: no module {error.name} is found from this folder."
        return f"{module} cannot be imported ({error}): install what it needs, or correct it."
    except Exception as error:  # Whatever the user's own module raises.
        return f"{module} cannot be imported ({type(error).__name__}: {error}): correct it."
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        return f"{path} lacks {', '.join(missing)}: write {'these methods' if len(missing) > 1 else 'this method'}."
    return f"there is no class {path!r}: {f'{module} has none of that name' if module else 'write an import path'}."


def _classes() -> list[str]:
    rooms = [import_module(f"lit_robust.{room}") for room in ROOMS]
    return [name for room in rooms for name in (*getattr(room, "__all__", ()), *getattr(room, "FILES", ()))]


def _options(owner: str, group: re.Match[str] | None) -> list[str]:
    """Return the dotted names of all options of a class, or of one of its settings that is a dataclass."""
    module, _, class_name = owner.rpartition(".")
    names = list(_dotted(getattr(import_module(module), class_name)))
    prefix = f"{group[1]}." if group else ""
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def _dotted(cls: type) -> Iterator[str]:
    hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    for name in inspect.signature(cls).parameters:
        yield name
        if kind := settings_type(hints.get(name)):
            yield from (f"{name}.{inner}" for inner in _dotted(kind))


def settings_type(hint: Any) -> type | None:
    """Return the dataclass that a type is, or may be null in place of; null for any other type."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    return kinds[0] if len(kinds) == 1 and isinstance(kinds[0], type) and is_dataclass(kinds[0]) else None


def refuse_flat_settings(place: str, options: Any) -> None:
    """Refuse a value where a class takes a group of settings; the parser would let it through, and break later.

    Args:
        place: dotted name of the options.
        options: of a command, or any part of them.

    Raises:
        UserError: a group of settings has a value in its place.
    """
    if isinstance(options, list):
        for number, entry in enumerate(options):
            refuse_flat_settings(f"{place}.{number}", entry)
    elif isinstance(options, Namespace):
        hints = get_type_hints(pkgutil.resolve_name(options.class_path).__init__) if "class_path" in options else {}
        for key, value in (options.init_args if hints and "init_args" in options else options).__dict__.items():
            kind = settings_type(hints.get(key))
            if kind is not None and isinstance(value, bool | int | float | str | list):
                raise UserError(
                    f"{place}.{key} is {value!r}, and stands for a group of settings, {kind.__name__}: write them "
                    "beneath it."
                )
            refuse_flat_settings(f"{place}.{key}", value)


def _suggest(name: str, options: Sequence[str]) -> str:
    """Return which of the options is nearest to a name; all of those on its level where none is near.

    A name without its place, such as weights or data_root, is found at any level, and optimisation.rate beneath model.
    """
    level, end = name.rpartition(".")[0], f"_{name.replace('-', '_')}"
    deep = [option for option in options if "." in option and f"_{option.replace('.', '_')}".endswith(end)]
    if not level and deep:
        return _did_you_mean(sorted(deep, key=len)[:3])
    siblings = [option for option in options if option.rpartition(".")[0] == level]
    if level and not siblings:
        siblings = [option for option in options if option.rpartition(".")[0].endswith(f".{level}")]
    lasts = {option.rpartition(".")[2]: option for option in siblings}
    if near := [lasts[last] for last in _near(name.rpartition(".")[2], list(lasts))]:
        return _did_you_mean(near)
    if not siblings and (near := _near(name, options)):
        return _did_you_mean(near)
    known = siblings or [option for option in options if "." not in option]
    return f"choose one of {', '.join(known)}." if known else "there are none."


def _near(name: str, options: Sequence[str]) -> list[str]:
    """Return the options that a name is the beginning of, or else the one that is most like it."""
    begun = [option for option in options if option.lower().startswith(name.lower())][:3]
    return begun or get_close_matches(name, options, n=1, cutoff=0.6)


def _did_you_mean(near: Sequence[str]) -> str:
    return f"did you mean {' or '.join(map(repr, near))}?"
