"""Shards behind a URL: fetched one at a time, each checked as strictly as one on disk.

A stream is opened by webdataset's ``gopen``, which asks curl, gsutil and the like, none of them through a shell, and
written into a file without a name, which the system removes when nobody holds it any more, a killed process included.
So a cut connection is noticed, a shard fetched again, and any sample of it read by place. webdataset's own iterators
take a stream that ends early, or a damaged header, for the end of the archive.
"""

import errno
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Literal
from urllib.parse import quote, urlsplit

from lit_robust.errors import DataError, UserError
from lit_robust.shards.labels import LabelRule, text
from lit_robust.shards.scan import Handler, ShardScan, refuse, scan_open, skip
from lit_robust.shards.tar import read_exactly

# Scheme to the program that fetches it.
SCHEMES = {"http": "curl", "https": "curl", "s3": "aws", "gs": "gsutil", "hf": "curl", "ais": "ais", "file": None}
PIPE = "pipe:"
ATTEMPTS = 3
PIECE = 1 << 20
PLAIN = re.compile(r"[A-Za-z0-9._/+=-]*")
# What is wrong with this machine, and no better at a second attempt.
OWN_FAULTS = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
HTTP_ERROR = "exit 22"  # What curl's end looks like where the server answers, but has no such file.


def is_url(root: str) -> bool:
    """Tell whether a data root is a URL or a pipe rather than a folder."""
    return root.startswith(PIPE) or urlsplit(root).scheme in SCHEMES


@dataclass(frozen=True)
class Remote:
    """A folder behind a URL.

    Attributes:
        root: such as ``https://host/data/imagenet``, or a command that prints a file, ``pipe:ssh host cat /data/{}``,
            in which ``{}`` stands for the file's path below the root.
        below: subfolder of the root.
        allow_pipes: run the command of a ``pipe:``.
    """

    root: str
    below: str = ""
    allow_pipes: bool = False

    def __post_init__(self) -> None:
        if self.root.startswith(PIPE):
            if not self.allow_pipes:
                raise UserError(
                    f"The root {self.root!r} is a shell command: set the data's reading.allow_pipes to true to run it."
                )
            if "{}" not in self.root:
                raise UserError(f"The command {self.root!r} names no file: put {{}} where the file's path belongs.")
            return
        program = SCHEMES[urlsplit(self.root).scheme]
        if program is not None and shutil.which(program) is None:
            raise UserError(f"{self.root} is fetched by the program {program}, which is not here: install it.")

    def __str__(self) -> str:
        return self.url("").rstrip("/")

    def url(self, file: str) -> str:
        """Return where a file lies, ``file`` being its path in this folder."""
        path = str(PurePosixPath(self.below) / file)
        if self.root.startswith(PIPE):
            # Quoting protects from one shell; the command may well hand the path to another, as ssh does.
            if not PLAIN.fullmatch(path):
                raise UserError(
                    f"The path {path!r} has letters that a shell may take for more: rename it, or fetch it."
                )
            return self.root.replace("{}", path)
        # Only what speaks HTTP wants spaces and the like in their coded form.
        return f"{self.root.rstrip('/')}/{quote(path) if self.root.startswith('http') else path}"

    def text(self, file: str) -> str | None:
        """Return a small text file, or None where there is none.

        Raises:
            UserError: nothing answers at this address.
        """
        try:
            with tempfile.TemporaryFile() as target:
                _copy(self.url(file), target)
                target.seek(0)
                return target.read().decode("utf-8")
        except OSError as error:
            # Only curl tells an address where nobody answers from a file that is not there.
            if self.root.startswith("http") and HTTP_ERROR not in str(error):
                raise UserError(f"{self.url(file)} cannot be reached: check the address and the connection.") from error
            return None

    def shard(self, file: str, count: int, rule: LabelRule, on_error: Literal["error", "skip"]) -> "FetchedShard":
        """Fetch a shard and check it.

        Args:
            file: its path in this folder.
            count: samples that it must hold.
            rule: how labels are found; a resolved one.
            on_error: ``skip`` takes what can be read of a defective shard.

        Raises:
            DataError: it cannot be had whole in three attempts, is defective, or holds another number of samples.
        """
        for attempt in range(ATTEMPTS):
            try:
                found = self._fetch(file, rule, refuse)
                break
            except (OSError, DataError) as error:
                if isinstance(error, OSError) and error.errno in OWN_FAULTS:
                    raise UserError(
                        f"{self.url(file)} cannot be kept in {tempfile.gettempdir()} ({error.strerror}): set TMPDIR to "
                        "a folder with room, and allow more open files (ulimit -n)."
                    ) from error
                if attempt + 1 == ATTEMPTS:
                    if on_error == "skip" and isinstance(error, DataError):
                        return self._fetch(file, rule, skip)
                    reason = error if isinstance(error, DataError) else f"{self.url(file)} cannot be read ({error})"
                    raise DataError(
                        f"{reason} [after {ATTEMPTS} attempts: check the address and the connection]"
                    ) from error
        if len(found) != count and (on_error == "error" or not found.scan.defects):
            raise DataError(
                f"{self.url(file)} holds {len(found)} samples, but its info file says {count}: upload it again."
            )
        return found

    def _fetch(self, file: str, rule: LabelRule, on_defect: Handler) -> "FetchedShard":
        target = _unnamed()
        try:
            _copy(self.url(file), target)
            return FetchedShard(self.url(file), target, rule, on_defect)
        except BaseException:
            target.close()
            raise


