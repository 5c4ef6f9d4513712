"""The ``lit-robust`` command: finds the tool asked for, and turns users' mistakes into one sentence.

Nothing heavy is imported before the tool is known, so that ``lit-robust --help`` answers at once.
"""

import os
import select
import shlex
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from lit_robust import __version__
from lit_robust.core.errors import UserError

Function = Callable[..., Any]
TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
OTHER_WORDS = {"train": "fit", "evaluate": "test", "eval": "test", "help": "--help", "derive": "data derive"}
# Heading to commands, each with what it does.
COMMANDS: dict[str, dict[str, str]] = {
    "see it work": {
        "demo": "draw toy data, train three networks, remember with one, compare them (minutes)",
    },
    "train and evaluate, each with -c RECIPE and any option of it on the command line": {
        "fit": "train a network",
        "validate": "accuracy on the validation images",
        "test": "every evaluation the recipe names; writes results.json into the run's folder",
        "predict": "a class for every validation image; writes predictions.csv into the run's folder",
    },
    "recipes, data and reports": {
        "recipes": "list the recipes that -c takes by their names",
        "recipes copy": "copy one, to be changed",
        "data toy": "draw the toy data, as shards in the layouts of the real sets",
        "data concepts": "draw figures with marked concepts, for dissections",
        "data shard": "pack folders or tars of images into shards",
        "data verify": "check shards, and list every defect",
        "data corrupt": "shards under the corruptions of ImageNet-C",
        "data derive scrambled": "shards of images whose patches are in another order",
        "data derive black-and-white": "shards of images in black and white",
        "data derive edges": "shards of images' edges",
        "data cue-conflict": "images of one category's shape and another's texture",
        "data derive silhouettes": "shards of silhouettes, from a folder of masks",
        "data derive silhouettes-detected": "shards of silhouettes of what a detector finds",
        "data derive silhouettes-toy": "shards of silhouettes of the toy figures",
        "data derive stylised": "shards of images in the styles of pictures",
        "data derive stylised-magenta": "likewise, by networks that need no files",
        "data derive corrupted": "shards under one corruption",
        "data filter hard": "the images of a pool that networks get wrong, as ImageNet-A was made",
        "data filter anomalies": "images of other classes that networks take for theirs, as ImageNet-O was made",
        "data filter transfer": "whether images that fool one network fool others",
        "data filter split": "a set's images in two parts, to fine-tune on one",
        "data filter apply": "those that a person kept on the review sheet of such a set",
        "class-vectors": "the head of a CLIP-like network, from the names of classes",
        "convert": "another lab's checkpoint, as safetensors with its provenance",
        "report": "compare runs on one page",
        "recompute": "measures again, from predictions that a run kept",
        "paired": "the difference of two runs on the same images",
        "dashboard": "a W&B workspace with panels for the runs' measures",
    },
    "tables and figures of papers: their runs, and a page of what came out": {
        "paper cache-table-1": "Orhan & Lake 2019, Table 1 and Figure 5: texture- and shape-based backbones",
        "paper cache-table-2": "its Table 2 and Figure 4: retrieval, dimensions, size",
        "paper cache-figure-2": "its Figures 2 and 3: layers",
        "paper cache-table-4": "its Tables 3 and 4: corruptions",
        "paper shape-tables-1-2": "Chen, Agarwal & Nguyen 2020: accuracy, adversarial accuracy, shape bias",
        "paper shape-table-3": "its Table 3 and Figure 3: pairs on shape-less and texture-less images",
        "paper shape-table-4": "its Table 4 and Figures 4 to 10: smoothness, concepts and ablation of units",
        "paper representation-figures": "Engstrom et al. 2019: inversions, visualisations, S against R",
        "paper natural-figures-2-8": "Hendrycks et al. 2021: ImageNet-A accuracy, ImageNet-O AUPR",
        "paper natural-transfer": "its section 3: sizes per stage of a filtration, and whether each set fools others",
    },
    "studies of what is inside a network": {
        "analyze smoothness": "total variation of filters and maps, clean and noisy",
        "analyze inversion": "images that have the representations of others",
        "analyze interpolation": "from image to image through the representation",
        "analyze visualisation": "units raised from images and from noise",
        "analyze manipulation": "features added to images",
        "analyze jacobian": "how strongly the answer changes with the image",
        "analyze perturbation-size": "how large the corruptions of ImageNet-C are",
        "analyze frechet-distance": "how far apart two sets lie for a network",
        "analyze attribution": "where in images a network sees their classes",
        "analyze fusion": "the best weight of a standard network fused with a robust one",
        "analyze dissection": "which marked concept each unit detects",
        "analyze ablation": "Shape and Texture score of every unit",
        "analyze log": "studies sent to W&B",
    },
    "a cache model's memory, which `fit` builds": {
        "memory verify": "check its files, and print what it holds",
        "memory cluster": "one of fewer keys",
        "memory project": "one of fewer dimensions",
        "memory index": "an index for approximate search",
    },
    "speed and memory against others' code": {
        "bench data": "loading",
        "bench corruptions": "the 19 corruptions",
        "bench attacks": "PGD, and sweeps over eps",
        "bench autoattack": "AutoAttack, against its authors' code",
        "bench inversion": "inverting representations",
        "bench stylising": "stylising by AdaIN",
        "bench training": "a step of each training scheme",
        "bench memory": "retrieval from a cache model's memory",
        "bench stored-memory": "a memory of ImageNet's size, asked from disk",
        "bench analysis": "ablation and dissection of units",
        "bench evaluation": "all measures against the bare forward pass",
        "bench intervals": "how often 95 % intervals hold the truth",
        "bench suite": "what eval/suite.yaml costs, here and on one H200",
        "bench compile": "torch.compile, and whether it pays",
        "bench all": "every table of these, in Markdown",
    },
}
WIDTH = 35  # Of a name, in help.
NAMES = [name for commands in COMMANDS.values() for name in commands]


