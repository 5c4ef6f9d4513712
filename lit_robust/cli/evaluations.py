"""``--evaluations.NAME.SETTING VALUE``: what a test measures and attacks with, changed without editing a recipe."""

import json
import pkgutil
import re
from argparse import ArgumentError
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from lit_robust.callbacks import EvaluationCallback
from lit_robust.cli.mistakes import explain
from lit_robust.cli.options import StrictParser, read_words
from lit_robust.core.errors import UserError

OPTION = "--evaluations"
STEP_FOLLOWS = ("norm", "eps", "steps")  # Where one of them changes, a recipe's step size was meant for another attack.


def evaluation_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words that change evaluations, and the others.

    Example:
        >>> evaluation_words(["test", "--evaluations.ood.known", "null", "--limit", "9"])
        (['--evaluations.ood.known', 'null'], ['test', '--limit', '9'])
    """
    own: list[str] = []
    others: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        is_own = word.partition("=")[0].split(".")[0] == OPTION
        (own if is_own else others).append(word)
        if is_own and "=" not in word and waiting and not waiting[0].startswith("--"):
            own.append(waiting.pop(0))
    return own, others


def changed_callbacks(callbacks: Sequence[Mapping[str, Any]], words: Sequence[str]) -> list[Any]:
    """Return a recipe's callbacks with its evaluations changed as the words say.

    A step size that the recipe gives is for the recipe's attack: where norm, eps or steps change and it does not, it
    follows them, as an attack's step size does by default. So do the further eps of a curve, which another norm drops.

    Args:
        callbacks: ``class_path`` and ``init_args`` of each.
        words: such as ``--evaluations.adversarial.attack.eps 1.0``; null leaves an evaluation out.

    Raises:
        UserError: there is no such evaluation or setting, or a value does not fit.
    """
    names = names_of(callbacks)
    places = {name: place for place, name in enumerate(names) if name}
    read_words()
    parser = StrictParser(exit_on_error=False)
    for name, place in places.items():
        parser.add_argument(f"{OPTION}.{name}", type=EvaluationCallback | None, default=dict(callbacks[place]))
    changes = [word[2:].partition("=")[0].split(".")[1:] for word in words if word.split(".")[0] == OPTION]
    for path in changes:
        _check_name(path[0] if path else "", places)
    try:
        found = yaml.safe_load(parser.dump(parser.parse_args(list(words)), skip_unset=False))["evaluations"]
    except ArgumentError as error:
        raise UserError(explain(error)) from error
    for name, entry in found.items():
        _follow(entry, {".".join(path[1:]) for path in changes if path[0] == name})
    kept = [found[name] if name else dict(entry) for name, entry in zip(names, callbacks, strict=True)]
    return [entry for entry in kept if entry is not None]


def with_evaluations(parser: ArgumentParser, command: str, words: Sequence[str]) -> list[str]:
    """Return a command's words with those that change evaluations replaced by the callbacks that follow from them.

    Args:
        parser: of the command line.
        command: the command that was typed.
        words: it and its options.

    Raises:
        UserError: see ``changed_callbacks``; or the command does not evaluate.
    """
    own, others = evaluation_words(words)
    if not own:
        return others
    if command != "test":
        raise UserError(f"{own[0]} changes what a test measures: give it to `lit-robust test`.")
    parsed = parser.parse_args([word for word in others if not word.startswith("--print_config")])
    callbacks = yaml.safe_load(parser.dump(parsed, skip_unset=False))[command]["trainer"]["callbacks"]
    return [*others, "--trainer.callbacks", json.dumps(changed_callbacks(callbacks or [], own))]


def names_of(callbacks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the name of each evaluation among a recipe's callbacks; empty for other callbacks.

    It is the evaluation's own, where it has one, such as ``autoattack``; else its kind, such as ``adversarial`` or
    ``gray_box_adversarial``; where a recipe has several of a kind, with the test set, such as ``clean_imagenet_a``.
    """
    bare = [_name(entry) for entry in callbacks]
    counts = Counter(bare)
    sets = [str((entry.get("init_args") or {}).get("dataset", "")) for entry in callbacks]
    full = [
        re.sub(r"\W", "_", f"{name}_{of}" if name and counts[name] > 1 and of else name)
        for name, of in zip(bare, sets, strict=True)
    ]
    return [
        f"{name}_{full[:place].count(name) + 1}" if name and name in full[:place] else name
        for place, name in enumerate(full)
    ]


def _name(entry: Mapping[str, Any]) -> str:
    kind = pkgutil.resolve_name(entry["class_path"])
    if not (isinstance(kind, type) and issubclass(kind, EvaluationCallback)):
        return ""
    settings = entry.get("init_args") or {}
    if settings.get("name"):
        return str(settings["name"])
    bare = kind.__name__.removesuffix("Evaluation").removesuffix("Accuracy") or kind.__name__
    threat = settings.get("threat_model", "white-box")
    return f"{'' if threat == 'white-box' else f'{threat}_'}{re.sub(r'(?<!^)(?=[A-Z])', '_', bare).lower()}"


def _check_name(name: str, known: Mapping[str, int]) -> None:
    if name in known:
        return
    if not known:
        raise UserError("The recipe has no evaluations to change: give -c RECIPE before --evaluations.")
    near = [one for one in known if name and one.startswith(name)] or get_close_matches(name, known, n=1)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(f"There is no evaluation {name!r}: {hint}The recipe has {', '.join(known)}.")


def _follow(entry: Any, changed: set[str]) -> None:
    """Let the step size follow a changed attack, and drop the further eps of another norm."""
    settings = {} if entry is None else entry["init_args"]
    attack = settings.get("attack")
    if not isinstance(attack, dict) or "class_path" not in attack:
        return
    kind = pkgutil.resolve_name(attack["class_path"])
    free = {one.name for one in fields(kind) if one.default is None} if is_dataclass(kind) else set()
    is_stale = bool(changed & {f"attack.{name}" for name in STEP_FOLLOWS}) and "attack.step_size" not in changed
    if "step_size" in free and is_stale:
        attack["init_args"]["step_size"] = None
    if "attack.norm" in changed and "eps" not in changed and "eps" in settings:
        settings["eps"] = []
