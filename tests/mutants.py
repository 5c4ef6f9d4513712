"""Which wrong lines the tests of a room would let pass: a random sample of mutants, by mutmut.

    uv run --group mutants python tests/mutants.py shards 200

breaks lines of the room's files one at a time, in a copy of the last commit, and runs the room's tests on each. It
prints how many were killed, and each survivor's two lines. Which of these change what the program does is for a reader
to say; RESULTS.md has what was found. It takes from minutes to hours, and is no part of CI.
"""

import ast
import json
import os
import random
import subprocess
import sys
from collections import Counter
from difflib import unified_diff
from pathlib import Path
from tempfile import TemporaryDirectory

# What is mutated, and which tests are run; those that take long are left out, as a survivor runs all.
ROOMS = {
    "metrics": ("lit_robust/metrics/*.py", "tests/metrics"),
    "attacks": ("lit_robust/attacks/*.py", "tests/attacks"),
    "memory": ("lit_robust/memory/*.py", "tests/memory --ignore=tests/memory/test_fuzz_memory.py"),
    "modules": (
        "lit_robust/modules/[!c]*.py",
        "tests/modules --ignore=tests/modules/test_two_ranks.py --ignore=tests/modules/test_cache.py",
    ),
    "cache": (
        "lit_robust/modules/cache.py",
        "tests/modules/test_cache.py"
        " --deselect=tests/modules/test_cache.py::test_two_ranks_build_and_answer_as_one"
        " --deselect=tests/modules/test_cache.py::test_a_killed_build_goes_on",
    ),
    "order": (
        "lit_robust/data/loading/order.py lit_robust/data/loading/blocks.py lit_robust/data/loading/streams.py",
        "tests/data/test_order.py tests/data/test_blocks.py tests/data/test_streams.py",
    ),
    "shards": (
        "lit_robust/shards/tar.py lit_robust/shards/scan.py",
        "tests/shards/test_members.py tests/shards/test_scan.py tests/shards/test_labels.py tests/shards/test_tar.py"
        " --deselect=tests/shards/test_tar.py::test_flipped_bytes_of_headers"
        " --deselect=tests/shards/test_tar.py::test_every_truncation"
        " --deselect=tests/shards/test_tar.py::test_flipped_bytes_anywhere_never_change_the_count",
    ),
}
SETTINGS = """
[tool.mutmut]
source_paths = ["lit_robust"]
only_mutate = {files}
also_copy = ["configs", "README.md"]
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = ["-p", "no:cacheprovider", "-n0", "-x", "-q"]
process_isolation = "fork"
track_dependencies = false
use_git_change_detection = false
# A checkpoint pickles the function of these lines, which a mutated one does not allow.
do_not_mutate_patterns = ["return rate_factor", "if step == 0:", "epochs = (float|self)", "if epochs < 0"]
"""
STATUS = {None: "not run", 0: "survived", 1: "killed", 3: "killed", 5: "no test", 33: "no test"}


def mutmut(folder: Path, names: list[str]) -> None:
    # A module is imported from the copy, whatever the path of this process says.
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(["mutmut", "run", "--max-children", "1", *names], cwd=folder, env=kept, check=False)


def codes(folder: Path) -> dict[str, int | None]:
    """Return each mutant's exit code, by name."""
    found = {}
    for file in sorted((folder / "mutants").rglob("*.meta")):
        found.update(json.loads(file.read_text())["exit_code_by_key"])
    return found


def change(folder: Path, name: str) -> list[str]:
    """Return the lines that a mutant takes away and puts in."""
    module, mutant = name.rsplit(".", 1)
    tree = ast.parse((folder / "mutants" / f"{module.replace('.', '/')}.py").read_text())
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    original = functions[f"{mutant.partition('__mutmut_')[0]}__mutmut_orig"]
    before, after = (ast.unparse(one).splitlines()[1:] for one in (original, functions[mutant]))
    return [line for line in unified_diff(before, after, n=0, lineterm="") if line[:2] not in ("--", "++", "@@")]


def main(room: str, count: int) -> None:
    files, tests = ROOMS[room]
    with TemporaryDirectory() as place:
        folder = Path(place) / "main"
        subprocess.run(["git", "clone", "-q", Path(__file__).parents[1], folder], check=True)
        with (folder / "pyproject.toml").open("a") as file:
            file.write(SETTINGS.format(files=json.dumps(files.split()), tests=json.dumps(tests.split())))
        mutmut(folder, ["none"])  # It makes all of them before it finds that none is called so.
        names = sorted(codes(folder))
        print(f"{len(names)} mutants")
        random.Random(0).shuffle(names)
        mutmut(folder, names[:count])
        # What is neither of the others was stopped after 15 times as long as its tests take, or crashed.
        found = {name: STATUS.get(code, "killed") for name, code in codes(folder).items() if name in names[:count]}
        print(f"\n{dict(Counter(found.values()))}")
        for name, status in found.items():
            if status != "killed":
                print(f"{status}: {name}", *change(folder, name), sep="\n    ")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
