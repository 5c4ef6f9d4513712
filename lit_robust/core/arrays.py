"""Numbers as people have them: tensors, NumPy arrays, lists."""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lit_robust.core.errors import UserError

Numbers = Tensor | ArrayLike
"""A tensor on any device, a NumPy array, a list of Python's numbers, or one of them."""


def as_tensor(what: str, values: Numbers, device: torch.device | None = None) -> Tensor:
    """Return a tensor as it is, and anything else as a copy of its own type.

    Args:
        what: their name, for the sentence.
        values: to take.
        device: where to put what is not a tensor; None for the processor.

    Raises:
        UserError: they are not numbers.
    """
    if isinstance(values, Tensor):
        return values
    try:
        array = np.asarray(values)
        return torch.tensor(array.astype(array.dtype.newbyteorder("="), order="C"), device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{what} is of type {type(values).__name__}: give a tensor, a NumPy array or a list of numbers."
        ) from error
