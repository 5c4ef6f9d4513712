"""Retrieval with its keys on two ranks, compared with one memory; run by `test_sharded.py` under torchrun."""

import sys

import torch
from torch import distributed
from torch.nn import functional as F

from lit_robust.memory import chunks_of, class_log_sums, log_probabilities
from lit_robust.memory.continuous import sharded_log_sums, share_of


def main():
    distributed.init_process_group("gloo")
    rank, world = distributed.get_rank(), distributed.get_world_size()
    for count, classes, theta in ((101, 7, 60.0), (1, 3, 10.0), (2, 2, 90.0), (2000, 400, 90.0), (60, 2, 400.0)):
        generator = torch.Generator().manual_seed(count)
        keys = F.normalize(torch.randn(count, 8, generator=generator))
        labels = torch.randint(classes, (count,), generator=generator).sort().values
        everyone = F.normalize(torch.randn(world * 5, 8, generator=generator))
        target = labels[torch.arange(world * 5) % count]

        whole = everyone.clone().requires_grad_(True)
        expected = log_probabilities(class_log_sums(whole, keys, chunks_of(labels), classes, theta))
        F.nll_loss(expected, target, reduction="sum").backward()

        own = slice(5 * rank, 5 * rank + 5)
        part = share_of(count, rank, world)
        queries = everyone[own].clone().requires_grad_(True)
        found = log_probabilities(sharded_log_sums(queries, keys[part], chunks_of(labels[part]), classes, theta))
        F.nll_loss(found, target[own], reduction="sum").backward()
        torch.testing.assert_close(found, expected[own], rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(queries.grad, whole.grad[own], rtol=1e-4, atol=1e-3)
        assert whole.grad.abs().max() > 0 or count <= 2  # So few are told apart with certainty.
    print(f"rank {rank} agrees", file=sys.stderr)
    # At exit gloo's threads would end the process by an abort.
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
