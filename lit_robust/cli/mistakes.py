"""Users' mistakes in one sentence: what was wrong, where, and what to write instead."""

import errno
import inspect
import pickle
import re
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import get_args, get_type_hints
from urllib.error import URLError

from lit_robust.core.errors import UserError
from lit_robust.core.files import FULL, refused_write

TOP_LEVEL = ("config", "seed_everything", "trainer", "model", "data", "ckpt_path", "weights_only", "verbose")
NOISE = re.compile(
    r"Does not validate against|Subtypes: |Errors:|Subclass types expect|Expected a path but|- a (class|dict)"
)


def explain(error: BaseException | None) -> str | None:
    """Return the sentence for a user's mistake, however deep a library has wrapped it; null for anything else."""
    outermost = error
    while error is not None:
        if isinstance(error, UserError):
            return str(error)
        if isinstance(error, pickle.UnpicklingError):
            return "A checkpoint holds Python objects beside tensors and plain values: load one that was saved here."
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, *FULL):
            return refused_write(error.filename or "a file", error)
        # Named, not imported: neither library may be loaded for the sake of its errors.
        if type(error).__name__ == "MisconfigurationException":
            return f"{' '.join(str(error).split()).rstrip('.')}; change the trainer's settings."
        if isinstance(error, URLError) or type(error).__module__.startswith(("huggingface_hub.", "httpx")):
            return (
                f"Nothing can be downloaded from here ({' '.join(str(error).split()).rstrip('.')}): where the network "
                "has pretrained weights, give them as a file, or copy the cache of a machine that has them "
                "(TORCH_HOME, HF_HOME)."
            )
        if type(error).__module__.startswith("wandb."):
            return f"W&B refuses: {' '.join(str(error).split()).rstrip('.')}; run `wandb login`, or log offline."
        error = error.__cause__ or error.__context__
    return parser_sentence(str(outermost)) if isinstance(outermost, ArgumentError) else None


def parser_sentence(message: str, options: Sequence[str] = TOP_LEVEL) -> str:
    """Return the innermost reason of a message of jsonargparse's, which nests one for every class on the way.

    Args:
        message: of an ``ArgumentError``, many lines.
        options: what the parser takes on its first level.
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
    if given and re.fullmatch(r"Expected an? <class '[^']+'>", reason):
        # Of an option that may be nothing, too, the value stands behind the alternatives; the innermost one first.
        reason += f". Got value: {given[1]}"
    value = given[1] if given else ""
    if number := re.match(r"Not of type \w+: (?:(\S+) )?does not conform to restriction v(>=?)(\S+)", reason):
        low = "above" if number[2] == ">" else "of at least"
        reason = f"expected a whole number {low} {number[3]}, got {number[1] or value!r}"
    elif number := re.match(r"Not of type \w+: invalid literal .* '(.*)'", reason):
        reason = f"expected a whole number, got {number[1]!r}"
    where = f"In {'.'.join(keys)}" if keys else ""
    where += f" ({owner.rsplit('.', 1)[-1]})" if owner else ""
    return f"{where}: {_mend(reason, owner, options)}".removeprefix(": ")


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


def _mend(reason: str, owner: str, options: Sequence[str]) -> str:
    unknown = re.search(r"option '([^']+)'|unrecognized arguments: (?:--)?([^\s=]+)|Option '([^']+)'", reason)
    if unknown:
        name = next(filter(None, unknown.groups()))
        group = re.search(r"Group '([^']+)'", reason)
        there = _options(owner, group[1] if group else "") if owner else options
        if not owner and name.startswith("trainer."):
            from pytorch_lightning import Trainer

            there = [f"trainer.{option}" for option in _dotted(Trainer)]
        return f"there is no option {name!r}; {_suggest(name, there)}"
    expected = re.search(r"Expected an? <class '([^']+)'>\.? Got value: (.*)", reason)
    if expected and expected[1] in ("collections.abc.Sequence", "list"):
        example = f"[{expected[2]}]" if re.fullmatch(r"[\w., /-]+", expected[2]) else "[1, 2]"
        return f"expected a list, got {expected[2]!r}; write it in brackets, such as {example}."
    if expected:
        return f"expected {expected[1]}, got {expected[2]!r}; `--help` tells what it means."
    if "instantiatable class" in reason:
        return "give -c, or a class, before the options that change it."
    return f"{reason.rstrip('.')}; `--help` shows the options and their types."


def _options(owner: str, group: str) -> list[str]:
    """Return the dotted names of all options of a class, or of one of its settings that is a dataclass."""
    module, _, class_name = owner.rpartition(".")
    names = list(_dotted(getattr(import_module(module), class_name)))
    return [name.removeprefix(f"{group}.") for name in names if name.startswith(f"{group}.")] if group else names


def _dotted(cls: type) -> Iterator[str]:
    hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    for name in inspect.signature(cls).parameters:
        yield name
        kinds = (hints.get(name), *get_args(hints.get(name)))
        for kind in kinds:
            if isinstance(kind, type) and is_dataclass(kind):
                yield from (f"{name}.{inner}" for inner in _dotted(kind))


def _suggest(name: str, options: Sequence[str]) -> str:
    """Return which of the options is nearest to a name; all of those on its level where none is near."""
    if close := get_close_matches(name, options, n=1, cutoff=0.6):
        return f"did you mean {close[0]!r}?"
    level = name.rpartition(".")[0]
    beside = [option for option in options if option.rpartition(".")[0] == level]
    return f"choose one of {', '.join(beside or [option for option in options if '.' not in option])}."
