"""What a processor says of itself, and the measurement that is kept; both kinds of processor are pretended."""

import json
import subprocess
import sys

import pytest
import torch

from lit_robust.core import hardware
from lit_robust.core.hardware import Processor, bf16_gain, measure_bf16_gain, read_processor

CASCADE_LAKE = [
    "processor\t: 0",
    "model name\t: Intel(R) Xeon(R) Gold 6230",
    "flags\t\t: fpu avx2 avx512f avx512_vnni",
    "",
]
SAPPHIRE_RAPIDS = ["model name\t: Intel(R) Xeon(R) 8480", "flags\t\t: avx512f avx512_bf16 amx_bf16 amx_tile"]
GRAVITON = ["BogoMIPS\t: 2100.00", "Features\t: fp asimd sve i8mm bf16 dgh"]


@pytest.fixture
def cpuinfo(monkeypatch):
    def pretend(lines):
        monkeypatch.setattr(hardware, "read_cpuinfo", lambda: lines)
        read_processor.cache_clear()

    yield pretend
    read_processor.cache_clear()


@pytest.mark.parametrize(
    ("lines", "name", "found"),
    [
        (CASCADE_LAKE, "Intel(R) Xeon(R) Gold 6230", ()),
        (SAPPHIRE_RAPIDS, "Intel(R) Xeon(R) 8480", ("avx512_bf16", "amx_bf16")),
        (GRAVITON, hardware.platform.machine(), ("bf16",)),
        ([], hardware.platform.machine(), ()),
    ],
)
def test_instructions_are_the_kernels(cpuinfo, lines, name, found):
    cpuinfo(lines)
    assert read_processor().name == name
    assert read_processor().bf16_flags == found


def test_a_system_without_the_file_has_no_flags(cpuinfo, monkeypatch):
    def missing():
        raise FileNotFoundError("/proc/cpuinfo")

    cpuinfo([])
    monkeypatch.setattr(hardware, "read_cpuinfo", missing)
    assert read_processor() == Processor(hardware.platform.machine(), frozenset())


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Keep files in a folder of the test, and count measurements."""
    calls = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(hardware, "measure_bf16_gain", lambda: calls.append(1) or 0.25)
    return calls


def test_the_gain_is_measured_once(measured, tmp_path):
    assert bf16_gain() == bf16_gain() == 0.25
    assert len(measured) == 1
    (kept,) = json.loads((tmp_path / "lit-robust/bf16.json").read_text()).items()
    assert kept == (f"{read_processor().name} / {torch.__version__} / all", 0.25)


def test_another_processor_or_setting_is_measured_again(measured, monkeypatch, cpuinfo, tmp_path):
    bf16_gain()
    cpuinfo([*GRAVITON[1:], "model name : another"])
    bf16_gain()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    bf16_gain()
    assert len(measured) == 3
    assert len(json.loads((tmp_path / "lit-robust/bf16.json").read_text())) == 3


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": "b", "c": -1}'])
def test_a_damaged_file_is_written_anew(measured, tmp_path, content):
    file = tmp_path / "lit-robust/bf16.json"
    file.parent.mkdir()
    file.write_text(content)
    assert bf16_gain() == 0.25
    assert list(json.loads(file.read_text()).values()) == [0.25]


def test_a_folder_that_cannot_be_written_is_no_error(measured, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert bf16_gain() == bf16_gain() == 0.25
    assert len(measured) == 2


def test_measuring_draws_no_random_number():
    state = torch.get_rng_state()
    assert measure_bf16_gain(1) > 0
    assert torch.equal(torch.get_rng_state(), state)


def test_a_processor_without_the_instructions_is_measured_slower():
    """OneDNN leaves them unused where it is told so: the emulation of others costs a factor, which is no close call."""
    code = "from lit_robust.core.hardware import measure_bf16_gain; print(measure_bf16_gain())"
    words = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**hardware.os.environ, **words}, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 0.9
