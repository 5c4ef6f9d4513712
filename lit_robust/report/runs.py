"""Reading runs: their results, a name for each that no other run has, and the images next to them."""

from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os.path import commonpath
from pathlib import Path

from lit_robust.core.errors import UserError
from lit_robust.core.files import file_sha256
from lit_robust.core.results import FILE_NAME, RunResults

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Run:
    """One run of the report.

    Attributes:
        label: what to call it; unique in a report.
        folder: where its results file lies; its images are inside.
        found: its results.
        published: whether it stands for values of publications, and nothing was run.
    """

    label: str
    folder: Path
    found: RunResults
    published: bool = False


@dataclass(frozen=True)
class Picture:
    """A PNG image that is part of the page.

    Attributes:
        uri: the whole image as a ``data:`` address.
        width: in pixels.
        height: in pixels.
    """

    uri: str
    width: int
    height: int


def load_runs(paths: Sequence[Path]) -> list[Run]:
    """Read runs, in the given order.

    Args:
        paths: run folders, or results files. The values of one that is older than a checkpoint next to it have a
            warning, unless that is the checkpoint that was tested.

    Raises:
        UserError: no path is given, or one is not a run.
    """
    if not paths:
        raise UserError("No run is named: give at least one folder that `lit-robust test` wrote into.")
    folders = [path if path.is_dir() else path.parent for path in paths]
    found = [_dated(RunResults.load(path), path) for path in paths]
    names = [
        str(results.run.get("name") or folder.resolve().name) for results, folder in zip(found, folders, strict=True)
    ]
    labels = unique_labels(names, folders)
    return [Run(*entry) for entry in zip(labels, folders, found, strict=True)]


def _dated(found: RunResults, path: Path) -> RunResults:
    """Return a run's results, with a warning where a checkpoint next to them is newer, and not the tested one."""
    file = path / FILE_NAME if path.is_dir() else path
    tested, written = found.run.get("checkpoint_sha256"), file.stat().st_mtime_ns
    checkpoints = sorted(one for place in (file.parent, file.parent / "checkpoints") for one in place.glob("*.ckpt"))
    newer = [one for one in checkpoints if one.is_file() and one.stat().st_mtime_ns > written]
    other = next((one for one in newer if tested is None or file_sha256(one) != tested), None)
    if other is None:
        return found
    name = other.relative_to(file.parent).as_posix()
    warning = f"the results are older than {name} next to them, and may be of another network: test again"
    return replace(found, results=[replace(r, warnings=(*r.warnings, warning)) for r in found.results])


def unique_labels(names: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Return a label for each run: its name; where others have it too, with its folder; else with a number.

    Of the folders stands only what they do not share.

    Example:
        >>> unique_labels(["a", "b", "b"], [Path("1"), Path("/x/2/run"), Path("/x/3/run")])
        ['a', 'b (2/run)', 'b (3/run)']
    """
    counts = Counter(names)
    absolute = [folder.resolve() for folder in folders]
    labels = []
    for name, folder in zip(names, absolute, strict=True):
        alike = [other for label, other in zip(names, absolute, strict=True) if label == name]
        place = folder.relative_to(commonpath(alike)).as_posix()
        labels.append(f"{name} ({place})" if counts[name] > 1 and place != "." else name)
    unique: list[str] = []
    for label in labels:
        candidate, number = label, 2
        while candidate in unique:
            candidate, number = f"{label} #{number}", number + 1
        unique.append(candidate)
    return unique


def read_picture(run: Run, name: str) -> Picture | None:
    """Read one of a run's images.

    Args:
        run: the run.
        name: the image's path relative to the run's folder, as the results file has it.

    Returns:
        The image; None if the file is not there.

    Raises:
        UserError: the path leads out of the run's folder, or the file cannot be read or is not a PNG image.
    """
    file = (run.folder / name).resolve()
    if not file.is_relative_to(run.folder.resolve()):
        raise UserError(f"The image {name!r} of run {run.label} lies outside {run.folder}: keep a run's images inside.")
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"The image {file} of run {run.label} cannot be read ({error.strerror}): copy a run's whole folder."
        ) from error
    # A PNG file opens with its signature and the header chunk, whose data begin with width and height (RFC 2083).
    if not content.startswith(PNG_SIGNATURE) or len(content) < 24:
        raise UserError(f"The image {file} of run {run.label} is not a PNG file: run `lit-robust test` again.")
    width, height = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    return Picture(f"data:image/png;base64,{b64encode(content).decode('ascii')}", width, height)