def help_text() -> str:
    """Return what ``lit-robust --help`` prints."""
    parts = [
        f"{heading}:\n" + "".join(f"  {name:<{WIDTH}}{line}\n" for name, line in commands.items())
        for heading, commands in COMMANDS.items()
    ]
    return "\n".join(
        [
            "usage: lit-robust COMMAND [OPTIONS]\n",
            "Train robust image classifiers, and measure how robust any classifier is.\n",
            *parts,
            "options:\n"
            f"  {'-h, --help':<{WIDTH}}show this message; `lit-robust COMMAND --help` shows a command's options\n"
            f"  {'--version':<{WIDTH}}show the version\n",
        ]
    )


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        args: the words after ``lit-robust``; those of the process where null.

    Returns:
        0 if all went well, 2 after a user's mistake, which was explained in one sentence on standard error; 130 after
        Ctrl-C, 143 after SIGTERM, 85 after SIGUSR1, 141 where nobody reads the output any more.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "10")  # s; in a log each state of a bar stays.
    try:
        try:
            return _answer(list(sys.argv[1:] if args is None else args))
        finally:
            print(end="", flush=True)
    except BrokenPipeError:
        watch = select.poll()
        watch.register(1, 0)
        if not watch.poll(0):
            raise  # It was another pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Whoever reads the output has read enough, as `head` does.
        return 141


