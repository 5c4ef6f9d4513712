"""Class numbers on a device: copied there once, as each copy makes the processor wait."""

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=256)
def on_device(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Return numbers as int64 ``[N]`` on a device: the same tensor at every call, which nobody may write into.

    Args:
        numbers: such as the classes of a category.
        device: where they are used as an index.
    """
    # An index made in Lightning's test loop may be used later under autograd, which takes no inference tensors.
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=torch.int64, device=device)
