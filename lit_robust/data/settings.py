"""Checks of settings; a config's null reaches a constructor whatever the type that it asks for."""

from pathlib import Path

from lit_robust.core.errors import UserError
from lit_robust.shards.fetch import SCHEMES, is_url, shown

LARGEST_SIDE = 10_000  # px; a square of this side has more pixels than any image that is decoded.
MOST_WORKERS = 1024


def check_given(name: str, value: object) -> None:
    """Raise a UserError where a setting is null."""
    if value is None:
        raise UserError(f"{name} is null: give a value, or leave it out for the usual one.")


def read_root(root: str | Path) -> str:
    """Return a root with ``~`` as the home folder; a URL as it is.

    Raises:
        UserError: it is null, a URL that nothing here can fetch, or names an unknown user.
    """
    check_given("root", root)
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


def check_name(name: str, value: str) -> None:
    """Raise a UserError where a set's name cannot be that of a folder and a part of a metric's key."""
    if not value or "/" in value or value in (".", ".."):
        shown_value = "null" if value is None else repr(value)
        raise UserError(f"{name} is {shown_value}: give the name of one folder below the root.")
