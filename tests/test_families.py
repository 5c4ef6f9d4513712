"""One small network of each family of timm, and a CLIP-like one, all the way: fit, test, attack, memory, study."""

import math

import pytest
import torch
from pytorch_lightning import Trainer
from safetensors.torch import save_file
from tiny_families import FAMILIES

from lit_robust.analysis.attribution import integrated_gradients
from lit_robust.analysis.jacobian import jacobian_norm
from lit_robust.analysis.smoothness import gradient_roughness, loss_gradients
from lit_robust.attacks import PGD
from lit_robust.callbacks import AdversarialAccuracy, CalibrationEvaluation, CleanAccuracy, ResultsFile
from lit_robust.core.results import RunResults
from lit_robust.data import EvaluationCrop, ImageNetDataModule, TrainingCrop
from lit_robust.models import Network
from lit_robust.modules import CacheModule, Optimisation, StandardModule
from lit_robust.report.page import write_report

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([1, 5])
PGD_L2 = PGD(norm="l2", eps=1.0, steps=2)


def network(family, folder):
    """Return the network's settings; CLIP's tower stands behind eight class vectors."""
    arguments = {"family": family}
    if family != "clip":
        return Network("tiny_families:make", 8, arguments=arguments)
    vectors = torch.randn(8, 12, generator=torch.Generator().manual_seed(3))
    save_file({"text": vectors, "logit_scale": torch.tensor(10.0)}, folder / "text.safetensors")
    tower = {"name": "tiny_families:make", "arguments": arguments}
    given = {"tower": tower, "text": str(folder / "text.safetensors")}
    return Network("lit_robust.models.zero_shot:zero_shot", 8, arguments=given)


def data(toy, size):
    return ImageNetDataModule(
        toy,
        training=TrainingCrop(size=size),
        evaluation=EvaluationCrop(size, size),
        batch_size=16,
        eval_batch_size=41,
        num_workers=0,
    )


def trainer(folder, *callbacks, batches=1.0):
    return Trainer(
        default_root_dir=folder,
        max_epochs=1,
        limit_train_batches=batches,
        limit_val_batches=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_goes_all_the_way(family, toy, tmp_path):
    torch.manual_seed(0)
    size = 28 if family == "eva" else 32
    module = StandardModule(network(family, tmp_path), Optimisation(learning_rate=0.01))
    before = {name: value.clone() for name, value in module.model.named_parameters()}
    trainer(tmp_path / "fit", batches=1).fit(module, data(toy, size))
    assert any(not torch.equal(before[name], value) for name, value in module.model.named_parameters())

    run = tmp_path / "run"
    evaluations = CleanAccuracy(), CalibrationEvaluation(), AdversarialAccuracy(PGD_L2)
    trainer(run, *evaluations, ResultsFile()).test(module, data(toy, size), verbose=False)
    found = {one.metric: one for one in RunResults.load(run).results}
    attacked = next(one for name, one in found.items() if name.startswith("adversarial"))
    assert (found["top1"].count, attacked.count) == (41, 41)
    assert attacked.value <= found["top1"].value
    assert not attacked.warnings, attacked.warnings  # Every image had a gradient.
    assert "Clean" in write_report([run], tmp_path / "report.html").read_text()

    # Its memory answers from what stands before the softmax.
    layer = "" if family == "clip" else module.model.network.pretrained_cfg["classifier"]
    layer = layer if isinstance(layer, str) else layer[0]
    state = tmp_path / "trained.pt"
    torch.save(module.model.network.state_dict(), state)
    trained = Network(**{**vars(network(family, tmp_path)), "weights": str(state)})
    memory = CacheModule(trained, tmp_path / "memory", layer or "tower")
    trainer(tmp_path / "build").fit(memory, data(toy, size))
    asked = CleanAccuracy()
    trainer(tmp_path / "ask", asked).test(memory, data(toy, size), verbose=False)
    assert asked.results[0].count == 41

    model, images = module.model.eval(), IMAGES[..., :size, :size]
    assert bool((jacobian_norm(model, images) > 0).all())
    assert bool((gradient_roughness(loss_gradients(model, images, LABELS)) > 0).all())
    shares = integrated_gradients(model, images, LABELS, steps=24).sum((1, 2, 3))
    with torch.no_grad():
        gain = (model(images) - model(torch.zeros_like(images))).gather(1, LABELS[:, None])[:, 0]
    assert math.isfinite(float(shares.sum()))
    torch.testing.assert_close(shares, gain, rtol=0.1, atol=0.05)
