"""The tools beside Lightning's commands: one parser and one call each."""

from argparse import ArgumentError
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveInt

from lit_robust.errors import UserError


def _toy(words: list[str]) -> None:
    parser = _parser("data toy", "Draw the toy data: 8 outlines x 8 textures, in the layouts of the real image sets.")
    parser.add_argument("output", type=Path, help="folder to write; it must not hold these sets yet")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="the same seed draws the same bytes")
    parser.add_argument("--train", type=PositiveInt, default=4000, help="images of the two training splits")
    parser.add_argument("--test", type=PositiveInt, default=512, help="images of every other split")
    parser.add_argument("--size", type=PositiveInt, default=48, help="side of an image, in pixels")
    options = parser.parse_args(words)
    from lit_robust.data.toy import write_toy_data

    write_toy_data(options.output, options.seed, options.train, options.test, options.size)
    print(f"Wrote {options.output}")


def _shard(words: list[str]) -> None:
    parser = _parser(
        "data shard",
        "Pack images into WebDataset shards with an index; their bytes are copied, never encoded again.",
    )
    parser.add_argument("source", type=Path, help="folder of images, see --layout")
    parser.add_argument("output", type=Path, help="folder for the shards, such as data/imagenet")
    parser.add_argument("--split", type=str, required=True, help="name of the split: train, val or test")
    parser.add_argument(
        "--layout",
        type=Literal["class-folders", "wnid-names", "cue-conflict"],
        default="class-folders",
        help="class-folders: a folder a class; wnid-names: files <wnid>_*.JPEG; "
        "cue-conflict: <shape>/<shape><i>-<texture><j>.png",
    )
    parser.add_argument(
        "--labels",
        type=Literal["sorted", "imagenet"],
        default="sorted",
        help="sorted: place of the class among the folders; imagenet: place of its WordNet id among the 1,000",
    )
    parser.add_argument(
        "--categories",
        type=str,
        default="imagenet",
        help='for cue-conflict, the classes of each category: imagenet, or a JSON file {"category": [classes]}',
    )
    parser.add_argument("--shard-size", type=PositiveInt, default=1000, help="images a tar")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="of the order of the images")
    options = parser.parse_args(words)
    from lit_robust.data.convert import shard_images

    count = shard_images(
        options.source,
        options.output,
        options.split,
        options.layout,
        options.labels,
        options.categories,
        options.shard_size,
        options.seed,
    )
    print(f"Wrote {count} images to {options.output}")


def _report(words: list[str]) -> None:
    parser = _parser("report", "Compare runs on one self-contained page, or in a table.")
    parser.add_argument("runs", type=Path, nargs="+", help="run folders that `lit-robust test` wrote into")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("report.html"), help="file to write: .html, .md or .csv"
    )
    options = parser.parse_args(words)
    from lit_robust.report import report

    report(options.runs, options.output)


def _demo(words: list[str]) -> None:
    parser = _parser(
        "demo",
        "Draw toy data, train a standard and an adversarially trained network, test both, and compare them on one "
        "page. Takes about 5 minutes on 2 CPU cores and under 4 GiB; a second call reuses what is finished.",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for data, runs and the page")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="of the figures and of the training")
    options = parser.parse_args(words)
    from lit_robust.demo import run_demo

    run_demo(options.output, options.seed)


TOOLS: dict[str, Callable[[list[str]], None]] = {
    "demo": _demo,
    "data toy": _toy,
    "data shard": _shard,
    "report": _report,
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
    if words[0] == "data":
        given = words[1] if len(words) > 1 else ""
        if given in ("", "-h", "--help"):
            print("usage: lit-robust data {toy,shard} [OPTIONS]\n\nEach has its own --help.")
            return
        raise UserError(f"There is no command `data {given}`: choose data toy or data shard.")
    close = get_close_matches(words[0], ["fit", "validate", "test", "predict", *TOOLS], n=1)
    hint = f"did you mean {close[0]}?" if close else "`lit-robust --help` lists them."
    raise UserError(f"There is no command {words[0]!r}: {hint}")


def _parser(name: str, description: str) -> ArgumentParser:
    return ArgumentParser(prog=f"lit-robust {name}", description=description, exit_on_error=False, allow_abbrev=False)
