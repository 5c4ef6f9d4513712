"""The rooms import only what the house's plan allows, and no two files import each other."""

import ast
import gc
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import public_names
import pytest

PACKAGE = Path(__file__).parents[1] / "lit_robust"
GROUND_FLOOR = {"core", "reference"}
MAY_IMPORT = {
    "core": set(),
    "reference": set(),
    "shards": set(),
    "stimuli": set(),
    "attacks": set(),
    "models": set(),
    "metrics": set(),
    "memory": {"models"},
    "data": {"shards", "stimuli", "models"},
    "modules": {"models", "attacks", "memory", "metrics"},
    "callbacks": {"metrics", "attacks", "models"},
    "analysis": {"models", "attacks", "metrics", "data", "shards", "stimuli"},
    "report": set(),
    "__init__": {"callbacks"},
    "__main__": {"cli"},
}
ROOMS = set(MAY_IMPORT) - {"__init__", "__main__"}
MAY_IMPORT |= {"bench": ROOMS, "cli": ROOMS | {"bench"}}
FILES = sorted(PACKAGE.rglob("*.py"))


def parsed(source: str) -> ast.Module:
    """Return the tree of a file; CPython 3.11 fails where garbage collection within it parses another file."""
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        gc.enable()


def imported_rooms(source: str) -> set[str]:
    """Return the names right below ``lit_robust`` that a file imports, wherever in it."""
    rooms = set()
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names = [
                f"{node.module}.{alias.name}" if node.module == "lit_robust" else node.module or ""
                for alias in node.names
            ]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("lit_robust.")}
    return rooms


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_down(file):
    room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    imported = imported_rooms(file.read_text()) - {room, "__version__"}
    assert room in MAY_IMPORT, f"{room} is not a room of the house"
    assert imported <= MAY_IMPORT[room] | GROUND_FLOOR


def test_the_package_is_light_until_evaluate_is_asked_for():
    heavy = "torch", "pytorch_lightning", "numpy", "pandas"
    code = f"import sys, lit_robust; assert not sys.modules.keys() & {set(heavy)}, sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
    import lit_robust

    assert callable(lit_robust.evaluate)
    with pytest.raises(AttributeError, match="no attribute 'evaluat'"):
        lit_robust.evaluat  # noqa: B018


def test_the_rule_can_fail():
    assert imported_rooms("from lit_robust.data import X") == {"data"}
    assert imported_rooms("from lit_robust import data, core") == {"data", "core"}
    assert imported_rooms("import lit_robust.report.page") == {"report"}


def imported_files(file: Path) -> set[Path]:
    """Return the files of the package that a file imports, wherever in it; of a package its ``__init__``."""
    found = set()
    for node in ast.walk(parsed(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lit_robust":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "lit_robust"]
        else:
            continue
        for name in names:
            place = PACKAGE.parent.joinpath(*name.split("."))
            places = [p for at in (place, place.parent) for p in (at.with_suffix(".py"), at / "__init__.py")]
            found.add(next(p for p in places if p.is_file()))
    return found - {PACKAGE / "__init__.py"}  # It has the version, and what is imported when it is asked for.


def check_no_circle(imports: dict[Path, set[Path]]) -> None:
    TopologicalSorter(imports).prepare()


def test_no_circle():
    check_no_circle({file: imported_files(file) for file in FILES})


def test_a_circle_is_found():
    one, other = FILES[:2]
    with pytest.raises(CycleError):
        check_no_circle({one: {other}, other: {one}})


def test_the_readme_lists_every_public_name():
    readme = public_names.README.read_text()
    assert readme == public_names.written(readme), "run `python tests/public_names.py`"


def test_no_file_holds_two_concepts():
    long = {str(file.relative_to(PACKAGE)): n for file in FILES if (n := len(file.read_text().splitlines())) > 400}
    assert not long
