"""The recipes in ``configs/``, found by their short names from any folder, with the wheel, too."""

import re
import shutil
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path

import yaml

from lit_robust.core.errors import UserError
from lit_robust.core.files import recipes_folder

SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def names() -> list[str]:
    """Return the short names of all recipes, such as ``imagenet/madry``."""
    place = recipes_folder()
    return sorted(file.relative_to(place).with_suffix("").as_posix() for file in place.rglob("*.yaml"))


def recipe(name: str) -> Path:
    """Return the file of a recipe.

    Args:
        name: such as ``imagenet/madry``, with ``.yaml`` and ``configs/`` or without.

    Raises:
        UserError: there is no such recipe.
    """
    short = name.removeprefix("configs/").removesuffix(".yaml")
    if short not in names():
        close = get_close_matches(short, names(), n=1)
        hint = f"did you mean {close[0]}?" if close else "`lit-robust recipes` lists them."
        raise UserError(f"There is no recipe {name!r}: {hint}")
    return recipes_folder() / f"{short}.yaml"


def with_recipes(words: Sequence[str]) -> list[str]:
    """Return a command's words with the short name behind each ``-c`` replaced by the recipe's file.

    A file of that name comes first; other paths stay as they are.

    Raises:
        UserError: a word behind ``-c`` is neither a path nor a recipe.
    """
    found = list(words)
    for place, word in enumerate(found):
        before = found[place - 1] if place else ""
        option, equals, name = word.partition("=") if word.startswith("--config=") else (before, "", word)
        is_name = re.fullmatch(r"(configs/)?[\w-]+(/[\w-]+)*(\.yaml)?", name) is not None
        if option in ("-c", "--config") and is_name and not Path(name).exists():
            name = str(recipe(name))
            found[place] = f"{option}{equals}{name}" if equals else name
        if option in ("-c", "--config") and Path(name).is_file():
            _check(Path(name))
    return found


def _check(file: Path) -> None:
    """Raise a UserError where a file is not a recipe; the parser would not say which, nor where."""
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), SAFE_LOADER)
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not a text: name a recipe in YAML.") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else 0
        has_tab = any("\t" in text for text in file.read_text(encoding="utf-8").splitlines()[line : line + 1])
        reason = "a tab stands where YAML takes spaces alone" if has_tab else error.problem
        raise UserError(f"{file} is not YAML: in line {line + 1} {reason}.") from error
    content = {} if content is None else content
    if not isinstance(content, dict) or not isinstance(content.get("trainer", {}), dict):
        raise UserError(f"{file} is not a recipe: it needs settings by name, those of the trainer beneath trainer.")


def about(name: str) -> str:
    """Return the first sentence of a recipe's comment, which says what it is."""
    lines = (recipes_folder() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = [line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("# "), lines)]
    return re.split(r"(?<!al)\. ", " ".join(comment), maxsplit=1)[0].rstrip(".")


def copy(name: str, to: Path | None) -> Path:
    """Copy a recipe, to be changed.

    Args:
        name: of the recipe.
        to: the file to write, or a folder for it; null for this folder.

    Returns:
        The file.

    Raises:
        UserError: there is no such recipe, or the file is there already.
    """
    source = recipe(name)
    target = Path() if to is None else to
    if target.is_dir():
        target /= source.name
    if target.exists():
        raise UserError(f"{target} is there already: name another file, as in `lit-robust recipes copy {name} FILE`.")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target
