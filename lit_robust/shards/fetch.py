"""Fetching one file by the program that its scheme asks for, and telling why it could not be had."""

import re
import tempfile
from contextlib import ExitStack
from typing import BinaryIO, Literal
from urllib.parse import urlsplit

from lit_robust.core.errors import UserError
from lit_robust.shards.address import PIPE, local_path, shown

PIECE = 1 << 20
# A server that falls silent must not be waited for without end. --globoff: brackets in a root are letters of its path.
CURL = [
    *["curl", "--fail", "--silent", "--show-error", "--location", "--globoff", "--connect-timeout", "30"],
    *["--retry", "5", "--speed-limit", "1", "--speed-time", "60", "--config", "-"],
]
# As curl, aws and gsutil write it.
STATUS = re.compile(r"(?:error: |\(|Exception: )([45]\d\d)\b")
REPOSITORY = re.compile(r"(?:(datasets|spaces|models)/)?([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")
LONGEST_WORDS = 300

Kind = Literal["missing", "refused", "unreachable", "unknown"]


class FetchError(OSError):
    """A file that could not be had.

    Attributes:
        kind: whether it is not there, access to it was refused, its address cannot be reached, or nobody told.
    """

    def __init__(self, words: str, kind: Kind) -> None:
        super().__init__(words)
        self.kind: Kind = kind


def copy_to(target: BinaryIO, url: str, root: str, path: str) -> None:
    """Write the file at an address into another.

    Args:
        target: to write to.
        url: the address, see `lit_robust.shards.address.address`.
        root: that it lies below.
        path: of the file below the root.

    Raises:
        FetchError: it could not be had.
        UserError: ``target``'s disk is full, or the address has a form that its scheme does not have.
    """
    if urlsplit(root).scheme == "file":
        try:
            with local_path(root, path).open("rb") as source:
                _copy(source, target, url)
        except FileNotFoundError as error:
            raise FetchError(str(error.strerror), "missing") from error
        except PermissionError as error:
            raise FetchError(str(error.strerror), "refused") from error
        return
    _run(url, target)


def unnamed_file() -> BinaryIO:
    """Return a file that the system removes when nobody holds it any more, a killed process included.

    Raises:
        UserError: the folder for temporary files cannot be written.
    """
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise UserError(
            f"No temporary file can be made ({error.strerror}): set TMPDIR to a folder with room, and allow more open "
            "files (ulimit -n)."
        ) from error


def _run(url: str, target: BinaryIO) -> None:
    from webdataset.gopen import Pipe

    words, settings = _command(url)
    with ExitStack() as stack:
        errors, given = stack.enter_context(unnamed_file()), stack.enter_context(unnamed_file())
        given.write(settings.encode())
        given.seek(0)
        try:
            with Pipe(words, mode="rb", shell=isinstance(words, str), stdin=given, stderr=errors) as stream:
                # Closing waits for the program behind the stream, and raises OSError where it failed.
                _copy(stream, target, url)
        except FileNotFoundError as error:
            raise UserError(f"{shown(url)} is fetched by {words[0]}, which is not here: install it.") from error
        except OSError as error:
            if error.errno is not None:  # The system's, and not the program's.
                raise
            errors.seek(0)
            raise _fetch_error(errors.read().decode("utf-8", "replace"), url, str(error)) from error


def _command(url: str) -> tuple[list[str] | str, str]:
    """Return the program with its arguments, or a shell's command, and what to give it on its standard input."""
    if url.startswith(PIPE):
        return url.removeprefix(PIPE), ""
    scheme = urlsplit(url).scheme
    if scheme == "s3":
        return ["aws", "s3", "cp", "--only-show-errors", url, "-"], ""
    if scheme == "gs":
        return ["gsutil", "cat", url], ""
    if scheme == "ais":
        return ["ais", "get", url, "-"], ""
    # Passwords and tokens are not among the arguments, which every user of the machine can list.
    if scheme == "hf":
        address, token = _hub_address(url)
        header = f'header = "Authorization: Bearer {_escaped(token)}"\n' if token else ""
        return CURL, f'url = "{_escaped(address)}"\n{header}'
    return CURL, f'url = "{_escaped(url)}"\n'


def _hub_address(url: str) -> tuple[str, str | None]:
    """Return the address behind ``hf://[datasets/]<owner>/<name>[@<revision>]/<file>``, and the user's token."""
    from huggingface_hub import get_token, hf_hub_url

    match = REPOSITORY.fullmatch(url.removeprefix("hf://"))
    if match is None:
        raise UserError(f"{shown(url)} names no repository: write hf://datasets/<owner>/<name>/<folder>.")
    kind = (match[1] or "models").removesuffix("s")
    return hf_hub_url(match[2], match[4], repo_type=kind, revision=match[3]), get_token()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")


def _copy(source: BinaryIO, target: BinaryIO, url: str) -> None:
    while piece := source.read(PIECE):
        try:
            target.write(piece)
        except OSError as error:
            raise UserError(
                f"The file {shown(url)} does not fit into {tempfile.gettempdir()} ({error.strerror}): set TMPDIR to a "
                "folder with room for a few shards a worker."
            ) from error


def _fetch_error(said: str, url: str, ended: str) -> FetchError:
    """Return what a program's last words, or its exit status, tell."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    status = re.search(r"exit (-?\d+)", ended)
    words = shown(lines[-1])[:LONGEST_WORDS] if lines else f"exit status {status[1] if status else 'unknown'}"
    code = STATUS.search(said)
    if code and code[1] in ("401", "403", "407"):
        return FetchError(words, "refused")
    if code and code[1] in ("404", "410"):
        return FetchError(words, "missing")
    # Only curl tells an address where nobody answers from a file that is not there.
    return FetchError(words, "unreachable" if urlsplit(url).scheme in ("http", "https", "hf") else "unknown")
