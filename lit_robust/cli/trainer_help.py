"""``lit-robust fit --help``: what a person changes, in one screen, with a recipe's own values next to it."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from textwrap import wrap
from typing import Any

import yaml

from lit_robust.cli.recipes import SAFE_LOADER, with_recipes

ALL = "all"
ABOUT = {
    "fit": "Train a network, as a recipe says.",
    "validate": "Measure accuracy on the validation images.",
    "test": "Measure what a recipe's evaluations say; write results.json into the run's folder.",
    "predict": "Name a class for every validation image; write predictions.csv into the run's folder.",
}
Place = tuple[str, ...]
Option = tuple[str, str, Place]
"""An option, what it is with its unit, and where a recipe has it."""

MODEL: Place = ("model", "init_args")
DATA: Place = ("data", "init_args")
TRAINER: Place = ("trainer",)
NETWORK: Mapping[str, Sequence[Option]] = {
    "network": (
        ("--model.network.name", "torchvision/NAME, timm/NAME or package.module:function", (*MODEL, "network", "name")),
        ("--model.network.num_classes", "classes", (*MODEL, "network", "num_classes")),
        ("--model.network.weights", "`pretrained`, a file, or null for random", (*MODEL, "network", "weights")),
    ),
    "data": (
        ("--data.root", "folder that holds imagenet/ and the other sets", (*DATA, "root")),
        ("--data.eval_batch_size", "images a device when testing", (*DATA, "eval_batch_size")),
        ("--data.num_workers", "processes a device that read images", (*DATA, "num_workers")),
    ),
}
TRAINING: Mapping[str, Sequence[Option]] = {
    "training": (
        ("--data.batch_size", "images a device and step", (*DATA, "batch_size")),
        ("--trainer.max_epochs", "passes over the training images", (*TRAINER, "max_epochs")),
        (
            "--model.optimisation.learning_rate",
            "the highest, for the batch of all devices",
            (*MODEL, "optimisation", "learning_rate"),
        ),
        ("--model.optimisation.weight_decay", "as of torch's optimisers", (*MODEL, "optimisation", "weight_decay")),
        (
            "--model.optimisation.schedule",
            "constant, step, cosine, one_cycle, ...",
            (*MODEL, "optimisation", "schedule"),
        ),
    ),
    "attack that makes training images (adversarial modules)": (
        ("--model.attack.norm", "l1, l2 or linf", (*MODEL, "attack", "norm")),
        ("--model.attack.eps", "radius, pixels in [0, 1]; 4/255 is a number", (*MODEL, "attack", "eps")),
        ("--model.attack.steps", "forward and backward passes", (*MODEL, "attack", "steps")),
        ("--model.attack.step_size", "in the unit of eps", (*MODEL, "attack", "step_size")),
    ),
}
TESTING: Mapping[str, Sequence[Option]] = {
    "what is measured": (
        ("--limit", "images of each set, for a quick look", ()),
        ("--report", "writes the page into the run's folder at the end", ()),
        ("--evaluations.NAME.SETTING", "any setting, such as .adversarial.attack.eps 4/255", ()),
        ("--evaluations.NAME", "null leaves it out", ()),
    ),
}
RUN: Mapping[str, Sequence[Option]] = {
    "devices": (
        ("--trainer.accelerator", "auto, gpu or cpu", (*TRAINER, "accelerator")),
        ("--trainer.devices", "how many of a machine", (*TRAINER, "devices")),
        ("--trainer.num_nodes", "machines", (*TRAINER, "num_nodes")),
        ("--trainer.precision", "auto, 32-true, bf16-mixed or 16-mixed", (*TRAINER, "precision")),
    ),
    "run": (
        (
            "--trainer.default_root_dir",
            "the run's folder, for everything that is written",
            (*TRAINER, "default_root_dir"),
        ),
        ("--ckpt_path", "a checkpoint to go on from, or to test", ()),
        ("--seed_everything", "of everything random", ("seed_everything",)),
        ("--trainer.logger", "false logs nothing", ()),
    ),
}
WIDTH = 36


def asks_for_help(words: Sequence[str]) -> bool:
    """Tell whether a command's words ask for the short help; ``--help all`` asks for the parser's own."""
    places = [place for place, word in enumerate(words) if word in ("-h", "--help")]
    return bool(places) and words[places[0] + 1 : places[0] + 2] != [ALL]


def changed(command: str) -> list[str]:
    """Return the options of one of Lightning's commands that people change, those of the recipe's classes included."""
    groups = {**NETWORK, **({"fit": TRAINING, "test": TESTING}.get(command, {})), **RUN}
    return [name for options in groups.values() for name, _, place in options if place]


def trainer_help(words: Sequence[str]) -> str:
    """Return the help of one of Lightning's commands, with the values of the recipes that stand behind ``-c``.

    Args:
        words: the command and its options.

    Raises:
        UserError: a recipe does not exist.
    """
    command = words[0]
    found = with_recipes(words)
    files = [Path(word) for before, word in pairwise(found) if before in ("-c", "--config")]
    recipe: dict[str, Any] = {}
    for file in files:
        recipe = _joined(recipe, yaml.load(file.read_text(encoding="utf-8"), SAFE_LOADER) or {})
    groups = {**NETWORK, **({"fit": TRAINING, "test": TESTING}.get(command, {})), **RUN}
    lines = [f"usage: lit-robust {command} -c RECIPE [-c OVERLAY ...] [OPTIONS]", "", ABOUT[command], ""]
    for title, options in groups.items():
        shown = [_line(option, recipe) for option in options if not recipe or _applies(option, recipe)]
        lines += [f"{title}:", *shown] if shown else []
    if command == "test" and (names := _evaluations(recipe)):
        lines += wrap(f"NAME is one of: {', '.join(names)}", 100, initial_indent="  ", subsequent_indent="    ")
    example = _at(recipe, ("model", "class_path")) or "lit_robust.modules.AdversarialModule"
    lines += [
        "",
        "Every key of a recipe is an option; `lit-robust recipes` lists the recipes. To see the rest:" if recipe else
        "Give -c RECIPE to see its values here; `lit-robust recipes` lists them. To see the rest:",
        f"  lit-robust {command} -c RECIPE --print_config",
        f"  lit-robust {command} --model.help {example}",
        f"  lit-robust {command} --help {ALL}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _line(option: Option, recipe: Mapping[str, Any]) -> str:
    name, about, place = option
    value = _value(recipe, place)
    default = f"  [{value}]" if value else ""
    return f"  {name:<{WIDTH}}{about}{default}".rstrip()


def _applies(option: Option, recipe: Mapping[str, Any]) -> bool:
    """Tell whether a recipe's module has the group of settings that an option is of."""
    place = option[2]
    return "attack" not in place or isinstance(_at(recipe, place[:-1]), dict)


