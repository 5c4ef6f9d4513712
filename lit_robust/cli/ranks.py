"""Processes that torchrun started side by side for one of the tools."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ranks() -> Iterator[tuple[int, int]]:
    """Join the process group of torchrun's processes, and give this one's rank and their number; 0 and 1 for one alone.

    Objects of the processor are exchanged, so by gloo; each process computes on a GPU of its own, where there are any.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield 0, 1
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.distributed.init_process_group("gloo")
    try:
        yield torch.distributed.get_rank(), world
    finally:
        torch.distributed.destroy_process_group()
