"""Lightning's trainer with ``precision: auto``, which recipes ask for: the fast precision of the machine at hand."""

from typing import Any, Literal

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.accelerators import Accelerator
from pytorch_lightning.utilities import rank_zero_warn

from lit_robust.core.precision import choose_precision, slow_bf16

MixedOrTrue = Literal["auto", "bf16-mixed", "32-true", "16-mixed", "64-true", "bf16-true", "16-true"]
Engine = Literal["transformer-engine", "transformer-engine-float16"]
TrainerPrecision = MixedOrTrue | Engine | Literal["64", "32", "16", "bf16", 64, 32, 16]
"""Lightning's names, and ``auto``."""


class RobustTrainer(Trainer):
    """Lightning's trainer, that can choose its precision by itself.

    Args:
        precision: ``auto`` is bf16-mixed where the device computes in bfloat16, a GPU by its capability and a processor
            by its instructions and a measurement of them, and 32-true elsewhere. Results are scored in fp32 in any.
        accelerator: as in Lightning.
        **settings: all others of Lightning's trainer.
    """

    def __init__(
        self,
        *,
        precision: TrainerPrecision | None = None,
        accelerator: str | Accelerator = "auto",
        **settings: Any,
    ) -> None:
        on_gpu = torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda")
        device_type = "cuda" if on_gpu else "cpu"
        named: Any = precision
        if precision == "auto":
            named = {"bf16": "bf16-mixed", "fp32": "32-true"}[choose_precision("auto", device_type)]
        elif precision in ("bf16-mixed", "bf16") and (said := slow_bf16(device_type)):
            rank_zero_warn(said)
        super().__init__(accelerator=accelerator, precision=named, **settings)