def _answer(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(help_text(), end="")
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    try:
        if words[0] in TRAINER_COMMANDS:
            from lit_robust.cli.trainer_help import ALL, asks_for_help, trainer_help

            if asks_for_help(words):
                print(trainer_help(words), end="")
                return 0
            words = [
                word for place, word in enumerate(words) if word != ALL or words[place - 1] not in ("-h", "--help")
            ]
            from lit_robust.cli.trainer import run_trainer
            from lit_robust.core.processes import keep_freed_memory

            keep_freed_memory()
            run_trainer(words, command=shlex.join(["lit-robust", *words]))
        else:
            _run(words)
    except (KeyboardInterrupt, SystemExit) as ended:
        # Lightning turns Ctrl-C into an exit with code 1.
        by_hand = ended.__context__ if isinstance(ended.__context__, KeyboardInterrupt) else ended
        notes = getattr(by_hand, "__notes__", None)
        if notes is None and not isinstance(by_hand, KeyboardInterrupt):
            raise
        kept = "nothing" if words[0] in TRAINER_COMMANDS else "what was finished"
        for note in notes or [f"interrupted; {kept} is kept."]:
            if note:
                print(f"lit-robust: {note}", file=sys.stderr)
        return 130 if isinstance(by_hand, KeyboardInterrupt) else int(by_hand.code or 0)
    except Exception as error:
        from lit_robust.cli.mistakes import explain
        from lit_robust.core.errors import printable

        sentence = explain(error)
        if sentence is None:
            raise
        print(f"lit-robust: {printable(sentence)}", file=sys.stderr)
        return 2
    return 0


def _run(words: Sequence[str]) -> None:
    """Run the command that the first one to three words name, with the rest as its options.

    Raises:
        UserError: there is no such command.
    """
    name = next((name for length in (3, 2, 1) if (name := " ".join(words[:length])) in NAMES), "")
    if name:
        from lit_robust.cli.options import call
        from lit_robust.cli.papers.runs import run_paper
        from lit_robust.core.processes import keep_freed_memory

        keep_freed_memory()
        rest = words[len(name.split()) :]
        if name.startswith("data derive "):
            from lit_robust.cli.derive import run_derive

            run_derive(name.split()[2], rest)
            return
        function = function_of(name)
        if name.startswith("paper "):
            run_paper(name.split()[1], rest, function)
        else:
            function(**call(name, rest, function)[0])
        return
    named = [" ".join(words[:length]) for length in (2, 1)]
    asked = next((one for one in named if any(name.startswith(f"{one} ") for name in NAMES)), words[0])
    group = [name for name in NAMES if name.startswith(f"{asked} ")]
    rest = words[len(asked.split()) :]
    if words[0] == "sweep":
        known = f"paper {Path(words[1]).stem}" if len(words) > 1 else ""
        now = known if known in NAMES else "paper NAME"
        raise UserError(f"`sweep FILE name=value` is now `lit-robust {now} --name VALUE`; --help lists the options.")
    if group and (not rest or rest[0] in ("-h", "--help")):
        lines = [
            f"  {name:<{WIDTH}}{line}" for each in COMMANDS.values() for name, line in each.items() if name in group
        ]
        print("\n".join([f"usage: lit-robust {asked} NAME [OPTIONS]\n", *lines, "\nEach has its own --help."]))
    elif group:
        lasts = {name.removeprefix(f"{asked} "): name for name in group}
        if near := get_close_matches(" ".join(rest[:1]), lasts, n=1):
            raise UserError(f"There is no command `{asked} {rest[0]}`: did you mean `{lasts[near[0]]}`?")
        ways = list(dict.fromkeys(" ".join(name.split()[: len(asked.split()) + 1]) for name in group))
        raise UserError(f"There is no command `{asked} {rest[0]}`: choose {', '.join(ways[:-1])} or {ways[-1]}.")
    else:
        close = get_close_matches(words[0], [*NAMES, *{name.split()[0] for name in NAMES}], n=1)
        close = [OTHER_WORDS[words[0]]] if words[0] in OTHER_WORDS else close
        hint = f"did you mean {close[0]}?" if close else "`lit-robust --help` lists them."
        raise UserError(f"There is no command {words[0]!r}: {hint}")


def function_of(name: str) -> Function:
    """Return the function that does a tool's work: ``data toy`` is ``data_toy`` of ``commands``."""
    from lit_robust.cli import analyses, bench_all, benches, commands, conflicts, filtering, memories, papers, zero_shot

    group, second, *_ = [*name.split(), ""]
    rooms = {"analyze": analyses, "bench": benches, "memory": memories, "paper": papers, "class-vectors": zero_shot}
    own = {"data cue-conflict": conflicts, "data filter": filtering, "bench all": bench_all}
    room = own.get(f"{group} {second}", rooms.get(group, commands))
    return cast(Function, getattr(room, name.replace(" ", "_").replace("-", "_").removeprefix("paper_")))
