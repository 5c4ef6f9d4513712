"""The tools beside Lightning's commands: one parser and one call each."""

from argparse import ArgumentError
from collections.abc import Callable, Sequence
from difflib import get_close_matches

from lit_robust.cli.tools import bench, dashboard, data, memory, runs
from lit_robust.core.errors import UserError

TOOLS: dict[str, Callable[[list[str]], None]] = {
    "demo": runs.demonstrate,
    "data toy": data.toy,
    "data shard": data.shard,
    "data verify": data.verify,
    "data corrupt": data.corrupt,
    "memory verify": memory.verify,
    "memory cluster": memory.cluster,
    "memory project": memory.project,
    "memory index": memory.index,
    "bench data": bench.loading,
    "bench corruptions": bench.corruptions,
    "bench attacks": bench.attacks,
    "bench training": bench.training,
    "bench memory": bench.retrieval,
    "bench evaluation": bench.evaluation,
    "report": runs.compare,
    "recompute": runs.recompute,
    "sweep": runs.sweep,
    "dashboard": dashboard.workspace,
    "convert": runs.convert,
}


def run_tool(words: Sequence[str]) -> None:
    """Run the tool that the first one or two words name, with the rest as its options.

    Raises:
        UserError: there is no such tool.
    """
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in TOOLS:
            try:
                TOOLS[name](list(words[length:]))
            except ArgumentError as error:
                reason = " ".join(str(error).split()).rstrip(".")
                raise UserError(f"{reason}; `lit-robust {name} --help` shows the options.") from error
            return
    groups = [name for name in TOOLS if name.startswith(f"{words[0]} ")]
    if groups:
        given = words[1] if len(words) > 1 else ""
        if given in ("", "-h", "--help"):
            names = ",".join(name.split()[1] for name in groups)
            print(f"usage: lit-robust {words[0]} {{{names}}} [OPTIONS]\n\nEach has its own --help.")
            return
        raise UserError(f"There is no command `{words[0]} {given}`: choose {', '.join(groups[:-1])} or {groups[-1]}.")
    close = get_close_matches(words[0], ["fit", "validate", "test", "predict", *TOOLS], n=1)
    hint = f"did you mean {close[0]}?" if close else "`lit-robust --help` lists them."
    raise UserError(f"There is no command {words[0]!r}: {hint}")
