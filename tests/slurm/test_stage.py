"""Copying shards to a node's disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "slurm" / "stage.sh"


@pytest.fixture
def source(toy, tmp_path):
    """One set of the toy data, in a root that may be changed."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "cue-conflict").symlink_to(toy / "cue-conflict")
    return tmp_path / "root"


def contents(folder):
    """Return what the shards' files hold; an index that was kept next to them does not count."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.startswith(".")}


def stage(verb, source, tmp_path, sets="cue-conflict"):
    return subprocess.run(
        ["bash", str(SCRIPT), verb, str(source), sys.executable, "-m", "lit_robust"],
        env={**os.environ, "LIT_ROBUST_LOCAL": str(tmp_path / "local"), "LIT_ROBUST_STAGE_SETS": sets},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_copy_is_the_original_and_is_made_once(source, tmp_path):
    place = Path(stage("place", source, tmp_path).stdout.strip())
    done = stage("copy", source, tmp_path)
    assert done.returncode == 0, done.stderr
    assert contents(place / "cue-conflict") == contents(source / "cue-conflict")
    before = place.stat().st_mtime_ns
    assert stage("copy", source, tmp_path).returncode == 0
    assert place.stat().st_mtime_ns == before


def test_damaged_shards_are_not_put_in_place(source, tmp_path):
    whole = next((source / "cue-conflict").glob("*.tar"))
    (source / "damaged").mkdir()
    for name, content in contents(source / "cue-conflict").items():
        (source / "damaged" / name).write_bytes(content)
    (source / "damaged" / whole.name).write_bytes(whole.read_bytes()[:-20_000])
    place = Path(stage("place", source, tmp_path, "damaged").stdout.strip())
    done = stage("copy", source, tmp_path, "damaged")
    assert done.returncode == 2
    assert not place.exists()


def test_changed_data_have_another_place_and_an_index_none(tmp_path):
    folder = tmp_path / "cue-conflict"
    (folder / ".lit_robust").mkdir(parents=True)
    (folder / "x.tar").write_bytes(b"")
    places = [stage("place", tmp_path, tmp_path).stdout]
    (folder / ".lit_robust" / "index").write_bytes(b"1")
    places.append(stage("place", tmp_path, tmp_path).stdout)
    (folder / "x.tar").write_bytes(b"1")
    places.append(stage("place", tmp_path, tmp_path).stdout)
    assert places[0] == places[1] != places[2]
