"""Every public name with its one line, for lit_robust/README.md, read from the rooms' ``__init__`` files.

    python tests/public_names.py

writes the section anew; tests/test_house.py fails where it is not what this would write.
"""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lit_robust"
README = PACKAGE / "README.md"
BEGIN, END = "## Every public name\n", "\n## "
ROOMS = (
    "callbacks", "attacks", "metrics", "models", "modules", "data", "stimuli", "stimuli/corruptions", "memory",
    "analysis", "report", "shards", "reference",
)  # fmt: skip


def names_of(tree: ast.Module) -> list[str]:
    """Return what a room's ``__init__`` has in ``__all__``, or in the table of what it imports when it is asked for."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id == "__all__":
                return list(ast.literal_eval(node.value))
            if node.targets[0].id == "FILES":
                return list(ast.literal_eval(node.value))
    return []


def line_of(file: Path, name: str) -> str:
    """Return the first line of a name's docstring, wherever it is defined; of a constant the string or comment there.

    Raises:
        AssertionError: it has none.
    """
    tree, lines = ast.parse(file.read_text()), file.read_text().splitlines()
    for place, node in enumerate(tree.body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return _first_line(ast.get_docstring(node), f"{file}: {name}")
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == name:
            after = tree.body[place + 1] if place + 1 < len(tree.body) else None
            told = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            comment = lines[node.lineno - 1].partition("# ")[2]
            return _first_line(str(told) or comment or ast.get_docstring(tree), f"{file}: {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and name in [alias.asname or alias.name for alias in node.names]:
            return line_of(_file(str(node.module)), name)
    raise AssertionError(f"{file} does not define {name}")


def _first_line(docstring: str | None, what: str) -> str:
    assert docstring, f"{what} has no line that says what it is"
    return docstring.splitlines()[0].strip()


def _file(module: str) -> Path:
    place = PACKAGE.parent.joinpath(*module.split("."))
    return place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"


def section() -> str:
    """Return the section: a table a room, one row a name."""
    parts = [BEGIN, "`from lit_robust import evaluate`: any network on any loader, in one call.\n"]
    for room in ROOMS:
        init = PACKAGE / room / "__init__.py"
        names = sorted(names_of(ast.parse(init.read_text())), key=str.lower)
        rows = "".join(f"| `{name}` | {line_of(init, name).replace('|', '/')} |\n" for name in names)
        dotted = f"lit_robust.{room.replace('/', '.')}"
        what = f"`from {dotted} import ...`"
        if not names:  # Each of its modules is imported by itself.
            what = f"modules of `{dotted}`"
            files = sorted(file for file in init.parent.glob("*.py") if file != init)
            told = {file.stem: _first_line(ast.get_docstring(ast.parse(file.read_text())), str(file)) for file in files}
            rows = "".join(f"| `{dotted}.{name}` | {line.replace('|', '/')} |\n" for name, line in told.items())
        parts += [f"| {what} | |\n| --- | --- |\n{rows}"]
    return "\n".join(parts)


def written(readme: str) -> str:
    """Return the document with the section made anew, at its end where it had none."""
    before, found, after = readme.partition(BEGIN)
    rest = after[after.index(END) + 1 :] if found and END in after else ""
    return f"{before.rstrip()}\n\n{section()}" + (f"\n{rest}" if rest else "")


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
