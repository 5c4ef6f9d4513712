"""Users' mistakes in one sentence: what was wrong, where, and what to write instead."""

import errno
import inspect
import pickle
import re
from argparse import ArgumentError
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import get_type_hints
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


def parser_sentence(message: str) -> str:
    """Return the innermost reason of a message of jsonargparse's, which nests one for every class on the way.

    Args:
        message: of an ``ArgumentError``, many lines.
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
    where = f"In {'.'.join(keys)}" if keys else ""
    where += f" ({owner.rsplit('.', 1)[-1]})" if owner else ""
    return f"{where}: {_mend(reason, owner)}".removeprefix(": ")


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


def _mend(reason: str, owner: str) -> str:
    unknown = re.search(r"option '([^']+)'|unrecognized arguments: (?:--)?([^\s=]+)|Option '([^']+)'", reason)
    if unknown:
        name = next(filter(None, unknown.groups()))
        group = re.search(r"Group '([^']+)'", reason)
        return f"there is no option {name!r}; {_suggest(name, _options(owner, group[1] if group else '', name))}"
    expected = re.search(r"Expected an? <class '([^']+)'>\.? Got value: (.*)", reason)
    if expected and expected[1] in ("collections.abc.Sequence", "list"):
        example = f"[{expected[2]}]" if re.fullmatch(r"[\w., /-]+", expected[2]) else "[1, 2]"
        return f"expected a list, got {expected[2]!r}; write it in brackets, such as {example}."
    if expected:
        return f"expected {expected[1]}, got {expected[2]!r}; `--help` tells what it means."
    if "instantiatable class" in reason:
        return "give -c, or a class, before the options that change it."
    return f"{reason.rstrip('.')}; `--help` shows the options and their types."


def _options(owner: str, group: str, name: str) -> list[str]:
    """Return the options there are where ``name`` was given."""
    if not owner:
        if not name.startswith("trainer."):
            return list(TOP_LEVEL)
        from pytorch_lightning import Trainer

        return [f"trainer.{option}" for option in inspect.signature(Trainer.__init__).parameters if option != "self"]
    module, _, class_name = owner.rpartition(".")
    cls = getattr(import_module(module), class_name)
    if group:
        cls = get_type_hints(cls.__init__)[group.split(".")[0]]
    first, dot, _ = name.partition(".")
    options: Iterable[str] = inspect.signature(cls).parameters
    return [option + name[len(first) :] if dot else option for option in options]


def _suggest(name: str, options: Sequence[str]) -> str:
    close = get_close_matches(name, options, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(options)}."
