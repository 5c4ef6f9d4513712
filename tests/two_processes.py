"""A command in two processes that share its work, as torchrun would start it."""

import multiprocessing
import os
import socket
import sys


def as_rank(rank, port, words):
    from lit_robust.cli import main

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.exit(main(words))


def in_two_ranks(words):
    """Run a command in two processes, as torchrun would; copies of this one, which has loaded everything."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=as_rank, args=(rank, port, words)) for rank in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(timeout=120)
    return [one.exitcode for one in both]
