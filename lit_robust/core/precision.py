"""Full single precision, for every number that is reported."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.backends import cuda, cudnn, mkldnn

# Each may be set by itself, and wins over torch's older flags (docs.pytorch.org, "CUDA semantics", TF32).
FINER: tuple[Any, ...] = (
    cuda.matmul,
    # Torch tells no type checker of these.
    *(getattr(cudnn, name) for name in ("conv", "rnn")),
    *(getattr(mkldnn, name) for name in ("matmul", "conv", "rnn")),
)


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Compute in fp32: autocast off, and the narrower types off that torch may put in fp32's place.

    These are TF32 on NVIDIA GPUs, which torch allows in convolutions by default, and TF32 or bf16 on CPUs that have
    them. Afterwards every flag is what it was.

    Args:
        device_type: of the tensors, such as ``cpu`` or ``cuda``.
    """
    convolutions, products = _allowed_in_convolutions(), _precision_of_products()
    finer = [part.fp32_precision for part in FINER]
    # The older flags first: setting one also sets the finer ones that it stands for.
    if convolutions is not None:
        cudnn.allow_tf32 = False
    if products is not None:
        torch.set_float32_matmul_precision("highest")
    for part in FINER:
        part.fp32_precision = "ieee"
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        if convolutions is not None:
            cudnn.allow_tf32 = convolutions
        if products is not None:
            torch.set_float32_matmul_precision(products)
        for part, precision in zip(FINER, finer, strict=True):
            part.fp32_precision = precision


def _allowed_in_convolutions() -> bool | None:
    """Return the older flag; null where finer ones contradict it: torch refuses to read it then, and ignores it."""
    try:
        return cudnn.allow_tf32
    except RuntimeError:
        return None


def _precision_of_products() -> str | None:
    """Return the older setting, ``highest``, ``high`` or ``medium``; null where finer ones contradict it."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None
