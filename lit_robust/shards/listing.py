"""Which tars make up a split, and what the info files beside them say of it."""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from lit_robust.core.errors import DataError, UserError
from lit_robust.core.files import read_regular
from lit_robust.shards.fetch import FetchError
from lit_robust.shards.folder import ALIASES, SPLIT_WORDS, Listing, ShardFolder, names_split, numbered
from lit_robust.shards.info import TIMM_NAMES, Info, parse_info
from lit_robust.shards.remote import Remote, refused

__all__ = ["ALIASES", "INFO_NAMES", "Listing", "list_all", "list_remote_split", "list_split", "read_info"]

INFO_NAMES = TIMM_NAMES
REMOTE_NAMES = (*TIMM_NAMES, "sizes.json")


def list_split(folder: Path, split: str | None) -> Listing:
    """Find the tars of a split.

    Info files decide, see `parse_info`: timm's form by the name of the split, a shard list of wids by its own name.
    Without them, or for a split they do not have, the tars whose names contain the split as a word make up the split,
    in the order of their numbers; or else the tars in the subfolder of the split's name. Counts of samples and of tars
    come from whichever info file has them. ``val`` and ``validation`` mean the same.

    Args:
        folder: where the tars lie.
        split: name of the split; None takes all tars, or the only split of the info file.

    Raises:
        UserError: there is no such folder or split.
        DataError: an info file is malformed, one of the tars is missing, or info files contradict each other.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: check the path, or make shards with `lit-robust data shard`.")
    contents = ShardFolder(folder)
    if split is None and len(contents.claims) == 1:
        split = next(iter(contents.claims))
    if split is None and contents.claims:
        names = ", ".join(contents.claims)
        raise UserError(f"{folder / contents.timm_name} has the splits {names}: name one of them.")
    listing = contents.find(split)
    packed = [name for name in contents.compressed if names_split(name, split)]
    if listing is None and packed:
        raise DataError(contents.unpacking(packed[0]))
    if listing is None and split is None:
        raise UserError(f"There are no shards in {folder}: check the path, or make some with `lit-robust data shard`.")
    if listing is None:
        there = ", ".join(contents.claims) or ", ".join(contents.tars[:3]) or "no tars"
        raise UserError(f"There is no split {split!r} in {folder}, which holds {there}: check folder and split.")
    if listing.problems:
        raise DataError(listing.problems[0])
    return listing


def list_all(folder: Path) -> list[Listing]:
    """Find all splits of a folder, each tar in one of them, with their problems; subfolders are not searched.

    Raises:
        DataError: an info file is malformed.
    """
    contents = ShardFolder(folder)
    listings = [contents.from_claim(name, claim) for name, claim in contents.claims.items()]
    rest = contents.unclaimed()
    for word in SPLIT_WORDS:
        if files := [file for file in rest if names_split(file, word)]:
            listings.append(contents.from_names(word, files))
            rest = [file for file in rest if file not in files]
    return [*listings, *([contents.from_names(None, rest)] if rest else [])]


def list_remote_split(remote: Remote, split: str) -> Listing:
    """Find the tars of a split behind a URL, where nothing but an info file can tell them and their lengths.

    ``_info.json``, ``info.json`` and ``sizes.json`` are asked for in the folder, then in its subfolder of the split's
    name.

    Raises:
        UserError: there is no info file that lists this split with its counts, access to it is refused, or nobody
            answers.
        DataError: an info file is malformed.
    """
    names = [split, ALIASES[split]] if split in ALIASES else [split]
    failures: list[tuple[str, FetchError]] = []
    for file in (below + name for below in ("", *(f"{name}/" for name in names)) for name in REMOTE_NAMES):
        try:
            text = remote.text(file)
        except FetchError as error:
            if error.kind in ("unreachable", "slow"):
                raise UserError(
                    f"{remote.shown(file)} cannot be reached: check the address and the connection ({error})."
                ) from error
            failures.append((file, error))
            continue
        info = parse_info(remote.shown(file), text)
        listing = None if info is None else _remote_listing(info, file.removesuffix(PurePosixPath(file).name), names)
        if listing is not None:
            return listing
    # Stores refuse what is not there, too, where one may not list them: so only now.
    for file, failure in failures:
        if failure.kind == "refused":
            raise refused(remote.shown(file), failure) from failure
    said = next((f" (asked for {file}: {failure})" for file, failure in failures if failure.kind == "unknown"), "")
    raise UserError(
        f"{remote} has no _info.json or sizes.json that lists the split {split!r} with the samples of each shard{said}:"
        " upload one, or copy the shards to a disk."
    )


def read_info(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the path and content of the info file of timm's form; where there is none, where it should be.

    Raises:
        DataError: it is not JSON, or malformed.
    """
    for path in (folder / name for name in INFO_NAMES):
        try:
            text = read_regular(path).decode("utf-8")
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}): mend or remove it.") from error
        if parse_info(str(path), text) is not None and "splits" in (content := json.loads(text)):
            return path, content
    return folder / INFO_NAMES[0], {}


def _remote_listing(info: Info, below: str, names: Sequence[str]) -> Listing | None:
    folder = Path(below)
    for name in names:
        claim = info.splits.get(name)
        if claim is not None and claim.lengths is not None:
            if claim.label_field is not None:
                raise UserError(
                    f"{info.where} says that labels are in the json field {claim.label_field!r}, which is read from "
                    "disks only: copy the shards to one."
                )
            files = tuple(below + file for file in claim.files)
            return Listing(
                folder=folder,
                split=name,
                files=files,
                lengths=claim.lengths,
                digests=claim.digests,
                count=claim.count,
                num_classes=claim.num_classes,
                class_names=claim.class_names,
                categories=claim.categories,
            )
        listed = sorted((file for file in info.lengths if below or names_split(file, name)), key=numbered)
        if listed:
            lengths = tuple(info.lengths[file] for file in listed)
            return Listing(folder, name, tuple(below + file for file in listed), lengths)
    return None
