"""Files behind a URL or a command: where one lies, fetching it, and telling why it could not be had.

Nothing that is shown has the accounts, passwords and queries of an address.
"""

import errno
import io
import os
import re
import select
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from lit_robust.core.errors import UserError
from lit_robust.core.files import open_regular

# Scheme to the program that fetches it.
SCHEMES = {"http": "curl", "https": "curl", "s3": "aws", "gs": "gsutil", "hf": "curl", "ais": "ais", "file": None}
WEB = ("http", "https")
PIPE = "pipe:"
PLAIN = re.compile(r"[A-Za-z0-9._/+=-]*")
ACCOUNT = re.compile(r"(?<=://)[^/\s'\"?#]*@")
QUERY = re.compile(r"(https?://[^\s'\"?]*\?)[^\s'\"]+")
PATH_LETTERS = "/%:@!$&'()*+,;=~"  # Letters of a path that stay: the user may have coded the others already.


def is_url(root: str) -> bool:
    """Tell whether a data root is a URL or a pipe rather than a folder."""
    return root.startswith(PIPE) or urlsplit(root).scheme in SCHEMES


def check_root(root: str) -> None:
    """Raise a UserError where a root's form leaves open what is meant."""
    if root.startswith(PIPE):
        if "{}" not in root:
            raise UserError(f"The command {shown(root)!r} names no file: put {{}} where the file's path belongs.")
    elif urlsplit(root).scheme in WEB and urlsplit(root).fragment:
        raise UserError(f"The root {shown(root)} has a '#', where a URL's path ends: write %23 for it.")


def address(root: str, path: str) -> str:
    """Return where a file below a root lies.

    A query of the root, such as ``?token=...``, stays behind the file's path.

    Args:
        root: URL, or command in which ``{}`` stands for the path.
        path: of the file below the root.

    Raises:
        UserError: the path cannot be put into a command.
    """
    if root.startswith(PIPE):
        # Quoting protects from one shell; the command may well hand the path to another, as ssh does.
        if not PLAIN.fullmatch(path):
            raise UserError(f"The path {path!r} has letters that a shell may take for more: rename it, or fetch it.")
        return root.replace("{}", path)
    scheme, host, folder, query, _ = urlsplit(root)
    if scheme not in WEB:
        # For all others `?`, `#` and `%` are letters of a name like any.
        return f"{root.rstrip('/')}/{path}"
    return urlunsplit((scheme, host, f"{quote(folder.rstrip('/'), PATH_LETTERS)}/{quote(path)}", query, ""))


def local_path(root: str, path: str) -> Path:
    """Return where a file below a ``file:`` root lies.

    People write a folder's name into such a URL as it is, and programs with its special letters coded: the folder that
    is there is meant, the name as written first.
    """
    folder = re.sub(r"^file:(//(localhost)?(?=/))?", "", root)
    written, decoded = Path(folder), Path(unquote(folder))
    return (written if written.is_dir() else decoded) / path


def shown(text: str) -> str:
    """Return a URL, or a sentence with URLs, without accounts, passwords and queries; of a command its program alone.

    Example:
        >>> shown("https://me:secret@host/data?token=1")
        'https://host/data?...'
        >>> shown("pipe:curl -H 'Authorization: Bearer secret' https://host/{}")
        'pipe:curl ...'
    """
    if text.startswith(PIPE):
        program = PurePosixPath(next(iter(text.removeprefix(PIPE).split()), "")).name
        return f"{PIPE}{program} ..."
    return QUERY.sub(r"\1...", ACCOUNT.sub("", text))


PIECE = 1 << 20
WINDOW = 30.0  # seconds over which the speed of a fetch is taken
# --globoff: brackets in a root are letters of its path. Three attempts, which wait for 7 s in all, fit into a window.
CURL = [
    "curl",
    "--fail",
    "--silent",
    "--show-error",
    "--location",
    "--globoff",
    "--no-buffer",
    "--retry",
    "3",
    "--config",
    "-",
]
# As curl, aws and gsutil write it.
STATUS = re.compile(r"(?:error: |\(|Exception: )([45]\d\d)\b")
REPOSITORY = re.compile(r"(?:(datasets|spaces|models)/)?([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")
LONGEST_WORDS = 300

