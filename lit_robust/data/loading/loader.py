"""Loading batches in a planned order, resumable: what Lightning iterates over."""

import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize

from torch.utils.data import DataLoader

from lit_robust.core.batch import Batch
from lit_robust.core.errors import UserError
from lit_robust.core.processes import end_with_parent, kill
from lit_robust.data.loading.order import Plan, Request
from lit_robust.data.loading.samples import Samples

log = logging.getLogger(__name__)

IGNORED = (signal.SIGINT, signal.SIGTERM)  # By the processes of a loader.


class PlanSampler:
    """Hands the requests of one epoch to a loader, from the batch where an interrupted run stopped.

    Attributes:
        epoch: the epoch that the next iteration delivers; Lightning sets it at each epoch's start.
        start: batches of that epoch to leave out.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; another one than before begins at its first batch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        return self.plan.batches

    def __iter__(self) -> Iterator[Request]:
        return iter(self.plan.requests(self.epoch, self.start))


class PlannedLoader:
    """A loader whose order is planned and whose state is (epoch, batches done), the same on every rank.

    It wraps torch's ``DataLoader`` rather than extending it, so that Lightning neither swaps the sampler nor builds it
    again: rank and world are in the plan already. Lightning saves and restores ``state_dict`` by itself.

    Args:
        samples: what to load.
        plan: the batches of this rank.
        num_workers: processes that read and decode; 0 does both in this process. Each keeps the shared memory of at
            most `blocks.KEPT` batches to fill it again, apart from the batches that are kept elsewhere.
        pin_memory: put batches into page-locked memory, for a GPU.
        keeps_workers: keep the processes from one epoch to the next.
        start_method: how processes start: ``fork``, ``forkserver`` or ``spawn``; None takes Python's default.
    """

    # Lightning looks for it next to `sampler`, as every torch loader has both.
    batch_sampler = None

    def __init__(
        self,
        samples: Samples,
        plan: Plan,
        num_workers: int,
        pin_memory: bool,
        keeps_workers: bool,
        start_method: str | None = None,
    ) -> None:
        self.sampler = PlanSampler(plan)
        self.order = dict(plan.order)
        self._delivered = 0
        self._make: Callable[[], DataLoader[Batch]] = partial(
            DataLoader,
            samples,
            batch_size=None,
            sampler=self.sampler,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=keeps_workers and num_workers > 0,
            multiprocessing_context=_context(start_method) if num_workers else None,
            worker_init_fn=_begin_worker,
        )
        self._loader = self._make()
        # torch ends an iteration's processes when nothing holds it any more: here stands each that is not through.
        self._open: list[list[Iterator[Batch]]] = []
        self._processes: set[BaseProcess] = set()
        # At its exit Python would ask them by SIGTERM, and wait for ever.
        Finalize(self, kill, (self._processes,), exitpriority=0)

    def close(self) -> None:
        """End the processes, and the iterations that they are in; one that is begun later starts its own.

        What an exception leaves behind is held by its traceback, with queues that the collector then takes apart in
        any order, under the threads that write to them. A process may be in the midst of a slow read, and hears no
        SIGTERM.
        """
        kill(self._processes)
        self._processes.clear()
        for one in self._open:
            one.clear()
        self._loader = self._make()

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        self._delivered = self.sampler.start
        broken = 0
        before = set(multiprocessing.active_children())
        # Processes start with the signals that wait, so that they are deaf to them before `_begin_worker` runs, too.
        waiting = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
        try:
            one: list[Iterator[Batch]] = [iter(self._loader)]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, waiting)
        self._processes |= set(multiprocessing.active_children()) - before
        self._open.append(one)
        try:
            while one and (batch := next(one[0], None)) is not None:
                self._delivered += 1
                if batch.broken is not None:
                    broken += int(batch.broken.sum())
                # Lightning asks for no more than there are: after the last batch nothing here would run.
                if broken and self._delivered == len(self):
                    log.warning(
                        "%d images of epoch %d could not be read and were left out.", broken, self.sampler.epoch
                    )
                yield batch
            if not one:
                raise UserError("A loader was closed while it was read, as at a training's end: begin to read it anew.")
        except UserError as error:
            # torch passes on a worker's error as its whole traceback; the sentence is the end of it.
            raise type(error)(str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].strip()) from error
        finally:
            one.clear()
            self._open = [other for other in self._open if other is not one]
        self.sampler.start = 0

    def first(self) -> Batch:
        """Return the first batch of the first epoch, read in this process; what is delivered later does not change."""
        batch: Batch = self._loader.dataset[next(iter(self.sampler.plan.requests(0, 0)))]
        return batch

    def state_dict(self) -> dict[str, int | str]:
        """Return the epoch, how many of its batches were delivered, and what the order follows from."""
        return {"epoch": self.sampler.epoch, "batches": self._delivered, **self.order}

    def load_state_dict(self, state: Mapping[str, int | str]) -> None:
        """Go on after the batches of ``state``; a finished epoch is followed by the next one.

        Raises:
            UserError: the state is of another order, so that samples would be lost or come twice.
        """
        for name, value in self.order.items():
            if state.get(name) != value:
                raise UserError(
                    f"The checkpoint was written in the middle of training with {name} {state.get(name)}, but this run "
                    f"has {value}: resume with the same data, seed, shuffling, and batch size times ranks."
                )
        batches = int(state["batches"])
        finished = batches >= len(self)
        self.sampler.epoch = int(state["epoch"]) + int(finished)
        self.sampler.start = 0 if finished else batches


def _begin_worker(number: int) -> None:
    end_with_parent()
    # A terminal sends Ctrl-C to every process, and a queue SIGTERM: the one that loads may want to finish its batch
    # first, and would otherwise fail before it hears of it.
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)


def _context(start_method: str | None) -> BaseContext:
    context = multiprocessing.get_context(start_method)
    if context.get_start_method() == "forkserver":
        # The server imports torch once, and its processes share that memory.
        context.set_forkserver_preload([Samples.__module__])
    return context
