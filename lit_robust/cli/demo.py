"""``lit-robust demo``: the papers' main finding on drawn figures, by the commands a user would type."""

import os
import shlex
import shutil
import time
from pathlib import Path

import lit_robust
from lit_robust.cli import analyses, steps
from lit_robust.cli.options import call
from lit_robust.cli.recipes import recipe as config
from lit_robust.cli.trainer import run_trainer
from lit_robust.data.packing.concepts import write_concepts
from lit_robust.data.packing.toy import write_toy_data
from lit_robust.report import compare, load_runs, report, terminal

TRAINED = ("standard", "advprop", "adversarial")
CACHE = "cache"  # Of the standard network's features.
SEVERITIES = [1, 3, 5]  # Those that the measures' overlay asks for.
STUDIES = ("smoothness", "dissection", "ablation", "inversion", "visualisation")
FIGURES = 144  # with marked concepts
SEARCH = ["--search.step_size", "0.5", "--search.steps", "60"]


def run_demo(output: Path, seed: int) -> None:
    """Draw the data, train and test three networks and a cache model, look inside, and write the page that compares.

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
        # Half a drawing is useless: `data toy` refuses to add to it.
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
    studies = _look_inside(output, data, seed, made_by)
    folders = [output / name for name in (*TRAINED, CACHE)]
    print("\n" + terminal(compare({run.label: run.found for run in load_runs(folders)})), end="\n\n")
    report([*folders, *studies], output / "report.html")
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


def _look_inside(output: Path, data: Path, seed: int, made_by: str) -> list[Path]:
    """Study the filters, units and representations of the trained networks, and return the studies' folders."""
    concepts, folders = output / "concepts", []
    if not steps.begin(concepts, "concepts", f"{made_by} {FIGURES}"):
        drawn = concepts / "drawn"
        shutil.rmtree(drawn, ignore_errors=True)
        print(f"\n$ lit-robust data concepts {drawn} --count {FIGURES} --seed {seed}", flush=True)
        write_concepts(drawn, seed, FIGURES)
        steps.finish(concepts)
    whole = ["--resize", "null", "--crop", "null"]
    for name in TRAINED:
        made = {kind: output / "studies" / f"{name}-{kind}" for kind in STUDIES}
        options = {
            "smoothness": ["--data", str(data / "imagenet"), *whole, "--limit", "128"],
            "dissection": [
                *("--concepts", str(concepts / "drawn"), "--quantile", "0.03"),
                *("--twins", str(concepts / "drawn" / "twins")),
            ],
            "ablation": [
                *("--data", str(data), "--categories", "shards", "--limit", "128"),
                *("--dissection", str(made["dissection"])),
            ],
            "inversion": [str(data / "imagenet"), *whole, "--images", "8", "--repeats", "2", *SEARCH],
            "visualisation": [str(data / "imagenet"), *whole, "--count", "8", "--starts", "1", *SEARCH],
        }
        weights = ["--network.weights", str(output / name / "checkpoints" / "last.ckpt")]
        for kind, folder in made.items():
            words = ["analyze", kind, *options[kind], *weights, "--output", str(folder)]
            if not _is_finished(folder, f"{made_by} {config(f'toy/{name}').read_text()} {words}"):
                print(f"\n$ {shlex.join(['lit-robust', *words])}", flush=True)
                study = getattr(analyses, f"analyze_{kind}")
                study(**call(f"analyze {kind}", words[2:], study)[0])
                steps.finish(folder)
            folders.append(folder)
    return folders


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
