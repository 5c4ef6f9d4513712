"""``lit-robust demo``: the papers' main finding on drawn figures, by the commands a user would type."""

import os
import shlex
import shutil
import time
from pathlib import Path

import lit_robust
from lit_robust.cli import steps
from lit_robust.cli.recipes import recipe as config
from lit_robust.cli.trainer import run_trainer
from lit_robust.data.packing.toy import write_toy_data
from lit_robust.report import compare, load_runs, report, terminal

TRAINED = ("standard", "advprop", "adversarial")
CACHE = "cache"  # Of the standard network's features.
SEVERITIES = [1, 3, 5]  # Those that the measures' overlay asks for.


def run_demo(output: Path, seed: int) -> None:
    """Draw the data, train and test the three networks and a cache model, and write the page that compares them.

    What an earlier call with the same seed finished is reused, and an interrupted training goes on.

    Args:
        output: folder for everything.
        seed: of the figures, the networks and the order of training.

    Raises:
        UserError: a step failed, or ``output`` holds folders of these names that the demo did not make.
    """
    started = time.monotonic()
    os.environ.setdefault("WANDB_SILENT", "true")  # The runs' summaries would bury the comparison.
    data, measures = output / "data", config("toy/measures/all")
    made_by = f"{lit_robust.__version__} {seed}"
    if not steps.begin(data, "data", made_by):
        # Half a drawing is no use: `data toy` refuses to add to it.
        shutil.rmtree(data)
        steps.begin(data, "data", made_by)
        print(f'\n$ lit-robust data toy {data} --seed {seed} --severities "{SEVERITIES}"', flush=True)
        write_toy_data(data, seed, severities=SEVERITIES)
        steps.finish(data)
    for name in TRAINED:
        recipe, folder = config(f"toy/{name}"), output / name
        settings = _settings(folder, data, seed)
        if _is_finished(folder, f"{made_by} {recipe.read_text()} {measures.read_text()}"):
            continue
        checkpoints = folder / "checkpoints"
        newest = max(checkpoints.glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns, default=None)
        _run(["fit", "-c", str(recipe), *settings, *(["--ckpt_path", str(newest)] if newest else [])])
        last = str(checkpoints / "last.ckpt")
        _run(["test", "-c", str(recipe), "-c", str(measures), *settings, "--ckpt_path", last])
        steps.finish(folder)
    _remember(output, data, seed, f"{made_by} {measures.read_text()}")
    folders = [output / name for name in (*TRAINED, CACHE)]
    print("\n" + terminal(compare({run.label: run.found for run in load_runs(folders)})), end="\n\n")
    report(folders, output / "report.html")
    print(f"Took {time.monotonic() - started:.0f} s. Open {output / 'report.html'} in a browser.")


def _remember(output: Path, data: Path, seed: int, made_by: str) -> None:
    """Build and test the cache model of the standard network."""
    recipe, folder = config(f"toy/{CACHE}"), output / CACHE
    backbone = output / "standard" / "checkpoints" / "last.ckpt"
    # Another backbone needs another memory.
    if _is_finished(folder, f"{made_by} {recipe.read_text()} {config('toy/standard.yaml').read_text()}"):
        return
    memory = folder / "memory"
    settings = _settings(folder, data, seed)
    settings += ["--model.network.weights", str(backbone), "--model.memory", str(memory)]
    if not memory.is_dir():
        _run(["fit", "-c", str(recipe), *settings])
    _run(["test", "-c", str(recipe), "-c", str(config("toy/measures/all")), *settings])
    steps.finish(folder)


def _run(words: list[str]) -> None:
    """Show a command, and run it in this process."""
    line = shlex.join(["lit-robust", *words])
    print(f"\n$ {line}", flush=True)
    run_trainer(words, line)


def _settings(folder: Path, data: Path, seed: int) -> list[str]:
    settings = ["--trainer.default_root_dir", str(folder), "--data.init_args.root", str(data)]
    return [*settings, "--seed_everything", str(seed)]


def _is_finished(folder: Path, settings: str) -> bool:
    if finished := steps.begin(folder, "training and test", settings):
        print(f"{folder} is finished already.")
    return finished
