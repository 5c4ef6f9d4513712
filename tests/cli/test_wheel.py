"""The built wheel alone, in a folder of its own: its commands, its recipes, and nothing of the repository beside it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel's files as an installer lays them out; the dependencies are those of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("lit_robust-*.whl")
    place = folder / "site-packages"
    zipfile.ZipFile(wheel).extractall(place)
    return place


def run(installed, folder, *words):
    script = "import sys; from lit_robust.cli import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-P", "-c", script, *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_its_commands_and_recipes(installed, tmp_path):
    where = [sys.executable, "-P", "-c", "import lit_robust; print(lit_robust.__file__)"]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()) == installed / "lit_robust" / "__init__.py"
    assert "usage: lit-robust COMMAND" in run(installed, tmp_path, "--help")
    assert "imagenet/madry" in run(installed, tmp_path, "recipes")
    config = run(installed, tmp_path, "fit", "-c", "imagenet/madry", "--print_config")
    assert "class_path: lit_robust.modules.AdversarialModule" in config
    assert list(tmp_path.iterdir()) == []


def test_the_wheel_holds_the_package_alone(installed):
    names = {path.name for path in installed.iterdir()}
    assert names == {"lit_robust", f"lit_robust-{version()}.dist-info"}
    held = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    wanted = {"py.typed", "report/page.html", "reference/imagenet_classes.csv", "configs/imagenet/madry.yaml"}
    assert {f"lit_robust/{name}" for name in wanted} <= held
    entry = installed / f"lit_robust-{version()}.dist-info" / "entry_points.txt"
    assert "lit-robust = lit_robust.cli:main" in entry.read_text()


def version():
    import lit_robust

    return lit_robust.__version__
