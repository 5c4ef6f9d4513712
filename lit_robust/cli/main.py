"""The ``lit-robust`` command: finds the tool asked for, and turns users' mistakes into one sentence.

Nothing heavy is imported before the tool is known, so that ``lit-robust --help`` answers at once.
"""

import shlex
import sys
from collections.abc import Sequence

from lit_robust import __version__

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
HELP = """\
usage: lit-robust COMMAND [OPTIONS]

Train robust image classifiers, and measure how robust any classifier is.

see it work:
  demo        draw toy data, train three networks, remember with one, compare them (minutes)

train and evaluate, each with -c CONFIG.yaml and any option of it on the command line:
  fit         train a network
  validate    accuracy on the validation images
  test        every evaluation the config names; writes results.json into the run's folder
  predict     a class for every validation image; writes predictions.csv into the run's folder

data and reports:
  data toy      draw the toy data, as shards in the layouts of the real sets
  data shard    pack folders or tars of images into shards
  data verify   check shards, and list every defect
  data corrupt  shards under the corruptions of ImageNet-C
  convert       another lab's checkpoint, as safetensors with its provenance
  report        compare runs on one page
  recompute     measures again, from predictions that a run kept
  sweep         a table or figure of a paper: its runs, and a page of what came out
  dashboard     a W&B workspace with panels for the runs' measures

a cache model's memory, which `fit` builds:
  memory verify   check its files, and print what it holds
  memory cluster  one of fewer keys
  memory project  one of fewer dimensions
  memory index    an index for approximate search

speed and memory beside others' code:
  bench data         loading
  bench corruptions  the 19 corruptions
  bench attacks      PGD, and sweeps over eps
  bench training     a step of each training scheme
  bench memory       retrieval from a cache model's memory
  bench evaluation   all measures beside the bare forward pass

options:
  -h, --help  show this message; `lit-robust COMMAND --help` tells a command's options
  --version   show the version
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        args: the words after ``lit-robust``; those of the process where null.

    Returns:
        0 if all went well, 2 after a user's mistake, which was explained in one sentence on standard error; 130 after
        Ctrl-C, 143 after SIGTERM, 85 after SIGUSR1.
    """
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    try:
        if words[0] in TRAINER_COMMANDS:
            from lit_robust.cli.trainer import run_trainer

            run_trainer(words, command=shlex.join(["lit-robust", *words]))
        else:
            from lit_robust.cli.tools import run_tool

            run_tool(words)
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
