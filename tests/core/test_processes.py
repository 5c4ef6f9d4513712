"""Workers end with the process that started them, even one that is killed."""

import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import get_worker_info

from lit_robust.core.processes import end_with_parent
from lit_robust.data.loading.loader import PlannedLoader
from lit_robust.data.loading.order import EvaluationOrder


class Waiting:
    """Samples of which none ever comes; each worker first says which process it is."""

    def __init__(self, told):
        self.told = told

    def __getitem__(self, request):
        assert get_worker_info() is not None
        self.told.send(os.getpid())
        time.sleep(600)


def load(told, method):
    plan = EvaluationOrder(numbers=np.arange(2), batch_size=1, rank=0, world=1)
    next(iter(PlannedLoader(Waiting(told), plan, 2, False, keeps_workers=False, start_method=method)))


def work(told):
    told.send(os.getpid())
    time.sleep(600)


def pool(told, method):
    with ProcessPoolExecutor(2, multiprocessing.get_context(method), end_with_parent) as workers:
        list(workers.map(work, [told, told]))


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("start", "method"), [(load, "fork"), (pool, "fork"), (load, "spawn"), (pool, "spawn")])
def test_workers_end_with_a_parent_that_is_killed(start, method):
    received, told = multiprocessing.Pipe(duplex=False)
    parent = multiprocessing.get_context("fork").Process(target=start, args=(told, method))
    parent.start()
    workers = [received.recv(), received.recv()]
    assert all(map(is_running, workers))
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    # They would sleep on for ten minutes.
    for _ in range(600):
        if not any(map(is_running, workers)):
            break
        time.sleep(0.1)
    left = [worker for worker in workers if is_running(worker)]
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert not left


KEEPING = """
import sys
from pathlib import Path
from lit_robust.core.processes import keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

keep_freed_memory()
before = resident()
block = bytearray(64 << 20)
block = None
sys.exit(resident() - before > 8 << 10)  # pages
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.parametrize(("asked", "keeps"), [({}, 1), ({"MALLOC_TRIM_THRESHOLD_": "1048576"}, 0)])
def test_freed_memory_is_kept_but_where_the_user_set_it_otherwise(asked, keeps):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    found = subprocess.run([sys.executable, "-c", KEEPING], env=environment | asked, check=False)
    assert found.returncode == keeps
