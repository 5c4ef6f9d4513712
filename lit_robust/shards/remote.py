"""Shards behind a URL: fetched one at a time, each checked as strictly as one on disk.

A shard is written into a file without a name, so a cut connection is noticed, a shard fetched again, and any sample of
it read by place. webdataset's own iterators take a stream that ends early, or a damaged header, for the end of the
archive.
"""

import errno
import hashlib
import io
import os
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

from lit_robust.core.errors import DataError, UserError, printable
from lit_robust.shards.fetch import (
    PIPE,
    SCHEMES,
    FetchError,
    Patience,
    address,
    check_root,
    copy_to,
    shown,
    unnamed_file,
)
from lit_robust.shards.labels import LabelRule, text
from lit_robust.shards.scan import Handler, ShardScan, refuse, scan_open, skip
from lit_robust.shards.tar import CompressedError, read_exactly

ATTEMPTS = 3
# What is wrong with this machine, and no better at a second attempt.
OWN_FAULTS = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Remote:
    """A folder behind a URL; as text, without what is secret in it.

    Attributes:
        root: such as ``https://host/data/imagenet``, or a command that prints a file, ``pipe:ssh host cat /data/{}``,
            in which ``{}`` stands for the file's path below the root.
        below: subfolder of the root.
        allow_pipes: run the command of a ``pipe:``.
        patience: with the server.
    """

    root: str = field(repr=False)
    below: str = ""
    allow_pipes: bool = False
    patience: Patience = Patience()

    def __post_init__(self) -> None:
        check_root(self.root)
        if self.root.startswith(PIPE):
            if not self.allow_pipes:
                raise UserError(
                    f"The root {shown(self.root)!r} is a shell command: set the data's reading.allow_pipes to true to "
                    "run it."
                )
            return
        program = SCHEMES[urlsplit(self.root).scheme]
        if program is not None and shutil.which(program) is None:
            raise UserError(f"{shown(self.root)} is fetched by the program {program}, which is not here: install it.")

    def __str__(self) -> str:
        return self.shown("").rstrip("/")

    def shown(self, file: str) -> str:
        """Return what to call a file, ``file`` being its path in this folder."""
        if self.root.startswith(PIPE):
            return printable(f"{shown(self.root)} {self._path(file)}")
        return printable(shown(address(self.root, self._path(file))))

    def text(self, file: str) -> str:
        """Return a small text file.

        Raises:
            FetchError: it cannot be had; its ``kind`` says why.
            DataError: it is not text.
        """
        with unnamed_file() as target:
            self._copy(file, target, time.monotonic())
            target.seek(0)
            try:
                return target.read().decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{self.shown(file)} is not UTF-8 text ({error.reason}): upload it again.") from error

    def shard(
        self, file: str, count: int, sha256: str | None, rule: LabelRule, on_error: Literal["error", "skip"]
    ) -> "FetchedShard":
        """Fetch a shard and check it.

        Args:
            file: its path in this folder.
            count: samples that it must hold.
            sha256: of its bytes, in hexadecimal; None where its info file does not say.
            rule: how labels are found; a resolved one.
            on_error: ``skip`` takes what can be read of a defective shard.

        Raises:
            UserError: access to it is refused, or this machine has no room for it.
            DataError: it cannot be had whole in three attempts or in time, is defective, or holds another number of
                samples.
        """
        begun = time.monotonic()
        for attempt in range(ATTEMPTS):
            try:
                found = self._fetch(file, begun, sha256, rule, refuse)
                break
            except FetchError as error:
                if error.kind == "refused":
                    raise refused(self.shown(file), error) from error
                if time.monotonic() > begun + self.patience.max_seconds:
                    raise DataError(f"{self.shown(file)} cannot be read: {error}; allow more, or copy it.") from error
                if attempt + 1 == ATTEMPTS:
                    raise self._given_up(f"{self.shown(file)} cannot be read ({error})") from error
            except CompressedError:
                raise
            except DataError as error:
                if attempt + 1 == ATTEMPTS:
                    if on_error == "skip":
                        return self._fetch(file, begun, sha256, rule, skip)
                    raise self._given_up(str(error)) from error
            except OSError as error:
                if error.errno in OWN_FAULTS:
                    raise UserError(
                        f"{self.shown(file)} cannot be kept in {tempfile.gettempdir()} ({error.strerror}): set TMPDIR "
                        "to a folder with room, and allow more open files (ulimit -n)."
                    ) from error
                if attempt + 1 == ATTEMPTS:
                    raise self._given_up(f"{self.shown(file)} cannot be read ({error.strerror})") from error
        if len(found) != count and (on_error == "error" or not found.scan.defects):
            raise DataError(
                f"{self.shown(file)} holds {len(found)} samples, but its info file says {count}: upload it again."
            )
        return found

    def _path(self, file: str) -> str:
        return str(PurePosixPath(self.below) / file)

    def _copy(self, file: str, target: io.FileIO, begun: float) -> None:
        path = self._path(file)
        copy_to(target, address(self.root, path), self.root, path, self.patience, begun)

    def _given_up(self, reason: str) -> DataError:
        return DataError(f"{reason} [after {ATTEMPTS} attempts: check the address and the connection]")

    def _fetch(
        self, file: str, begun: float, sha256: str | None, rule: LabelRule, on_defect: Handler
    ) -> "FetchedShard":
        target = unnamed_file()
        try:
            self._copy(file, target, begun)
            found = FetchedShard(self.shown(file), target, rule, on_defect)
            if sha256 is not None and not found.scan.defects and _sha256(target) != sha256:
                raise DataError(f"{self.shown(file)} has not the sha256 that its info file says: upload both again.")
            return found
        except BaseException:
            target.close()
            raise


def refused(where: str, error: FetchError) -> UserError:
    """Return the error about a file that is not for everyone."""
    return UserError(f"Access to {where} was refused ({error}): check the account, token or rights for it.")


def _sha256(file: io.FileIO) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


class FetchedShard:
    """One shard in a file without a name.

    Args:
        where: what to call it in messages.
        file: its content.
        rule: how labels are found; a resolved one.
        on_defect: what to do about a defect, see `scan_open`.

    Raises:
        DataError: it is defective.
    """

    def __init__(self, where: str, file: io.FileIO, rule: LabelRule, on_defect: Handler) -> None:
        self.where = where
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self.scan: ShardScan = scan_open(where, file.fileno(), rule, on_defect)

    def __len__(self) -> int:
        return len(self.scan.keys)

    def image_bytes(self, place: int) -> bytes:
        """Return the encoded image of the sample in ``place``."""
        offset, length = int(self.scan.offset[place]), int(self.scan.length[place])
        return read_exactly(self._file.fileno(), self.where, offset, length, self._size)

    def name(self, place: int) -> str:
        """Return what to call the sample in ``place`` in a message."""
        key = text(self.scan.keys[place]) if place < len(self) else f"sample {place}"
        return f"{key} in {self.where}"
