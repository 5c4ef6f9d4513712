"""Writing derived sets, by several processes, each a shard at a time."""

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Protocol

import torch
from tqdm import tqdm

from lit_robust.core.errors import UserError, check_count
from lit_robust.core.files import check_space, duration_shown, held_alone, size_shown
from lit_robust.core.processes import end_with_parent
from lit_robust.data.packing.derivation import SAMPLED, WHOLE, Derivation, Part
from lit_robust.shards.write import sole_writer


def announce(work: str, size: float, seconds: float) -> None:
    """Say on standard error what is begun, how large it becomes and how long it takes, from a few images made before.

    Args:
        work: such as ``drawing 10,560 figures``.
        size: about how many bytes are written.
        seconds: about how long.
    """
    what = f"{work[:1].upper()}{work[1:]}"
    print(f"{what}: about {size_shown(round(size))}, {duration_shown(seconds)}.", file=sys.stderr)


def derive(
    sets: Sequence[Derivation], workers: int, doing: str = "deriving", part: Part = WHOLE
) -> dict[Path, int | None]:
    """Write the sets that are not finished; the same call again goes on where a killed one was.

    Args:
        sets: each in a folder, or split, of its own.
        workers: processes, each of which writes a shard at a time; 0 writes in this process. They change no byte.
        doing: what to call it next to the progress bar.
        part: which of how many parts of each set's tars; other processes, on any machine, write the others meanwhile,
            and whichever ends last writes the info file.

    Returns:
        Folder of each set that was written to how many images could not be made, None while other parts are not done;
        sets that were finished before are not among them.

    Raises:
        UserError: a folder holds another set, another run writes it, or the disk is too small.
        DataError: an image cannot be read.
    """
    check_count("workers", workers, 0)
    number_of_part, parts = part
    if not 0 <= number_of_part < parts:
        raise UserError(f"part is {number_of_part} and parts {parts}: count the parts from 0, below their number.")
    written: dict[Path, int | None] = {}
    with ExitStack() as stack:
        for one in sets:
            one.missing()  # Complains before anything is made.
        todo = [one for one in sets if not one.is_finished]
        if todo:
            what = todo[0].what[:1].upper() + todo[0].what[1:]
            start = time.perf_counter()
            size = sum(one.estimated_size() for one in todo)
            seconds = (time.perf_counter() - start) / sum(min(SAMPLED, len(one.numbers)) for one in todo)
            check_space(todo[0].folder, size, f"{what}, by an estimate,")
        for one in todo:
            own = one.stem if part == WHOLE else f"{one.stem}-{number_of_part}-of-{parts}"
            for lock in one.folder.glob(f".{one.stem}-*-of-*.lock"):
                if not lock.name.endswith(f"-of-{parts}.lock"):  # Its half-written files would be removed.
                    taken = f"{one.folder} is being written in other parts: wait for them, or end them."
                    stack.enter_context(held_alone(lock, taken))
            stack.enter_context(sole_writer(one.folder, own, one.what))
            with _in_turn(one, part):
                one.begin(part)
        tasks = [
            (number, place)
            for number, one in enumerate(todo)
            for place in one.missing()
            if place % parts == number_of_part
        ]
        left = [sum(number == own for own, _ in tasks) for number in range(len(todo))]
        total = sum(len(todo[number].chosen(place)) for number, place in tasks)
        if todo:
            share = total / sum(len(one.numbers) for one in todo)
            announce(f"{doing} {total:,} images", size * share, seconds * total / max(workers, 1))
        with tqdm(total=total, desc=doing, unit="image") as progress:
            for number, one in enumerate(todo):
                if not left[number]:
                    written[one.folder] = _ended(one, part)
            for number in worked(todo, tasks, workers, progress):
                left[number] -= 1
                if not left[number]:
                    written[todo[number].folder] = _ended(todo[number], part)
    return written


def _in_turn(one: Derivation, part: Part) -> AbstractContextManager[None]:
    """Return a context in which no other part of a set begins or ends."""
    return nullcontext() if part == WHOLE else held_alone(one.folder / f".{one.stem}.lock")


def _ended(one: Derivation, part: Part) -> int | None:
    """Finish a set where this is the last of its parts, and return how many images could not be made."""
    if part == WHOLE:
        return one.finish()
    with _in_turn(one, part):
        return one.finish() if one.note(part) else None


Task = tuple[int, int]  # The set's number, and the tar's place.


class Writer(Protocol):
    """What writes parts of a set; pickled to worker processes."""

    def write(self, place: int, report: Callable[[int], object]) -> None:
        """Write the part in a place, and report the number of images after each few."""


def worked(sets: Sequence[Writer], tasks: Sequence[Task], workers: int, progress: "tqdm[None]") -> Iterator[int]:
    """Do tasks, and yield the set's number after each.

    Args:
        sets: what writes them.
        tasks: number of the set, and place of the part.
        workers: processes; 0 for this one.
        progress: counts images.

    Raises:
        UserError: a worker was killed; or what a set raises.
    """
    if workers and tasks:
        yield from _in_processes(sets, tasks, workers, progress)
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # As in worker processes: the order of sums, and so the last bit, may follow from it.
    try:
        for number, place in tasks:
            sets[number].write(place, progress.update)
            yield number
    finally:
        torch.set_num_threads(threads)


class _StoppedError(Exception):
    """Another shard failed, or the user ended the run."""


@dataclass
class _Process:
    """What a worker process works on."""

    sets: Sequence[Writer]
    done: "Synchronized[int]"
    stop: Event

    def report(self, count: int) -> None:
        with self.done.get_lock():
            self.done.value += count
        if self.stop.is_set():
            raise _StoppedError


_process: _Process | None = None


def _begin_process(sets: Sequence[Writer], done: "Synchronized[int]", stop: Event) -> None:
    end_with_parent()
    global _process
    _process = _Process(sets, done, stop)
    torch.set_num_threads(1)


def _write(number: int, place: int) -> int:
    assert _process is not None
    _process.sets[number].write(place, _process.report)
    return number


def _in_processes(sets: Sequence[Writer], tasks: Sequence[Task], workers: int, progress: "tqdm[None]") -> Iterator[int]:
    context = multiprocessing.get_context("spawn")
    done: Synchronized[int] = context.Value("q", 0)
    stop = context.Event()
    with ProcessPoolExecutor(min(workers, len(tasks)), context, _begin_process, (sets, done, stop)) as pool:
        waiting: set[Future[int]] = {pool.submit(_write, *task) for task in tasks}
        try:
            while waiting:
                finished, waiting = wait(waiting, timeout=0.5)
                progress.update(done.value - progress.n)
                yield from (task.result() for task in finished)
        except BrokenProcessPool as error:
            raise UserError(
                "A process that makes images was killed, probably for want of memory: run this again, with fewer "
                "--workers."
            ) from error
        finally:
            # The other processes end at their next few images instead of at their shards' end.
            stop.set()
            pool.shutdown(cancel_futures=True)
