"""Torch's precision flags inside and after, the same on a machine without a GPU; and what `auto` means on which."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch.backends import cuda, cudnn, mkldnn

from lit_robust.core import precision
from lit_robust.core.errors import UserError
from lit_robust.core.hardware import Processor
from lit_robust.core.precision import choose_precision, full_precision

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
    for part, flag in before.items():
        part.fp32_precision = flag


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


@pytest.fixture
def pretend(monkeypatch):
    """Pretend a processor with some instructions, on which bfloat16 has a measured gain, and a GPU or none."""

    def machine(flags: str, gain: float, gpu: bool | None = None) -> None:
        processor = Processor("Pretended CPU", frozenset(flags.split()))
        monkeypatch.setattr(precision, "read_processor", lambda: processor)
        monkeypatch.setattr(precision, "bf16_gain", lambda: gain)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu is True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Pretended GPU")

    return machine


@pytest.mark.parametrize(
    ("flags", "gain", "expected"),
    [
        ("avx2 avx512f", 0.1, "fp32"),
        ("avx512f avx512_bf16", 3.4, "bf16"),
        ("avx512f avx512_bf16 amx_bf16", 0.2, "fp32"),  # The library leaves them unused.
        ("avx2", 1.5, "fp32"),
        ("", 0.2, "fp32"),
    ],
)
def test_auto_on_a_processor(pretend, flags, gain, expected):
    pretend(flags, gain)
    assert choose_precision("auto", "cpu") == expected
    assert choose_precision("fp32", "cpu") == "fp32"


@pytest.mark.parametrize(("capable", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_on_a_gpu(pretend, capable, expected):
    pretend("", 0.1, capable)
    assert choose_precision("auto", "cuda") == expected
    assert choose_precision("auto", "mps") == "fp32"


def test_bf16_that_is_slow_stays_with_a_warning(pretend):
    pretend("avx2", 0.1)
    with pytest.warns(UserWarning, match="Pretended CPU is slow: a convolution takes 10.0 times as long as in fp32"):
        assert choose_precision("bf16", "cpu") == "bf16"
    pretend("", 9.0, gpu=False)
    with pytest.warns(UserWarning, match="Pretended GPU has no instructions: set it to auto"):
        assert choose_precision("bf16", "cuda") == "bf16"


def test_bf16_that_is_fast_says_nothing(pretend, recwarn):
    pretend("amx_bf16", 4.0, gpu=True)
    assert choose_precision("bf16", "cpu") == choose_precision("bf16", "cuda") == "bf16"
    assert not recwarn.list
