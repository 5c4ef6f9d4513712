"""``lit-robust demo``: the papers' main finding on drawn figures, by the commands a user would type."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import lit_robust
from lit_robust.cli import main
from lit_robust.errors import UserError
from lit_robust.files import write_text
from lit_robust.report import compare, load_runs, report, terminal

RUNS = ("standard", "advprop", "adversarial")
MARK = "demo.json"  # In every folder the demo makes: what made it, and whether that came to its end.


def run_demo(output: Path, seed: int) -> None:
    """Draw the data, train and test the three networks, and write the page that compares them.

    What an earlier call with the same seed finished is reused, and an interrupted training goes on.

    Args:
        output: folder for everything.
        seed: of the figures, the networks and the order of training.

    Raises:
        UserError: a step failed, or ``output`` holds folders of these names that the demo did not make.
    """
    started = time.monotonic()
    os.environ.setdefault("WANDB_SILENT", "true")  # The runs' summaries would bury the comparison.
    data = output / "data"
    if _begin(data, "data", f"{lit_robust.__version__} {seed}") != "finished":
        # Half a drawing is no use: `data toy` refuses to add to it.
        shutil.rmtree(data)
        _begin(data, "data", f"{lit_robust.__version__} {seed}")
        # No network is tested on corrupted figures here.
        _run(["data", "toy", str(data), "--seed", str(seed), "--severities", "[]"])
        _finish(data)
    for name in RUNS:
        _train_and_test(config(f"toy/{name}.yaml"), output / name, data, seed)
    folders = [output / name for name in RUNS]
    print("\n" + terminal(compare({run.label: run.found for run in load_runs(folders)})), end="\n\n")
    report(folders, output / "report.html")
    print(f"Took {time.monotonic() - started:.0f} s. Open {output / 'report.html'} in a browser.")


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


def _train_and_test(recipe: Path, folder: Path, data: Path, seed: int) -> None:
    settings = ["-c", str(recipe), "--trainer.default_root_dir", str(folder), "--data.init_args.root", str(data)]
    settings += ["--seed_everything", str(seed)]
    last = folder / "checkpoints" / "last.ckpt"
    state = _begin(folder, "training and test", f"{lit_robust.__version__} {seed} {recipe.read_text()}")
    if state == "finished":
        print(f"{folder} is finished already.")
        return
    resume = ["--ckpt_path", str(last)] if last.is_file() else []
    _run(["fit", *settings, *resume])
    _run(["test", *settings, "--ckpt_path", str(last)])
    _finish(folder)


def _begin(folder: Path, what: str, settings: str) -> str:
    """Make ready a folder for ``settings``, emptying what other settings made; return ``finished`` or ``begun``."""
    mark = {"what": what, "settings": hashlib.sha256(settings.encode()).hexdigest()}
    try:
        found = json.loads((folder / MARK).read_text())
        same = {key: found[key] for key in mark} == mark
    except (OSError, ValueError, KeyError, TypeError):
        found, same = None, False
    if found is None and folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds files that the demo did not write: choose another --output.")
    if same:
        return "finished" if found["finished"] else "begun"
    if found is not None:
        shutil.rmtree(folder)
    write_text(folder / MARK, json.dumps({**mark, "finished": False}))
    return "begun"


def _finish(folder: Path) -> None:
    mark = json.loads((folder / MARK).read_text())
    write_text(folder / MARK, json.dumps({**mark, "finished": True}))


def _run(words: list[str]) -> None:
    print(f"\n$ lit-robust {' '.join(words)}", flush=True)
    code = main(words)
    if code == 130:
        raise KeyboardInterrupt
    if code != 0:
        raise UserError("The demo stopped at the command above, for the reason it gave.")
