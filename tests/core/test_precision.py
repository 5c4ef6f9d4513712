"""Torch's precision flags inside and after: they are the same on a machine without a GPU."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch.backends import cuda, cudnn, mkldnn

from lit_robust.core.errors import UserError
from lit_robust.core.precision import full_precision

PARTS = {
    "products": cuda.matmul,
    "convolutions": cudnn.conv,
    "recurrent": cudnn.rnn,
    "products, CPU": mkldnn.matmul,
    "convolutions, CPU": mkldnn.conv,
    "recurrent, CPU": mkldnn.rnn,
}


def readable(read: Callable[[], Any]) -> Any:
    """What an older flag says, or that torch refuses to say it."""
    try:
        return read()
    except RuntimeError:
        return "mixed"


def flags() -> dict[str, Any]:
    return {name: part.fp32_precision for name, part in PARTS.items()} | {
        "older, convolutions": readable(lambda: cudnn.allow_tf32),
        "older, products": readable(torch.get_float32_matmul_precision),
        "older, products on GPUs": readable(lambda: cuda.matmul.allow_tf32),
        "all": torch.backends.fp32_precision,
    }


@pytest.fixture(autouse=True)
def restored():
    before = {part: part.fp32_precision for part in PARTS.values()}
    generic = torch.backends.fp32_precision
    yield
    torch.backends.fp32_precision = generic
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = True
    for part, precision in before.items():
        part.fp32_precision = precision


def convolutions_by_the_finer_flag() -> None:
    cudnn.conv.fp32_precision = "tf32"


def products_by_the_finer_flag() -> None:
    cuda.matmul.fp32_precision = "tf32"


def everything_at_once() -> None:
    torch.backends.fp32_precision = "tf32"


def recurrent_alone() -> None:
    cudnn.conv.fp32_precision = "ieee"


def products_by_the_older_flag() -> None:
    cuda.matmul.allow_tf32 = True


def products_in_bf16() -> None:
    torch.set_float32_matmul_precision("medium")


def older_and_finer() -> None:
    torch.set_float32_matmul_precision("high")
    cuda.matmul.fp32_precision = "ieee"
    mkldnn.conv.fp32_precision = "bf16"


@pytest.mark.parametrize(
    "setting",
    [
        lambda: None,
        convolutions_by_the_finer_flag,
        products_by_the_finer_flag,
        everything_at_once,
        recurrent_alone,
        products_by_the_older_flag,
        products_in_bf16,
        older_and_finer,
    ],
)
def test_inside_all_is_ieee_and_after_as_before(setting: Callable[[], None]) -> None:
    setting()
    before = flags()
    with full_precision("cpu"):
        inside = flags()
    assert {inside[name] for name in PARTS} == {"ieee"}
    assert flags() == before
    with suppress(UserError), full_precision("cpu"):
        raise UserError("as an attack may")
    assert flags() == before


def test_the_older_flags_can_be_read_inside() -> None:
    """Torch's own context managers read them, and raise where they contradict the finer ones."""
    with full_precision("cpu"):
        assert flags()["older, convolutions"] is flags()["older, products on GPUs"] is False
        assert flags()["older, products"] == "highest"
        with cudnn.flags(enabled=False):
            pass


def test_it_nests() -> None:
    cudnn.conv.fp32_precision = "tf32"
    before = flags()
    with full_precision("cpu"):
        with full_precision("cpu"):
            pass
        assert {flags()[name] for name in PARTS} == {"ieee"}
    assert flags() == before


def test_autocast_is_off_inside() -> None:
    layer = torch.nn.Linear(2, 2)
    with torch.autocast("cpu", torch.bfloat16), full_precision("cpu"):
        assert layer(torch.ones(1, 2)).dtype == torch.float32
