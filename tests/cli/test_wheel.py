"""The built wheel in an empty environment: its command, its recipes, and nothing of the repository next to it."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import lit_robust

ROOT = Path(__file__).parents[2]
UV = shutil.which("uv")
pytestmark = pytest.mark.skipif(UV is None, reason="uv makes the environment")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The wheel alone is installed; its dependencies, which are gigabytes, are those of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("lit_robust-*.whl")
    place = folder / "environment"
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, place], check=True)
    install = [UV, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", place, wheel]
    subprocess.run(install, check=True)
    (packages(place) / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return place


def packages(environment):
    (folder,) = environment.glob("lib/python*/site-packages")
    return folder


def run(environment, folder, *words):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    command = [environment / "bin" / words[0], *words[1:]]
    done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_its_commands_and_recipes(environment, tmp_path):
    place = run(environment, tmp_path, "python", "-c", "import lit_robust; print(lit_robust.__file__)")
    assert Path(place.strip()) == packages(environment) / "lit_robust" / "__init__.py"
    assert "usage: lit-robust COMMAND" in run(environment, tmp_path, "lit-robust", "--help")
    assert "imagenet/madry" in run(environment, tmp_path, "lit-robust", "recipes")
    config = run(environment, tmp_path, "lit-robust", "fit", "-c", "imagenet/madry", "--print_config")
    assert "class_path: lit_robust.modules.AdversarialModule" in config
    assert list(tmp_path.iterdir()) == []


def test_the_wheel_holds_the_package_alone(environment):
    information = f"lit_robust-{lit_robust.__version__}.dist-info"
    names = {path.name for path in packages(environment).iterdir() if not path.name.startswith("_")}
    assert names == {"lit_robust", information, "dependencies.pth"}
    held = {path.relative_to(packages(environment)).as_posix() for path in packages(environment).rglob("*")}
    wanted = {"py.typed", "report/page.html", "reference/imagenet_classes.csv", "configs/imagenet/madry.yaml"}
    assert {f"lit_robust/{name}" for name in wanted} <= held
    entry = packages(environment) / information / "entry_points.txt"
    assert "lit-robust = lit_robust.cli:main" in entry.read_text()
