import pytest
import torch
from pytorch_lightning import Trainer
from test_modules import NETWORK, fit
from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts, LambdaLR, OneCycleLR, StepLR
from torch.utils.data import DataLoader, TensorDataset

from lit_robust.core.errors import UserError
from lit_robust.models import Network, build_classifier
from lit_robust.modules import StandardModule
from lit_robust.modules.optimisation import Optimisation, build_optimizer, head_of, rate_factor, warmup_factor

STEPS, EPOCHS = 10, 12  # An epoch has 10 steps.


def rates(make_scheduler, rate=0.4):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate, momentum=0.9)
    scheduler = make_scheduler(optimizer)
    seen = []
    for _ in range(STEPS * EPOCHS):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def ours(settings):
    return rates(lambda opt: LambdaLR(opt, lambda step: rate_factor(settings, step / STEPS, EPOCHS)))


def test_step_is_torchs():
    peer = rates(lambda opt: StepLR(opt, step_size=5 * STEPS, gamma=0.1))
    assert ours(Optimisation(schedule="step", step_epochs=5)) == pytest.approx(peer)


def test_cosine_is_torchs():
    peer = rates(lambda opt: CosineAnnealingLR(opt, T_max=EPOCHS * STEPS))
    assert ours(Optimisation(schedule="cosine")) == pytest.approx(peer)


def test_one_cycle_is_torchs_but_for_its_ends():
    peer = rates(
        lambda opt: OneCycleLR(
            opt, max_lr=0.4, total_steps=EPOCHS * STEPS + 1, pct_start=0.3, anneal_strategy="linear",
            cycle_momentum=False,
        )
    )  # fmt: skip
    rising = slice(0, 35)
    # torch places its peak at 0.3 * total - 1, one step before ours.
    assert ours(Optimisation(schedule="one_cycle"))[rising] == pytest.approx(peer[rising], rel=0.04)
    seen = ours(Optimisation(schedule="one_cycle"))
    assert max(seen) == pytest.approx(0.4)
    assert seen[-1] < 0.001


def test_warmup_rises_linearly():
    seen = ours(Optimisation(schedule="constant", warmup_epochs=2))
    assert seen[:20] == pytest.approx([0.4 * step / 20 for step in range(20)])
    assert seen[20:] == pytest.approx([0.4] * 100)
    assert [warmup_factor(Optimisation(warmup_epochs=0), epoch) for epoch in (0.0, 5.0)] == [1.0, 1.0]


def test_only_matrices_decay_without_norm_decay():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    groups = build_optimizer(Optimisation(weight_decay=0.1, norm_decay=False), network.parameters()).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.1), (3, 0.0)]
    groups = build_optimizer(Optimisation(weight_decay=0.1), network.parameters()).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(4, 0.1)]


ADAMW = {"optimizer": "torch.optim.AdamW", "learning_rate": 1e-3, "weight_decay": 0.05, "norm_decay": False}


def test_any_optimiser_of_torch_takes_the_steps_of_its_own():
    for kind, arguments in ((torch.optim.AdamW, {"betas": [0.5, 0.9]}), (torch.optim.RMSprop, {"momentum": 0.3})):
        settings = Optimisation(
            optimizer=f"torch.optim.{kind.__name__}", learning_rate=0.1, weight_decay=0.01, optimizer_args=arguments
        )
        ours, theirs = torch.nn.Parameter(torch.tensor([[1.0, -2.0]])), torch.nn.Parameter(torch.tensor([[1.0, -2.0]]))
        optimizers = build_optimizer(settings, [ours]), kind([theirs], lr=0.1, weight_decay=0.01, **arguments)
        for step in range(3):
            for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
                optimizer.zero_grad()
                ((parameter - step) ** 2).sum().backward()
                optimizer.step()
        assert torch.equal(ours, theirs)


