"""The machine: its processor, and whether it computes in bfloat16 faster than in fp32."""

import json
import logging
import os
import platform
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn

from lit_robust.core.errors import UserError
from lit_robust.core.files import read_regular, write_text

log = logging.getLogger(__name__)

BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
"""By the kernel's names: Intel's and AMD's, Intel's matrix units, and Arm's."""

FILE = Path("lit-robust") / "bf16.json"


@dataclass(frozen=True)
class Processor:
    """What the kernel says of the processor.

    Attributes:
        name: of the model, such as ``AMD EPYC 7763``.
        flags: the names of its features; empty where the kernel does not tell, as on macOS.
    """

    name: str
    flags: frozenset[str]

    @property
    def bf16_flags(self) -> tuple[str, ...]:
        """Those of its features that compute in bfloat16."""
        return tuple(flag for flag in BF16_INSTRUCTIONS if flag in self.flags)


@cache
def read_processor() -> Processor:
    """Return this machine's processor, as ``/proc/cpuinfo`` describes the first core."""
    try:
        lines = read_cpuinfo()
    except OSError:
        lines = []
    facts = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    names = [value for name, value in facts if name == "model name"]
    flags = [value for name, value in facts if name in ("flags", "Features")]
    return Processor(names[0] if names else platform.machine(), frozenset(flags[0].split() if flags else ()))


def read_cpuinfo() -> list[str]:
    """Return the kernel's lines on the cores."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - no file, but the kernel's word
        return file.read().splitlines()


def bf16_gain() -> float:
    """Return how many times as fast a convolution is in bfloat16 as in fp32 on this processor; below 1 it is slower.

    Measured once in about 0.2 s, and kept in ``lit-robust/bf16.json`` of the user's cache folder. It belongs to the
    processor, torch's version, and what oneDNN, which computes it, is set to leave unused.
    """
    key = gain_key()
    file = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / FILE  # noqa: PTH111 - no home
    kept = _read(file)
    if key not in kept:
        kept[key] = measure_bf16_gain()
        try:
            write_text(file, json.dumps(kept, indent=1, sort_keys=True))
        except UserError as error:
            log.info("%s The next command measures again.", error)
    return kept[key]


def gain_key() -> str:
    """Return what a measured gain belongs to, its name in the kept file."""
    return " / ".join([read_processor().name, torch.__version__, os.environ.get("ONEDNN_MAX_CPU_ISA", "all")])


def _read(file: Path) -> dict[str, float]:
    try:
        kept = json.loads(read_regular(file))
    except (OSError, ValueError):  # There is none yet, or it is damaged: it is written anew.
        return {}
    if not isinstance(kept, dict):
        return {}
    return {key: float(gain) for key, gain in kept.items() if isinstance(gain, int | float) and gain > 0}


def measure_bf16_gain(rounds: int = 7) -> float:
    """Return the fp32 time of a convolution over its bfloat16 time, of each the least of some rounds, in turn."""
    with torch.random.fork_rng(devices=[]):  # Nothing random may depend on whether this was measured.
        layer = nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last)
    images = torch.zeros(4, 64, 28, 28).contiguous(memory_format=torch.channels_last)

    def seconds(bf16: bool) -> float:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            begin = time.perf_counter()
            for _ in range(4):
                layer(images)
            return time.perf_counter() - begin

    pairs = [(seconds(False), seconds(True)) for _ in range(rounds + 1)][1:]  # The first chooses algorithms.
    return round(min(full for full, _ in pairs) / min(half for _, half in pairs), 3)
