"""Full single precision for every number that is reported, and the fast precision of a machine for all other work."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch.backends import cuda, cudnn, mkldnn

from lit_robust.core.hardware import bf16_gain, read_processor

Precision = Literal["bf16", "fp32"]
PrecisionChoice = Literal["auto", "bf16", "fp32"]
"""``auto`` is bf16 where the device computes in it, and fp32 elsewhere."""

# Each may be set by itself, and wins over torch's older flags (docs.pytorch.org, "CUDA semantics", TF32).
FINER: tuple[Any, ...] = (
    cuda.matmul,
    # Torch tells no type checker of these.
    *(getattr(cudnn, name) for name in ("conv", "rnn")),
    *(getattr(mkldnn, name) for name in ("matmul", "conv", "rnn")),
)


def computes_in_bf16(device_type: str) -> bool:
    """Tell whether a device has bfloat16 arithmetic, and is not slower with it.

    A GPU by its capability; a processor by its instructions, and by a measurement of them (see ``bf16_gain``).

    Args:
        device_type: ``cuda`` or ``cpu``; any other kind counts as without.
    """
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device_type == "cpu" and bool(read_processor().bf16_flags) and bf16_gain() >= 1


def choose_precision(choice: PrecisionChoice, device_type: str) -> Precision:
    """Return what ``auto`` means on a device; what was named stays, with a warning where bf16 is slow.

    Args:
        choice: ``auto``, ``bf16`` or ``fp32``.
        device_type: as of ``computes_in_bf16``.
    """
    if choice == "auto":
        return "bf16" if computes_in_bf16(device_type) else "fp32"
    if choice == "bf16" and (said := slow_bf16(device_type)):
        warnings.warn(said, stacklevel=2)
    return choice


def slow_bf16(device_type: str) -> str | None:
    """Return the sentence on a device that is slow in bfloat16, with the measured factor of a processor; else null."""
    if device_type == "cpu" and bf16_gain() < 1:
        return (
            f"The precision is bf16, in which {read_processor().name} is slow: a convolution takes "
            f"{1 / bf16_gain():.1f} times as long as in fp32, as measured here. Set the precision to auto."
        )
    if device_type == "cuda" and not computes_in_bf16("cuda"):
        return (
            f"The precision is bf16, for which {torch.cuda.get_device_name()} has no instructions: set it to auto, "
            "which is fp32 there."
        )
    return None


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
