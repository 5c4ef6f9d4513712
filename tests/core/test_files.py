"""A full disk is named as one, whoever writes; only regular files are opened; a lock ends with its process."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_robust.callbacks.checkpoints import WholeCheckpoints
from lit_robust.core.errors import UserError
from lit_robust.core.files import (
    atomic_path,
    held_alone,
    open_regular,
    read_regular,
    write_tensors,
    write_text,
    writing,
)

LIMIT = 100_000  # bytes a file


@pytest.fixture
def small_files():
    """Files may not grow beyond `LIMIT`: the system's error at the byte where a disk would be full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def checkpoint(path, size):
    WholeCheckpoints().save_checkpoint({"a": torch.zeros(size // 4)}, path)


def tensors(path, size):
    write_tensors(path, {"a": torch.zeros(size // 4)})


def text(path, size):
    write_text(path, "a" * size)


def array(path, size):
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.zeros(size, np.uint8))


@pytest.mark.parametrize("write", [checkpoint, tensors, text, array])
def test_a_full_disk_is_named_and_leaves_the_older_file(tmp_path, small_files, write):
    place = tmp_path / "file"
    write(place, LIMIT // 2)
    older = place.read_bytes()
    with pytest.raises(UserError) as caught:
        write(place, 10 * LIMIT)
    assert str(caught.value).startswith(f"Cannot write {place} (")
    assert "\n" not in str(caught.value)
    if write is not array:  # NumPy does not hand on what the system says.
        assert "File too large): free some space there, or choose another folder." in str(caught.value)
    assert place.read_bytes() == older
    assert list(tmp_path.iterdir()) == [place]


def test_the_innermost_sentence_is_kept(tmp_path):
    inner, full = tmp_path / "inner", OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UserError, match=f"^Cannot write {inner} "), writing(tmp_path / "outer"), writing(inner):
        raise RuntimeError("unexpected pos 576 vs 534") from full


def test_other_errors_pass(tmp_path):
    with pytest.raises(RuntimeError, match="of another kind"), writing(tmp_path):
        raise RuntimeError("of another kind") from FileNotFoundError(errno.ENOENT, "No such file or directory")


def test_a_folder_below_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    sentence = f"Cannot write {tmp_path}/file/folder.* \\(Not a directory\\): choose another folder"
    with pytest.raises(UserError, match=sentence):
        write_text(tmp_path / "file" / "folder" / "name", "")
    with pytest.raises(UserError, match=sentence), held_alone(tmp_path / "file" / "folder" / ".lock", ""):
        pass


HOLDER = """
import os, pathlib, sys, time
from lit_robust.core.files import held_alone
with held_alone(pathlib.Path(sys.argv[1]), "is taken"):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_with_its_process_though_a_forked_one_lives_on(tmp_path):
    lock = tmp_path / "new" / "folder" / ".lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True)
    child = int(holder.stdout.readline())
    with pytest.raises(UserError, match="^is taken$"), held_alone(lock, "is taken"):
        pass
    assert lock.exists()
    holder.kill()
    holder.wait()
    os.kill(child, 0)  # It lives.
    with held_alone(lock, "is taken"):
        pass
    os.kill(child, signal.SIGKILL)
    assert not lock.exists()


def test_a_lock_leaves_nothing_behind(tmp_path):
    with held_alone(tmp_path / "a" / "b" / ".lock", ""):
        pass
    assert list(tmp_path.iterdir()) == []
    with held_alone(tmp_path / "a" / "b" / ".lock", ""):
        (tmp_path / "a" / "kept").write_text("")
    assert [entry.name for entry in (tmp_path / "a").iterdir()] == ["kept"]


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    assert read_regular(tmp_path / "link") == b"content"
    before = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else None  # noqa: PTH208
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(path)
    assert before is None or set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none")
