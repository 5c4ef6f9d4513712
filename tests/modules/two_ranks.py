"""One step of every training scheme, by one process or by each of two ranks; run by `test_two_ranks.py`.

    python two_ranks.py OUT          one process, the whole batch
    torchrun ... two_ranks.py OUT    two ranks, half of it each

Torch synchronises batch norm on accelerators alone, and refuses it elsewhere. Here its layer gets a forward of a few
lines that does the same on the CPU, so that everything around it is Lightning's and ours.
"""

import os
import sys
import tempfile
import warnings
from dataclasses import replace
from unittest import mock

import torch
import torch.distributed.nn.functional as collectives
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn import functional as F

from lit_robust.attacks import PGD
from lit_robust.core.batch import Batch
from lit_robust.models import Network
from lit_robust.modules import AdversarialModule, AdvPropModule, Optimisation, StandardModule, TradesModule

RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
ATTACK = PGD(norm="l2", eps=0.5, step_size=0.25, steps=2)
SETTINGS = Optimisation(learning_rate=0.05, schedule="constant")
NETWORK = Network("lit_robust/resnet_tiny", num_classes=4)
SCHEMES = {
    "standard": lambda: StandardModule(NETWORK, SETTINGS),
    "adversarial": lambda: AdversarialModule(NETWORK, SETTINGS, ATTACK),
    "advprop": lambda: AdvPropModule(NETWORK, SETTINGS, replace(ATTACK, start="ball", target="random")),
    "trades": lambda: TradesModule(NETWORK, SETTINGS, PGD(eps=0.5, steps=1, start="ball", loss="kl")),
}
reductions = {"inside": 0, "attack": 0, "buckets": 0}


class Loader:
    def __iter__(self):
        generator = torch.Generator().manual_seed(5)
        image, index = torch.rand(8, 3, 32, 32, generator=generator), torch.arange(8)
        mine = slice(RANK * 8 // WORLD, (RANK + 1) * 8 // WORLD)
        yield Batch(image[mine], index[mine] % 4, index[mine], torch.ones(8, dtype=torch.bool)[mine])

    def __len__(self):
        return 1


def reduce(tensor: Tensor) -> Tensor:
    reductions["attack"] += reductions["inside"]
    return collectives.all_reduce(tensor)


def synchronised(self: nn.SyncBatchNorm, inputs: Tensor) -> Tensor:
    if not self.training:
        return F.batch_norm(inputs, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
    sums = torch.stack([inputs.sum((0, 2, 3)), inputs.square().sum((0, 2, 3))])
    count = inputs.numel() // inputs.shape[1] * WORLD
    mean, square = reduce(sums) / count
    variance = square - mean.square()
    with torch.no_grad():
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        self.num_batches_tracked.add_(1)
    shape = (1, -1, 1, 1)
    normal = (inputs - mean.view(shape)) * (variance.view(shape) + self.eps).rsqrt()
    return normal * self.weight.view(shape) + self.bias.view(shape)


def counted(perturb):
    def inside(self, *arguments, **named):
        reductions["inside"] = 1
        found = perturb(self, *arguments, **named)
        reductions["inside"] = 0
        return found

    return inside


def count_buckets(state, bucket):
    reductions["buckets"] += 1
    future = torch.distributed.all_reduce(bucket.buffer().div_(WORLD), async_op=True).get_future()
    return future.then(lambda done: done.value()[0])


class CountBuckets(Callback):
    # Lightning registers a hook of the strategy's on GPUs alone.
    def on_train_start(self, trainer, pl_module):
        if WORLD > 1:
            trainer.strategy.model.register_comm_hook(None, count_buckets)


def main(out: str) -> None:
    results = {}
    for name, build in SCHEMES.items():
        # With this seed no activation of the first step lies on the kink of a ReLU.
        seed_everything(2)
        reductions.update(attack=0, buckets=0)
        parallel = {"devices": 2, "sync_batchnorm": True}
        parallel["strategy"] = DDPStrategy(process_group_backend="gloo")
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                max_epochs=1,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=folder,
                gradient_clip_val=0.5,
                callbacks=[CountBuckets()],
                **(parallel if WORLD > 1 else {"devices": 1}),
            )
            module = build()
            trainer.fit(module, Loader())
        results[name] = {"state": module.model.state_dict(), **reductions}
    if RANK == 0:
        torch.save(results, out)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with (
        mock.patch.object(nn.SyncBatchNorm, "forward", synchronised),
        mock.patch.object(nn.parallel.DistributedDataParallel, "_passing_sync_batchnorm_handle"),
        mock.patch.object(PGD, "perturb", counted(PGD.perturb)),
    ):
        main(sys.argv[1])
