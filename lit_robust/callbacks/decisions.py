"""Decisions that people and networks were recorded to take on cue-conflict images."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lit_robust.core.errors import UserError

# Columns of (observer, image, decision): those of model-vs-human's and texture-vs-shape's files, and of a plain table.
_FORMS = (("subj", "imagename", "object_response"), ("model", "image", "decision"))


def image_stem(name: str) -> str:
    """Return what tells an image from others in a sample's key or in a published file name.

    Published names have a prefix for each trial, which ends in an underscore.

    Example:
        >>> image_stem("0001_s5n_dnn_0_airplane_00_airplane1-bicycle2.png"), image_stem("airplane/airplane1-bear2")
        ('airplane1-bicycle2', 'airplane1-bear2')
    """
    return name.rsplit("/", 1)[-1].split(".")[0].rsplit("_", 1)[-1]


def read_decisions(place: Path) -> dict[str, dict[str, str]]:
    """Read recorded decisions.

    Args:
        place: a CSV file, or a folder of which every CSV file is read. Columns are ``subj``, ``imagename`` and
            ``object_response``, as in bethgelab/model-vs-human ``raw-data``, or ``model``, ``image`` and ``decision``.

    Returns:
        Observer to the image's stem to the category that was decided for, in the order of the files' names.

    Raises:
        UserError: there is no such file, it has other columns, or an observer decided twice on an image.
    """
    files = sorted(place.glob("*.csv")) if place.is_dir() else [place]
    found: dict[str, dict[str, str]] = {}
    for file in files:
        for observer, image, decision in _rows(file):
            seen = found.setdefault(observer, {})
            if image in seen:
                raise UserError(f"{file} has a second decision of {observer} on {image}: give each image once.")
            seen[image] = decision
    if not found:
        raise UserError(f"{place} holds no decisions: give a CSV file, or a folder of them.")
    return found


def _rows(file: Path) -> list[tuple[str, str, str]]:
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            reader = csv.DictReader(opened)
            columns = reader.fieldnames or ()
            form = next((form for form in _FORMS if set(form) <= set(columns)), None)
            if form is None:
                raise UserError(
                    f"{file} has the columns {', '.join(columns) or '(none)'}: it needs {', '.join(_FORMS[0])}, or "
                    f"{', '.join(_FORMS[1])}."
                )
            observer, image, decision = form
            return [(row[observer], image_stem(row[image]), row[decision]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read ({error}): give a CSV file of decisions.") from error


def sample_keys(data: Any, dataset: str) -> Callable[[int], str]:
    """Return what gives the name of each sample of a test set.

    Args:
        data: a data module, or a suite of them.
        dataset: name of the test loader.

    Raises:
        UserError: the data know no names.
    """
    key: Callable[[int], str] | None = data.sample_key(dataset) if hasattr(data, "sample_key") else None
    if key is None:
        raise UserError(f"The samples of {dataset} have no names to find them by: copy the shards to a disk.")
    return key


def decided_categories(
    decisions: Mapping[str, str], stems: list[str], categories: Mapping[str, int], not_seen: int, other: int
) -> list[int]:
    """Return the category number that an observer decided for on each image.

    Args:
        decisions: image's stem to the category.
        stems: of the test set's samples, in their order.
        categories: name to number.
        not_seen: for images without a decision.
        other: for decisions that are no category, such as ``na``.
    """
    return [categories.get(decisions[stem], other) if stem in decisions else not_seen for stem in stems]
