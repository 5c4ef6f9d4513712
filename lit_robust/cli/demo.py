"""``lit-robust demo``: the papers' main finding on drawn figures, by the commands a user would type."""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import lit_robust
from lit_robust.cli import steps
from lit_robust.core.errors import UserError
from lit_robust.report import compare, load_runs, report, terminal

TRAINED = ("standard", "advprop", "adversarial")
CACHE = "cache"  # Of the standard network's features.
SEVERITIES = "[1, 3, 5]"  # Those that the measures' overlay asks for.


def run_demo(output: Path, seed: int, command: Callable[[Sequence[str]], int]) -> None:
    """Draw the data, train and test the three networks and a cache model, and write the page that compares them.

    What an earlier call with the same seed finished is reused, and an interrupted training goes on.

    Args:
        output: folder for everything.
        seed: of the figures, the networks and the order of training.
        command: runs the words behind ``lit-robust``, and returns the exit code.

    Raises:
        UserError: a step failed, or ``output`` holds folders of these names that the demo did not make.
    """
    started = time.monotonic()
    os.environ.setdefault("WANDB_SILENT", "true")  # The runs' summaries would bury the comparison.
    data, measures = output / "data", config("toy/measures/all.yaml")
    made_by = f"{lit_robust.__version__} {seed}"
    if not steps.begin(data, "data", made_by):
        # Half a drawing is no use: `data toy` refuses to add to it.
        shutil.rmtree(data)
        steps.begin(data, "data", made_by)
        steps.run(["data", "toy", str(data), "--seed", str(seed), "--severities", SEVERITIES], command)
        steps.finish(data)
    for name in TRAINED:
        recipe, folder = config(f"toy/{name}.yaml"), output / name
        settings = _settings(folder, data, seed)
        if _is_finished(folder, f"{made_by} {recipe.read_text()} {measures.read_text()}"):
            continue
        checkpoints = folder / "checkpoints"
        newest = max(checkpoints.glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns, default=None)
        steps.run(["fit", "-c", str(recipe), *settings, *(["--ckpt_path", str(newest)] if newest else [])], command)
        steps.run(
            ["test", "-c", str(recipe), "-c", str(measures), *settings, "--ckpt_path", str(checkpoints / "last.ckpt")],
            command,
        )
        steps.finish(folder)
    _remember(output, data, seed, command, f"{made_by} {measures.read_text()}")
    folders = [output / name for name in (*TRAINED, CACHE)]
    print("\n" + terminal(compare({run.label: run.found for run in load_runs(folders)})), end="\n\n")
    report(folders, output / "report.html")
    print(f"Took {time.monotonic() - started:.0f} s. Open {output / 'report.html'} in a browser.")


def _remember(output: Path, data: Path, seed: int, command: Callable[[Sequence[str]], int], made_by: str) -> None:
    """Build and test the cache model of the standard network."""
    recipe, folder = config(f"toy/{CACHE}.yaml"), output / CACHE
    backbone = output / "standard" / "checkpoints" / "last.ckpt"
    # Another backbone needs another memory.
    if _is_finished(folder, f"{made_by} {recipe.read_text()} {config('toy/standard.yaml').read_text()}"):
        return
    memory = folder / "memory"
    settings = _settings(folder, data, seed)
    settings += ["--model.network.weights", str(backbone), "--model.memory", str(memory)]
    if not memory.is_dir():
        steps.run(["fit", "-c", str(recipe), *settings], command)
    steps.run(["test", "-c", str(recipe), "-c", str(config("toy/measures/all.yaml")), *settings], command)
    steps.finish(folder)


def _settings(folder: Path, data: Path, seed: int) -> list[str]:
    settings = ["--trainer.default_root_dir", str(folder), "--data.init_args.root", str(data)]
    return [*settings, "--seed_everything", str(seed)]


def _is_finished(folder: Path, settings: str) -> bool:
    if finished := steps.begin(folder, "training and test", settings):
        print(f"{folder} is finished already.")
    return finished


def config(name: str) -> Path:
    """Return the path of one of the recipes in ``configs/``, such as ``toy/standard.yaml``.

    Raises:
        UserError: the recipes are neither beside the package nor inside it.
    """
    package = Path(lit_robust.__file__).parent
    for folder in (package.parent / "configs", package / "configs"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"The recipe configs/{name} is missing: install the package again.")
