"""The rooms import only what the house's plan allows."""

import ast
from pathlib import Path

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
    "analysis": {"models", "attacks", "metrics", "data"},
    "report": set(),
}
# The commands stand above all rooms.
TOP_FLOOR = {"__init__", "__main__", "cli", "bench"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported_rooms(source: str) -> set[str]:
    """Return the names right below ``lit_robust`` that a file imports, wherever in it."""
    rooms = set()
    for node in ast.walk(ast.parse(source)):
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
    if room in TOP_FLOOR:
        return
    imported = imported_rooms(file.read_text()) - {room, "__version__"}
    assert room in MAY_IMPORT, f"{room} is not a room of the house"
    assert imported <= MAY_IMPORT[room] | GROUND_FLOOR


def test_the_rule_can_fail():
    assert imported_rooms("from lit_robust.data import X") == {"data"}
    assert imported_rooms("from lit_robust import data, core") == {"data", "core"}
    assert imported_rooms("import lit_robust.report.page") == {"report"}


def test_no_file_holds_two_concepts():
    long = {str(file.relative_to(PACKAGE)): n for file in FILES if (n := len(file.read_text().splitlines())) > 400}
    assert not long
