"""Splits of shards, in a folder or behind a URL."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lit_robust.core.errors import DataError, UserError
from lit_robust.data.split import Reading, Split, TableSplit
from lit_robust.data.stream import StreamSplit
from lit_robust.data.table import SampleTable
from lit_robust.reference import imagenet_wnids
from lit_robust.shards import IndexedReader, ShardIndex
from lit_robust.shards.labels import LabelRule
from lit_robust.shards.listing import list_remote_split
from lit_robust.shards.remote import Remote, is_url


def open_split(root: str, name: str, split: str, reading: Reading) -> Split:
    """Open a labelled split.

    Args:
        root: folder, or URL, of all sets.
        name: subfolder of the set.
        split: name of the split.
        reading: how its shards are read.

    Raises:
        UserError: there are no such shards.
        DataError: they are defective, or a sample has no class.
    """
    if is_url(root):
        return open_stream(Remote(root, name, reading.allow_pipes), split, reading)
    return open_table(Path(root) / name, split, reading)


def open_table(folder: Path, split: str, reading: Reading) -> TableSplit:
    """Open a labelled split in a folder.

    Raises:
        UserError: there are no such shards.
        DataError: they are defective, or a sample has no class.
    """
    index = open_index(folder, split, reading)
    without = np.flatnonzero(index.labels < 0)
    found = table_split(index, split)
    if not len(without):
        return found
    if reading.on_error == "error" or len(without) == len(index):
        first = int(without[0])
        raise DataError(
            f"{len(without)} of {len(index)} samples in {folder} ({split}) have no class, the first is "
            f"{index.key(first)} at byte {int(index.offset[first])} of {index.shard_path(first).name}: "
            f"{_label_advice(reading.label)}."
        )
    lost = [found.protocol["skipped"]] if "skipped" in found.protocol else []
    skipped = "; ".join([*lost, f"{len(without)} samples without a class"])
    return replace(
        found,
        table=found.table.select(np.flatnonzero(index.labels >= 0)),
        protocol={**found.protocol, "skipped": skipped},
    )


def open_index(folder: Path, split: str, reading: Reading) -> ShardIndex:
    """Open the index of a split, whose samples need no class.

    Raises:
        UserError: there are no such shards.
        DataError: they are defective.
    """
    try:
        return ShardIndex.open(folder, split, label=label_rule(reading.label), on_error=reading.on_error)
    except PermissionError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): make it readable.") from error
    except UserError as error:
        if isinstance(error, DataError) or not (folder / split).is_dir():
            raise
        raise UserError(
            f"{folder / split} holds no shards: read plain folders of images with ImageFolderDataModule, or pack them "
            "with `lit-robust data shard`."
        ) from error


def table_split(index: ShardIndex, split: str) -> TableSplit:
    """Return the samples of an index."""
    lengths = np.bincount(index.shard, minlength=len(index.shards))
    protocol: dict[str, Any] = {"shards_sha256": index.digest}
    if index.defects:
        lost = "an unknown number of" if index.lost is None else index.lost
        protocol["skipped"] = f"{len(index.defects)} defects of the shards, {lost} samples"
    return TableSplit(
        where=f"{index.folder} ({split})",
        num_classes=index.num_classes,
        class_names=tuple(index.class_names or ()),
        protocol=protocol,
        table=SampleTable([IndexedReader(index)], index.labels, lengths),
    )


def open_stream(remote: Remote, split: str, reading: Reading) -> StreamSplit:
    """Open a split behind a URL.

    Raises:
        UserError: there is no info file that lists it with its counts.
    """
    listing = list_remote_split(remote, split)
    said = json.dumps([listing.files, listing.lengths, listing.num_classes, listing.class_names])
    return StreamSplit(
        where=f"{remote} ({split})",
        num_classes=listing.num_classes,
        class_names=tuple(listing.class_names or ()),
        protocol={"info_sha256": hashlib.sha256(said.encode()).hexdigest()},
        remote=remote,
        files=listing.files,
        lengths=np.array(listing.lengths, dtype=np.int64),
        rule=label_rule(reading.label).resolve(None),
        on_error=reading.on_error,
    )


def _label_advice(label: str) -> str:
    if label in ("auto", "cls"):
        return "each needs a `cls` member with its class number, or set reading.label"
    return f"reading.label is {label}, so set it to what these shards have, cls, json:FIELD or wordnet"


def label_rule(label: str) -> LabelRule:
    """Return how labels are found; WordNet ids stand for ImageNet's class numbers."""
    if label == "wordnet":
        return LabelRule("wordnet", {wnid: number for number, wnid in enumerate(imagenet_wnids())})
    return LabelRule(label)