class FetchedShard:
    """One shard in a file without a name.

    Args:
        url: where it came from, for messages.
        file: its content.
        rule: how labels are found; a resolved one.
        on_defect: what to do about a defect, see `scan_open`.

    Raises:
        DataError: it is defective.
    """

    def __init__(self, url: str, file: BinaryIO, rule: LabelRule, on_defect: Handler) -> None:
        file.flush()
        self.url = url
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self.scan: ShardScan = scan_open(url, file.fileno(), rule, on_defect)

    def __len__(self) -> int:
        return len(self.scan.keys)

    def image_bytes(self, place: int) -> bytes:
        """Return the encoded image of the sample in ``place``."""
        offset, length = int(self.scan.offset[place]), int(self.scan.length[place])
        return read_exactly(self._file.fileno(), self.url, offset, length, self._size)

    def name(self, place: int) -> str:
        """Return what to call the sample in ``place`` in a message."""
        key = text(self.scan.keys[place]) if place < len(self) else f"sample {place}"
        return f"{key} in {self.url}"

    def label(self, place: int) -> int:
        """Return the class of the sample in ``place``, or -1."""
        return int(self.scan.label[place])


def _unnamed() -> BinaryIO:
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise UserError(
            f"No temporary file can be made ({error.strerror}): set TMPDIR to a folder with room."
        ) from error


def _copy(url: str, target: BinaryIO) -> None:
    # Closing waits for the program behind the stream, and raises OSError where it failed.
    with _open_stream(url) as stream:
        while piece := stream.read(PIECE):
            try:
                target.write(piece)
            except OSError as error:
                raise UserError(
                    f"The shard {url} does not fit into {tempfile.gettempdir()} ({error.strerror}): set TMPDIR to a "
                    "folder with room for a few shards a worker."
                ) from error


def _open_stream(url: str) -> BinaryIO:
    from webdataset.gopen import Pipe, gopen

    words: list[str] = []
    if url.startswith("s3:"):  # Of these gopen knows only through a shell command.
        words = ["aws", "s3", "cp", "--only-show-errors", url, "-"]
    elif url.startswith(("http:", "https:")):  # gopen's own would wait without end for a server that falls silent.
        words = [
            "curl",
            *["-f", "-s", "-L", "--connect-timeout", "30", "--retry", "5", "--speed-limit", "1", "--speed-time", "60"],
            url,
        ]
    if words:
        program: BinaryIO = Pipe(words, mode="rb")
        return program
    stream: BinaryIO = gopen(url, "rb")
    return stream
