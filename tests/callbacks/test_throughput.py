"""Images a second of a training, by a clock that the test holds."""

import time

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import CSVLogger

from lit_robust.bench.measuring import Repeatable
from lit_robust.callbacks import Throughput
from lit_robust.core.batch import Batch
from lit_robust.models import Network
from lit_robust.modules import Optimisation, StandardModule


def test_images_of_a_step_over_its_seconds(tmp_path, monkeypatch):
    """Batches of 3 images, each of which takes 0.5 s: 6 a second, whatever came before a logged step."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    class Slow(StandardModule):
        def training_step(self, batch, batch_idx):
            now[0] += 0.5 if self.global_step > 2 else 3.0
            return super().training_step(batch, batch_idx)

    logger, seen = CSVLogger(tmp_path), {}
    monkeypatch.setattr(logger, "log_metrics", lambda metrics, step=None: seen.update({step: dict(metrics)}))
    index = torch.arange(3)
    batch = Batch(torch.rand(3, 3, 16, 16), index, index, torch.ones(3, dtype=torch.bool))
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=logger, log_every_n_steps=3, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[Throughput()], default_root_dir=tmp_path,
    )  # fmt: skip
    module = Slow(Network("lit_robust/resnet_tiny", 8), Optimisation(learning_rate=0.01))
    trainer.fit(module, Repeatable([batch] * 6))
    rates = {
        step: found["train/images_per_second"] for step, found in seen.items() if "train/images_per_second" in found
    }
    # The first three steps took 3 s each.
    assert rates == {2: pytest.approx(1.0), 5: pytest.approx(6.0)}