def _value(recipe: Mapping[str, Any], place: Place) -> str:
    """Return a recipe's value; of data settings, that of the first set where sets have their own."""
    value = _at(recipe, place) if place else None
    if value is None and place[:2] == DATA:
        members = _at(recipe, (*DATA, "members")) or [{}]
        value = _at(members[0], ("init_args", place[-1]))
    group = _at(recipe, place[:-1]) if place else None
    is_null = value is None and isinstance(group, dict) and place[-1] in group
    return "null" if is_null else "" if value is None else str(value)


def _at(content: Any, place: Place) -> Any:
    for key in place:
        content = content.get(key) if isinstance(content, dict) else None
        content = content.get("init_args", content) if key == "attack" and isinstance(content, dict) else content
    return content


def _joined(recipe: dict[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe with an overlay's keys in place of its own; ``key+`` adds to a list."""
    joined = dict(recipe)
    for key, value in overlay.items():
        own = joined.get(key.removesuffix("+"))
        if key.endswith("+"):
            joined[key[:-1]] = [*(own or []), *(value if isinstance(value, list) else [value])]
        else:
            joined[key] = _joined(own, value) if isinstance(own, dict) and isinstance(value, dict) else value
    return joined


def _evaluations(recipe: Mapping[str, Any]) -> list[str]:
    callbacks = _at(recipe, ("trainer", "callbacks")) or []
    if not callbacks:
        return []
    # Classes tell which callbacks are evaluations, and so torch is imported here alone.
    from lit_robust.cli.evaluations import names_of

    return [name for name in names_of([entry for entry in callbacks if isinstance(entry, dict)]) if name]
