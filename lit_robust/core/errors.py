"""The one exception that means "the user can correct this", and what its sentences share."""

from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral


class UserError(Exception):
    """A mistake a user can correct: one sentence that names the value and the fix.

    The command line prints the sentence alone, without a traceback, and exits with code 2.
    """


class DataError(UserError):
    """Shards or labels on disk that are not what they must be: names the file and the place in it."""


def printable(text: str) -> str:
    r"""Return a text for a terminal, log or table: on one line, every unprintable character as its escape.

    Names in shards, folders and results files are others' words: a newline, a terminal's control sequence, a mark that
    turns the direction of writing or a lone surrogate may stand in them.

    Example:
        >>> printable("n01/cat\x1b[2J\nEND")
        'n01/cat\\x1b[2J\\nEND'
    """
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def check_choice(what: str, value: object, choices: Iterable[str]) -> None:
    """Raise a UserError unless a value is one of the choices; it names them all, and those that are near.

    Args:
        what: the value's name, such as ``score``.
        value: what was given.
        choices: what may be given.

    Example:
        >>> check_choice("schedule", "cosin", ("constant", "cosine"))
        Traceback (most recent call last):
        lit_robust.core.errors.UserError: schedule is 'cosin', did you mean cosine? Choose one of constant, cosine.
    """
    names = list(choices)
    if isinstance(value, str) and value in names:
        return
    near = get_close_matches(value, names, n=3) if isinstance(value, str) else []
    said = f"{what} is {'null' if value is None else repr(value)}"
    choose = f"hoose one of {', '.join(names)}."
    raise UserError(f"{said}, did you mean {' or '.join(near)}? C{choose}" if near else f"{said}: c{choose}")


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `` (did you mean ...?)`` with the name nearest to a misspelt one of many; empty where none is."""
    close = get_close_matches(name, list(names), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def check_count(what: str, value: object, least: int, most: int | None = None) -> None:
    """Raise a UserError unless a value, the setting ``what``, is a whole number from ``least`` to ``most``, or any."""
    wanted = f"{least} or more" if most is None else f"{least:,} to {most:,}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UserError(f"{what} is {'null' if value is None else repr(value)}: give a whole number, {wanted}.")
    if value < least or (most is not None and value > most):  # type: ignore[operator]
        raise UserError(f"{what} is {value}: give {wanted}.")