def test_norms_are_free_of_adamws_decay():
    groups = build_optimizer(Optimisation(**ADAMW), torch.nn.LayerNorm(3).parameters()).param_groups
    assert [group["weight_decay"] for group in groups] == [0.0]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"learning_rate": 0.0}, "learning_rate 0.0, weight_decay 0.0001 and momentum 0.9: give a rate above 0"),
        ({"learning_rate": float("inf")}, "give a rate above 0"),
        ({"weight_decay": -1.0}, "give a rate above 0"),
        ({"weight_decay": float("inf")}, "give a rate above 0"),
        ({"momentum": 1.0}, "give a rate above 0"),
        ({"step_epochs": 0}, "give 1 or more, 0 or more, and 0 to 1"),
        ({"warmup_epochs": -1.0}, "give 1 or more, 0 or more, and 0 to 1"),
        ({"label_smoothing": 1.5}, "give 1 or more, 0 or more, and 0 to 1"),
        ({"nesterov": True, "momentum": 0.0}, "give both or neither"),
        ({"optimizer": "torch.optim.AdamX"}, "optimizer is 'torch.optim.AdamX', did you mean torch.optim.Adam"),
        ({"optimizer": "os.system"}, "optimizer is 'os.system': choose one of torch.optim.Ada"),
        ({"optimizer": "torch.optim.Optimizer"}, "optimizer is 'torch.optim.Optimizer'"),
        ({"optimizer": "torch.optim.AdamW", "optimizer_args": {"beta": 1}}, "AdamW does not take .*beta 1.* names"),
        ({"optimizer": "torch.optim.AdamW", "optimizer_args": {"betas": [2, 0]}}, "AdamW does not take .*names"),
        ({"optimizer": "torch.optim.Rprop"}, "weight_decay is 0.0001, and torch.optim.Rprop has none: set it to 0"),
        ({"optimizer_args": {"fast": True}}, "SGD does not take .*fast True"),
        ({"schedule": "cosin"}, "schedule is 'cosin', did you mean cosine"),
        ({"schedule": "torch.optim.lr_scheduler.ReduceLROnPlateau"}, "schedule is 'torch.optim.lr_scheduler.Reduce"),
        ({"schedule": "torch.optim.lr_scheduler.StepLR"}, "StepLR does not take .*step_size"),
        ({"schedule": "cosine", "schedule_args": {"T_max": 3}}, "schedule cosine takes none: name a class path"),
    ],
)
def test_settings_that_do_not_exist_are_refused(given, says):
    with pytest.raises(UserError, match=says):
        Optimisation(**given)


def test_schedules_of_torch_step_with_every_batch_and_warm_up(tmp_path):
    """Against torch's own schedule, times the warm-up's share; the settings come back from a checkpoint."""
    settings = Optimisation(
        **ADAMW,
        schedule="torch.optim.lr_scheduler.CosineAnnealingWarmRestarts",
        schedule_args={"T_0": 4},
        warmup_epochs=1.5,
    )
    used = []

    class Recorded(StandardModule):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
            before = [group["lr"] for group in optimizer.param_groups]
            step = optimizer.step

            def recorded(closure=None):
                used.append(optimizer.param_groups[0]["lr"])
                return step(closure)

            optimizer.step = recorded
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            optimizer.step = step
            assert [group["lr"] for group in optimizer.param_groups] == before

    module = Recorded(NETWORK, settings)
    batches = fit(module, tmp_path, max_epochs=6).num_training_batches
    peer = rates(lambda opt: CosineAnnealingWarmRestarts(opt, T_0=4), rate=1e-3)
    expected = [min(1, step / (1.5 * batches)) * peer[step] for step in range(6 * batches)]
    assert used == pytest.approx(expected)
    assert len(set(used)) > 3
    assert Optimisation(**module.hparams["optimisation"]) == settings


def test_hyperparameters_of_older_versions_are_read():
    old = {"learning_rate": 0.2, "momentum": 0.8, "weight_decay": 0.0, "nesterov": True, "schedule": "one_cycle"}
    old |= {"step_epochs": 30, "step_factor": 0.1, "warmup_epochs": 0.0, "label_smoothing": 0.0, "norm_decay": True}
    (group,) = build_optimizer(Optimisation(**old), [torch.nn.Parameter(torch.zeros(1))]).param_groups
    assert (group["lr"], group["momentum"], group["nesterov"]) == (0.2, 0.8, True)


