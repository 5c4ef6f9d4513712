"""What processes ask of the system: workers that end with who started them, and memory that is kept for reuse."""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Iterable
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from threading import Thread, current_thread, main_thread

# Of mallopt(3). The largest block that is kept: beyond it a tensor's own work outweighs what the kernel does for it.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST = 256 << 20  # bytes


def keep_freed_memory() -> None:
    """Let this process keep what it frees for its next blocks, where it runs with glibc; elsewhere nothing changes.

    glibc returns large blocks to the kernel, which clears every page of the next tensor of that size again: attacks on
    a SqueezeNet in fp32 come to a sixth more images a second without that. A process that has a variable of glibc's own
    in its environment, such as ``MALLOC_TRIM_THRESHOLD_``, is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
        mallopt(MMAP_THRESHOLD, LARGEST)


def end_with_parent() -> None:
    """End this worker as soon as its parent has ended, however that was; to be called first in every worker.

    A parent that is killed (SIGKILL, or for want of memory) tells its workers nothing. They would wait for work for
    ever, or go on to write. The kernel closes the pipe that Python opens from a parent to each of its workers, whatever
    ends the parent; a thread here waits for that.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a worker process has a parent to end with"
    Thread(target=_end_after, args=(parent.sentinel,), name="end with parent", daemon=True).start()


def kill(processes: Iterable[BaseProcess]) -> None:
    """End workers at once, whatever they do, and those of a loader of torch's without its taking that for an accident.

    Where this is not the main thread, torch may raise its error there all the same.
    """
    is_main = current_thread() is main_thread()
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if is_main else None
    for process in processes:
        process.kill()
        process.join()
    if is_main:
        signal.signal(signal.SIGCHLD, before)


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    # Without the handlers of an ordinary end, which may wait for the parent.
    os._exit(1)
