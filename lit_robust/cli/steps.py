"""Folders that a list of commands fills one after another, and what of them is finished already."""

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from lit_robust.core.errors import UserError
from lit_robust.core.files import write_text

MARK = "made-by.json"  # In every such folder: what made it, and whether that came to its end.


def begin(folder: Path, what: str, settings: str) -> bool:
    """Make ready a folder for some settings, emptying what other settings made.

    Args:
        folder: to be filled.
        what: fills it, for a person.
        settings: anything the content follows from.

    Returns:
        Whether it is finished already.

    Raises:
        UserError: the folder holds files that nothing here made, or what something else here made.
    """
    mark = {"what": what, "settings": hashlib.sha256(settings.encode()).hexdigest()}
    try:
        found = json.loads((folder / MARK).read_text())
        same = {key: found[key] for key in mark} == mark
    except (OSError, ValueError, KeyError, TypeError):
        found, same = None, False
    if found is not None and found.get("what") != what:
        raise UserError(f"{folder} holds {found.get('what')}, and would lose it: choose another --output.")
    if found is None and folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds files that this command did not write: choose another --output.")
    if same:
        return bool(found["finished"])
    if found is not None:
        shutil.rmtree(folder)
    write_text(folder / MARK, json.dumps({**mark, "finished": False}))
    return False


def content_of(names: Iterable[str], output: Path) -> dict[str, str]:
    """Return what tells the content of the files and folders of data that settings name; others are left out.

    Args:
        names: words that may be paths.
        output: folder of what the commands themselves write, which is left out, too.

    Returns:
        Path to the sha256 of a file; of a folder, which no one would want to read whole, over the names and sizes of
        the shards in it and in the folders below.
    """
    found = {}
    for name in sorted(set(names)):
        path = Path(name)
        # A name has 255 bytes at most; what is longer is a list or a text.
        if len(name) > 255 or path.resolve().is_relative_to(output.resolve()):
            continue
        if path.is_file():
            with path.open("rb") as stream:
                found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
        elif path.is_dir():
            shards = sorted([*path.glob("*.tar"), *path.glob("*/*.tar")])
            sizes = [(shard.relative_to(path).as_posix(), shard.stat().st_size) for shard in shards]
            found[name] = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()
    return found


def finish(folder: Path) -> None:
    """Mark a folder as finished."""
    mark = json.loads((folder / MARK).read_text())
    write_text(folder / MARK, json.dumps({**mark, "finished": True}))


def run_apart(words: list[str]) -> None:
    """Show a command and run it in a process of its own, which may start others for further ranks.

    Raises:
        UserError: it failed, and said why.
    """
    print(f"\n$ lit-robust {shlex.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "lit_robust", *words], check=False).returncode
    if code == 130:
        raise KeyboardInterrupt
    if code == 143:
        raise SystemExit(code)
    if code != 0:
        raise UserError("Stopped at the command above, for the reason it gave.")
