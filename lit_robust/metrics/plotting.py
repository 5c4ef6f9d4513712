"""Which of a metric's values its plot shows."""

from collections.abc import Sequence

from torch import Tensor

Computed = dict[str, Tensor]


def shown(computed: Computed | Sequence[Computed], name: str) -> Tensor | list[Tensor]:
    """Return the value of one name, or, of what several steps computed, the list of theirs; torchmetrics plots both.

    Example:
        >>> import torch
        >>> shown([{"aurra": torch.tensor(0.5)}, {"aurra": torch.tensor(0.75)}], "aurra")
        [tensor(0.5000), tensor(0.7500)]
    """
    return computed[name] if isinstance(computed, dict) else [each[name] for each in computed]
