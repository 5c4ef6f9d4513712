"""Checks of settings; a config's null reaches a constructor whatever the type that it asks for."""

import os
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lit_robust.core.errors import UserError, check_count
from lit_robust.shards.fetch import SCHEMES, is_url, shown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LARGEST_SIDE = 10_000  # px; a square of this side has more pixels than any image that is decoded.
MOST_WORKERS = 1024
MOST_BY_THEMSELVES = 12  # They decode some 7,000 images/s; shards are read in lanes that 12 share evenly.

NumWorkers = int | Literal["auto"]
"""How many processes a loader has; ``auto`` follows the cores there are."""


def check_workers(num_workers: NumWorkers) -> None:
    """Raise a UserError where a number of worker processes is not one from 0 up, nor ``auto``."""
    if num_workers != "auto":
        check_count("num_workers", num_workers, 0, MOST_WORKERS)


def count_workers(num_workers: NumWorkers, ranks: int) -> int:
    """Return how many processes a loader has: of ``auto`` a core each, but for the core of each rank's own process.

    Args:
        num_workers: what was asked for.
        ranks: processes of this run on this machine, which share its cores; a task of SLURM knows its own share.
    """
    if num_workers != "auto":
        return num_workers
    own = os.environ.get("SLURM_CPUS_PER_TASK", "")
    # macOS does not say which cores are this process's.
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = int(own) if own.isdecimal() else there // ranks
    return min(max(cores - 1, 1), MOST_BY_THEMSELVES)


def check_given(name: str, value: object) -> None:
    """Raise a UserError where a setting is null."""
    if value is None:
        raise UserError(f"{name} is null: give a value, or leave it out for the usual one.")


def check_groups(settings: "DataclassInstance") -> None:
    """Raise a UserError where something else stands for a group of settings, such as a size for a whole crop."""
    for each in fields(settings):
        value, group = getattr(settings, each.name), type(each.default)
        if is_dataclass(group) and not isinstance(value, group):
            raise UserError(f"{each.name} is {value!r}: give the group of settings, such as {each.default}.")


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
