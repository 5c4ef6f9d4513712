"""Roots that are URLs or commands: where a file below one lies, and how one is shown without what it keeps secret."""

import re
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from lit_robust.core.errors import UserError

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