Kind = Literal["missing", "refused", "unreachable", "slow", "unknown"]
KINDS: dict[int, Kind] = {errno.ENOENT: "missing", errno.EACCES: "refused"}


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for.

    Attributes:
        min_speed: bytes a second that must come, over any 30 s; 0 waits for the slowest.
        max_seconds: for one file, all attempts together.
    """

    min_speed: int = 10_000
    max_seconds: int = 1800


class FetchError(OSError):
    """A file that could not be had.

    Attributes:
        kind: whether it is not there, access to it was refused, its address cannot be reached, it came too
            slowly, or the reason is unknown.
    """

    def __init__(self, words: str, kind: Kind) -> None:
        super().__init__(words)
        self.kind: Kind = kind


def copy_to(target: io.FileIO, url: str, root: str, path: str, patience: Patience, begun: float) -> None:
    """Write the file at an address into another.

    Args:
        target: to write to.
        url: the address, see `lit_robust.shards.fetch.address`.
        root: that it lies below.
        path: of the file below the root.
        patience: with the program that fetches it.
        begun: the monotonic clock's time when the first attempt began.

    Raises:
        FetchError: it could not be had, or not in time.
        UserError: ``target``'s disk is full, or the address has a form that its scheme does not have.
    """
    if urlsplit(root).scheme == "file":
        try:
            source = open_regular(local_path(root, path))
        except OSError as error:
            raise FetchError(str(error.strerror), KINDS.get(error.errno or 0, "unknown")) from error
        with os.fdopen(source, "rb") as file:
            while piece := file.read(PIECE):
                _write(target, piece, url)
        return
    _run(url, target, patience, begun)


def unnamed_file() -> io.FileIO:
    """Return a file that the system removes when nobody holds it any more, a killed process included.

    It has no buffer: a full disk is noticed at the write that finds it full, and not when the file is closed.

    Raises:
        UserError: the folder for temporary files cannot be written.
    """
    try:
        return tempfile.TemporaryFile(buffering=0)
    except OSError as error:
        raise UserError(
            f"No temporary file can be made ({error.strerror}): set TMPDIR to a folder with room, and allow more open "
            "files (ulimit -n)."
        ) from error


def _run(url: str, target: io.FileIO, patience: Patience, begun: float) -> None:
    words, settings = _command(url)
    with unnamed_file() as errors:
        try:
            # A shell and what it starts end together, so they are a group of their own.
            program = subprocess.Popen(
                words,
                shell=isinstance(words, str),
                start_new_session=isinstance(words, str),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        except FileNotFoundError as error:
            raise UserError(f"{shown(url)} is fetched by {words[0]}, which is not here: install it.") from error
        assert program.stdin is not None
        assert program.stdout is not None
        try:
            with suppress(BrokenPipeError):  # Of a program that ended at once its exit status tells more.
                program.stdin.write(settings.encode())
                program.stdin.close()
            _copy_in_time(program.stdout, target, url, patience, begun)
            status = program.wait()
        finally:
            if program.poll() is None:
                _end(program, isinstance(words, str))
            program.stdout.close()
            with suppress(BrokenPipeError):
                program.stdin.close()
        if status:
            errors.seek(0)
            raise _fetch_error(errors.read().decode("utf-8", "replace"), url, status)


def _copy_in_time(source: IO[bytes], target: io.FileIO, url: str, patience: Patience, begun: float) -> None:
    """Copy until the source ends.

    Raises:
        FetchError: fewer bytes came than must, or the time is over.
    """
    last = begun + patience.max_seconds
    window, received = time.monotonic() + WINDOW, 0
    while True:
        ready, _, _ = select.select([source], [], [], max(min(window, last) - time.monotonic(), 0))
        if ready:
            piece = os.read(source.fileno(), PIECE)
            if not piece:
                return
            _write(target, piece, url)
            received += len(piece)
        now = time.monotonic()
        if now >= last:
            raise FetchError(f"it was not there after {patience.max_seconds} s, reading.max_seconds", "slow")
        if now >= window:
            if received < patience.min_speed * WINDOW:
                raise FetchError(
                    f"{received} bytes came in {WINDOW:g} s, fewer than reading.min_speed asks for, "
                    f"{patience.min_speed} a second",
                    "slow",
                )
            window, received = now + WINDOW, 0


def _end(program: "subprocess.Popen[bytes]", is_group: bool) -> None:
    with suppress(ProcessLookupError):
        if is_group:
            os.killpg(program.pid, signal.SIGKILL)
        else:
            program.kill()
    program.wait()


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


def _write(target: io.FileIO, piece: bytes, url: str) -> None:
    rest = memoryview(piece)
    try:
        while rest:
            rest = rest[target.write(rest) :]
    except OSError as error:
        raise UserError(
            f"The file {shown(url)} does not fit into {tempfile.gettempdir()} ({error.strerror}): set TMPDIR to a "
            "folder with room for a few shards a worker."
        ) from error


def _fetch_error(said: str, url: str, status: int) -> FetchError:
    """Return what a program's last words, or its exit status, tell."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    words = shown(lines[-1])[:LONGEST_WORDS] if lines else f"exit status {status}"
    code = STATUS.search(said)
    if code and code[1] in ("401", "403", "407"):
        return FetchError(words, "refused")
    if code and code[1] in ("404", "410"):
        return FetchError(words, "missing")
    # Only curl tells an address where nobody answers from a file that is not there.
    return FetchError(words, "unreachable" if urlsplit(url).scheme in ("http", "https", "hf") else "unknown")