def test_the_body_has_a_rate_of_its_own():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.Linear(5, 5), torch.nn.Linear(5, 5)
    )
    assert head_of(network, 5) is network[3]
    convolutions = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 5, 1), torch.nn.Flatten())
    assert head_of(convolutions, 5) is convolutions[1]
    with pytest.raises(UserError, match="no linear layer or convolution of 7 outputs"):
        head_of(network, 7)
    settings = Optimisation(learning_rate=0.5, body_rate=0.1, norm_decay=False)
    groups = build_optimizer(settings, network.parameters(), network[3]).param_groups
    found = [(len(group["params"]), group["lr"], group["weight_decay"]) for group in groups]
    assert found == [(1, 0.5, 1e-4), (1, 0.5, 0.0), (2, 0.05, 1e-4), (4, 0.05, 0.0)]
    groups = build_optimizer(Optimisation(body_rate=0.0), network.parameters(), network[3]).param_groups
    assert [id(p) for group in groups for p in group["params"]] == [id(p) for p in network[3].parameters()]
    with pytest.raises(UserError, match="body_rate is -1: give 0, to freeze"):
        Optimisation(body_rate=-1)


def test_a_network_without_a_last_layer_of_its_classes_trains_as_a_whole(monkeypatch):
    module = StandardModule(Network("lit_robust/resnet_tiny", 5), Optimisation(schedule="constant"))
    monkeypatch.setattr("lit_robust.modules.base.head_of", lambda *_: pytest.fail("no layer is asked for"))
    count = sum(len(group["params"]) for group in module.configure_optimizers()["optimizer"].param_groups)
    assert count == len(list(module.model.parameters()))


@pytest.mark.parametrize("body_rate", [0.0, 0.5])
def test_fine_tuning_of_a_new_head(tmp_path, body_rate, caplog):
    """A file of 5 classes, a network of 3: the body is the file's, and moves only where it has a rate."""
    before = build_classifier(Network("lit_robust/resnet_tiny", 5)).network.state_dict()
    torch.save(before, tmp_path / "five.pt")
    spec = Network("lit_robust/resnet_tiny", 3, str(tmp_path / "five.pt"), new_head=True)
    module = StandardModule(spec, Optimisation(learning_rate=0.1, schedule="constant", body_rate=body_rate))
    assert "the head is new, its fc.weight and fc.bias are not the file's" in caplog.text
    started = {name: tensor.clone() for name, tensor in module.model.network.state_dict().items()}
    assert all(torch.equal(started[name], before[name]) for name in before if not name.startswith("fc."))
    loader = DataLoader(TensorDataset(torch.rand(8, 3, 16, 16), torch.arange(8) % 3), batch_size=4)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    trainer.fit(module, loader)
    rates = {group["lr"] for group in trainer.optimizers[0].param_groups}
    assert rates == ({0.1, 0.05} if body_rate else {0.1})
    ended = module.model.network.state_dict()
    moved = {name for name in started if not torch.equal(started[name], ended[name])}
    assert {"fc.weight", "fc.bias"} <= moved
    assert (moved == {"fc.weight", "fc.bias"}) == (body_rate == 0)
    again = StandardModule.load_from_checkpoint(next(tmp_path.rglob("*.ckpt")), map_location="cpu")
    assert torch.equal(again.model.network.fc.weight, ended["fc.weight"])


def test_a_new_head_needs_another_number_of_classes(tmp_path):
    torch.save(build_classifier(Network("lit_robust/resnet_tiny", 5)).network.state_dict(), tmp_path / "five.pt")
    with pytest.raises(UserError, match="every tensor has the shape it has there: leave new_head out"):
        build_classifier(Network("lit_robust/resnet_tiny", 5, str(tmp_path / "five.pt"), new_head=True))
    with pytest.raises(UserError, match="differ in shape: leave new_head out, or name the network"):
        build_classifier(Network("lit_robust/resnet_small", 3, str(tmp_path / "five.pt"), new_head=True))
    with pytest.raises(UserError, match="new_head is true: give a file as weights"):
        Network("lit_robust/resnet_tiny", 5, new_head=True)
