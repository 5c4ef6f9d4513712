"""Checks of settings; a config's null reaches a constructor whatever the type that it asks for."""

from pathlib import Path

from lit_robust.core.errors import UserError
from lit_robust.shards.fetch import SCHEMES, is_url, shown

LARGEST_SIDE = 10_000  # px; a square of this side has more pixels than any image that is decoded.
MOST_WORKERS = 1024


def check_at_least(least: int, **settings: int) -> None:
    """Raise a UserError where one of the named settings is not a number of at least ``least``."""
    for name, value in settings.items():
        if not isinstance(value, int) or value < least:
            raise UserError(f"{name} is {_shown(value)}: give {least} or more.")


def check_between(least: int, most: int, **settings: int) -> None:
    """Raise a UserError where one of the named settings is not a number from ``least`` to ``most``."""
    for name, value in settings.items():
        if not isinstance(value, int) or not least <= value <= most:
            raise UserError(f"{name} is {_shown(value)}: give {least:,} to {most:,}.")


def check_given(**settings: object) -> None:
    """Raise a UserError where one of the named settings is null."""
    for name, value in settings.items():
        if value is None:
            raise UserError(f"{name} is null: give a value, or leave it out for the usual one.")


def read_root(root: str | Path) -> str:
    """Return a root with ``~`` as the home folder; a URL as it is.

    Raises:
        UserError: it is null, a URL that nothing here can fetch, or names an unknown user.
    """
    check_given(root=root)
    text = str(root)
    if is_url(text):
        return text
    if "://" in text:
        raise UserError(
            f"The root {shown(text)} is not a URL that can be read: give one of {', '.join(SCHEMES)}, or a folder."
        )
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        raise UserError(f"The root {text} cannot be found ({error}): write the whole path.") from error


def check_name(**settings: str) -> None:
    """Raise a UserError where a set's name cannot be that of a folder and a part of a metric's key."""
    for name, value in settings.items():
        if not value or "/" in value or value in (".", ".."):
            raise UserError(f"{name} is {_shown(value)}: give the name of one folder below the root.")


def _shown(value: object) -> str:
    return "null" if value is None else repr(value)
