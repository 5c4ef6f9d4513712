import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timm.models.levit import Attention
from torch import Tensor, nn

from lit_robust.attacks import APGD, FAB, PGD, Attack, AttackResult, AutoAttack, CachePaperAttack, Square, frozen
from lit_robust.attacks.attack import check_batch, check_numbers, check_range, check_reach, score, within_classes
from lit_robust.attacks.losses import cross_entropy
from lit_robust.core.errors import UserError
from lit_robust.core.logits import SomeClasses
from lit_robust.metrics.base import among_classes

IMAGES = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1])
ATTACKS: list[Attack] = [
    PGD(eps=0.5),
    PGD(eps=0.5, keep="first", target="least_likely"),
    PGD(eps=0.5, start="ball", restarts=2, target="random"),
    PGD(eps=0.5, start="ball", loss="kl"),
    APGD(steps=3),
    FAB(steps=3),
    Square(queries=3),
    AutoAttack(),
    CachePaperAttack(),
]


def test_perturb_of_an_attack_without_its_own_gives_the_images_of_a_call() -> None:
    class Invert(Attack):
        def __call__(self, model: Any, images: Tensor, labels: Tensor, *, generator: Any = None) -> AttackResult:
            return AttackResult(1 - images, labels != labels, torch.zeros(2), labels, labels, labels != labels)

    assert torch.equal(Invert().perturb(lambda images: images, IMAGES, LABELS), 1 - IMAGES)


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        ((IMAGES * 255).to(torch.uint8), LABELS, "Images are torch.uint8"),
        (IMAGES.bfloat16(), LABELS, "bf16-mixed"),
        (IMAGES[0], LABELS, r"shape \[3, 4, 4\]"),
        (IMAGES, LABELS[:1], r"shape \[1\] for 2 images"),
        (IMAGES, LABELS.float(), "Labels are torch.float32"),
    ],
)
def test_a_batch_of_the_wrong_kind_is_refused(images: Tensor, labels: Tensor, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_batch(images, labels)


@pytest.mark.parametrize("images", [IMAGES * 255, IMAGES - 0.5, IMAGES * float("nan")])
def test_pixels_outside_zero_to_one_are_refused(images: Tensor) -> None:
    with pytest.raises(UserError, match=r"attacks take \[0, 1\]"):
        check_range(images)


def test_the_range_s_ends_rounding_and_no_images_are_fine() -> None:
    check_batch(IMAGES, LABELS)
    check_range(torch.tensor([0.0, 1.0 + 1e-6]))
    check_range(IMAGES[:0])


@pytest.mark.parametrize("label", [-1, 5])
@pytest.mark.parametrize("attack", ATTACKS)
def test_labels_that_are_none_of_the_network_s_classes_are_refused(attack: Attack, label: int) -> None:
    labels = torch.tensor([0, label])
    with pytest.raises(UserError, match=f"An image has label {label}, where the network's classes go from 0 to 4: "):
        attack(five_logits, IMAGES, labels, generator=torch.Generator().manual_seed(0))


def test_targets_are_classes_too_and_every_class_is_one() -> None:
    with pytest.raises(UserError, match="An image has target 7, where the network's classes go from 0 to 4: "):
        PGD(eps=0.5).towards(five_logits, IMAGES, LABELS, torch.tensor([7, 2]))
    assert len(PGD(eps=0.5).towards(five_logits, IMAGES, torch.tensor([0, 4]), torch.tensor([4, 0])).success) == 2
    assert within_classes(five_logits, LABELS[:0], "label") is five_logits


@pytest.mark.parametrize("attack", ATTACKS)
def test_arrays_and_lists_are_taken_as_tensors_are(attack: Attack) -> None:
    expected = attack(five_logits, IMAGES, LABELS, generator=torch.Generator().manual_seed(0))
    kinds = [
        (IMAGES.numpy(), LABELS.numpy()),
        (IMAGES.double().numpy(), LABELS.numpy().astype(np.int32)),
        (IMAGES.numpy().astype(">f4"), [0, 1]),
        (IMAGES.tolist(), (0, 1)),
    ]
    for images, labels in kinds:
        found = attack(five_logits, images, labels, generator=torch.Generator().manual_seed(0))
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.success, expected.success)


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        ((IMAGES * 255).byte().numpy(), [0, 1], "Images are torch.uint8, attacks take float32"),
        (IMAGES.numpy(), [0.0, 1.0], "Labels are torch.float64"),
        (IMAGES.numpy(), ["cat", "dog"], "labels is of type list: give a tensor, a NumPy array or a list of numbers"),
        (object(), [0, 1], "images is of type object: give a tensor"),
    ],
)
def test_other_arrays_and_lists_are_refused_by_name(images: Any, labels: Any, sentence: str) -> None:
    for attack in (PGD(eps=0.5), APGD(steps=3), CachePaperAttack()):
        with pytest.raises(UserError, match=sentence):
            attack(five_logits, images, labels, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match=sentence):
        PGD(eps=0.5).perturb(five_logits, images, labels)


def test_numbers_of_numpy_are_settings_and_words_are_none() -> None:
    assert PGD("linf", np.float32(0.03), steps=np.int64(3)).protocol()["eps"] == pytest.approx(0.03)
    for wrong, sentence in (
        (lambda: PGD(norm="L2"), "PGD norm is 'L2': choose one of l1, l2, linf"),  # type: ignore[arg-type]
        (lambda: PGD(norm=2), "PGD norm is 2: choose one of"),  # type: ignore[arg-type]
        (lambda: PGD(steps=0), "PGD steps is 0: give 1 or more"),
        (lambda: PGD(steps=2.5), "PGD steps is 2.5: give a whole number, 1 or more"),  # type: ignore[arg-type]
        (lambda: PGD(eps=[0.5]), r"PGD eps is \[0.5\]: give a number"),  # type: ignore[arg-type]
        (lambda: APGD(rho="high"), "APGD rho is 'high': give a number"),  # type: ignore[arg-type]
        (lambda: FAB(beta=None), "FAB beta is None: give a number"),  # type: ignore[arg-type]
        (lambda: Square(queries=True), "Square queries is True: give a whole number"),
    ):
        with pytest.raises(UserError, match=sentence):
            wrong()


def five_logits(images: Tensor) -> Tensor:
    return images.flatten(1)[:, :5]


# MadryLab/robustness' largest of ImageNet and of CIFAR-10, and half a range on the scale to 255.
@pytest.mark.parametrize(("side", "usual", "wrong"), [(224, 10.0, 127.5), (64, 5.0, 127.5), (32, 1.0, 63.75)])
def test_published_radii_pass_and_those_on_the_scale_to_255_do_not(side: int, usual: float, wrong: float) -> None:
    images = torch.empty(1, 3, side, side)
    check_reach(usual, "l2", images)
    with pytest.raises(UserError, match=rf"L2 eps {wrong:g} is beyond .*, where you may mean {wrong:g}/255 = 0\.\d+"):
        check_reach(wrong, "l2", images)
    # A quarter of the distance of black and white.
    limit = float((torch.ones(3, side, side)).norm()) / 4
    check_reach(limit * 0.999, "l2", images)
    with pytest.raises(UserError, match="a quarter of the largest distance"):
        check_reach(limit * 1.001, "l2", images)


def test_l1_radii_likewise() -> None:
    images = torch.empty(1, 3, 32, 32)
    check_reach(12.0, "l1", images)  # Croce and Hein 2021's of CIFAR-10.
    with pytest.raises(UserError, match=r"L1 eps 3060 is beyond 768, a quarter .* you may mean 3060/255 = 12\."):
        check_reach(12.0 * 255, "l1", images)


@dataclass
class Snapshot:
    """All that an attack must leave as it was."""

    modes: list[bool]
    requires_grad: list[bool]
    gradients: list[Tensor | None]
    state: dict[str, Tensor]
    random: Tensor

    @classmethod
    def of(cls, network: nn.Module) -> "Snapshot":
        return cls(
            modes=[module.training for module in network.modules()],
            requires_grad=[parameter.requires_grad for parameter in network.parameters()],
            gradients=[copy.deepcopy(parameter.grad) for parameter in network.parameters()],
            state=copy.deepcopy(network.state_dict()),
            random=torch.get_rng_state(),
        )

    def check(self, network: nn.Module) -> None:
        now = Snapshot.of(network)
        assert now.modes == self.modes
        assert now.requires_grad == self.requires_grad
        assert torch.equal(now.random, self.random)
        for name, tensor in self.state.items():
            assert torch.equal(now.state[name], tensor), name
        for before, after in zip(self.gradients, now.gradients, strict=True):
            assert (before is None) == (after is None)
            if before is not None and after is not None:
                assert torch.equal(before, after)


class Broken(nn.Module):
    """Fails at a given call, as a network that runs out of memory does."""

    def __init__(self, network: nn.Module, calls: int) -> None:
        super().__init__()
        self.network, self.calls = network, calls

    def forward(self, images: Tensor) -> Tensor:
        self.calls -= 1
        if self.calls < 0:
            raise RuntimeError("broken on purpose")
        logits: Tensor = self.network(images)
        return logits


ATTACK = PGD(eps=1e-3, step_size=5e-4, steps=2, start="ball", keep="best", restarts=2)


@given(data=st.data(), calls=st.integers(0, 12))
# The fixture is a pure builder, so sharing it between examples shares nothing else.
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_attack_leaves_no_trace_even_when_the_network_fails(
    make_network: Callable[[], nn.Module], data: Any, calls: int
) -> None:
    network = Broken(make_network(), calls)
    for module in network.modules():
        module.training = data.draw(st.booleans())
    for parameter in network.parameters():
        if data.draw(st.booleans()):
            parameter.grad = torch.full_like(parameter, 0.5)
        parameter.requires_grad_(data.draw(st.booleans()))
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 8, 8, generator=generator)
    with torch.no_grad():
        labels = make_network().eval()(images).argmax(1)
    before = Snapshot.of(network)
    # Too weak to break an image: two searches of two steps and a best point, and a score of each, are eight calls.
    if calls < 8:
        with pytest.raises(RuntimeError, match="broken on purpose"):
            ATTACK(network, images, labels, generator=generator)
    else:
        ATTACK(network, images, labels, generator=generator)
        assert network.calls == calls - 8
    before.check(network)


def test_inside_everything_is_in_eval_mode_and_nothing_requires_gradients(
    make_network: Callable[[], nn.Module],
) -> None:
    network = make_network()
    with frozen(network):
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_train_method_of_its_own_neither_runs_nor_spoils_the_way_back() -> None:
    class Stubborn(nn.Linear):
        def train(self, mode: bool = True) -> "Stubborn":
            raise AssertionError("train() was called")

    network = nn.Sequential(Stubborn(2, 2), nn.Dropout())
    with frozen(network):
        assert not network[0].training
    assert network[0].training
    assert network[1].training


def test_a_plain_function_has_nothing_to_freeze() -> None:
    with frozen(lambda images: images):
        pass


def test_what_networks_keep_in_eval_mode_is_of_their_weights_now() -> None:
    """timm's LeViT keeps its attention biases there, and drops them in ``train()``, which is not called here."""

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Attention(dim=8, key_dim=4, num_heads=2, resolution=(4, 4))
            self.attention.proj.ln.bn.reset_parameters()
            nn.init.ones_(self.attention.proj.ln.bn.weight)

        def forward(self, images: Tensor) -> Tensor:
            return self.attention(images.flatten(2).mT.repeat(1, 1, 3)[:, :, :8]).mean(1)

    torch.manual_seed(0)
    network, images = Attending().train(), torch.rand(2, 3, 4, 4)
    with frozen(network):
        before = network(images)
    with torch.no_grad():
        network.attention.attention_biases.copy_(torch.randn(network.attention.attention_biases.shape))
    with frozen(network):
        after = network(images)
    fresh = Attending()
    fresh.load_state_dict(network.state_dict())
    fresh.eval()
    assert torch.equal(after, fresh(images))
    assert not torch.equal(before, after)


def test_ties_go_to_the_lower_class_and_losses_are_per_image() -> None:
    logits = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    verdict = score(lambda images: logits, torch.zeros(3, 3, 1, 1), torch.tensor([0, 1, 1]), cross_entropy)
    assert verdict.success.tolist() == [False, True, False]
    assert verdict.loss[:2].tolist() == pytest.approx([0.6931472] * 2)


def test_autocast_around_a_score_is_off_inside() -> None:
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 5))
    labels = torch.tensor([0, 1])
    plain = score(network, images, labels, cross_entropy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(images).dtype == torch.bfloat16
        inside = score(network, images, labels, cross_entropy)
    assert torch.equal(plain.loss, inside.loss)


def test_a_loss_that_is_not_a_number_is_refused_and_an_infinite_one_is_not() -> None:
    check_numbers(torch.tensor([1.0, float("inf")]))
    with pytest.raises(UserError, match="for 1 of 2 attacked images"):
        check_numbers(torch.tensor([1.0, float("nan")]))


def test_a_network_that_gives_too_few_rows_is_refused() -> None:
    with pytest.raises(UserError, match="returns 2 rows of logits for 4 images"):
        PGD(eps=0.5)(lambda images: images[:2].flatten(1), torch.rand(4, 3, 4, 4), torch.zeros(4, dtype=torch.long))


CHOSEN = [1, 3, 4, 6, 9]
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "attack",
    [PGD("l2", 0.3, 0.1, 3), PGD("l2", 0.3, 0.1, 3, loss="dlr"), APGD("linf", 0.02, 5, "dlr", 2), FAB(steps=5)],
)
def test_some_classes_are_a_network_without_the_others(network: nn.Module, images: Tensor, attack: Attack) -> None:
    narrow = SomeClasses(network, CHOSEN, CPU)
    assert isinstance(network, nn.Sequential)
    last = network[-1]
    assert isinstance(last, nn.Linear)
    head = nn.Linear(48, 5)
    head.load_state_dict({"weight": last.weight[CHOSEN], "bias": last.bias[CHOSEN]})
    alone = nn.Sequential(*network[:-1], head).eval()
    with torch.no_grad():
        labels = alone(images).argmax(1)
        masked = among_classes(network(images), CHOSEN).argmax(1)
    assert torch.equal(narrow.numbers(labels), masked)
    assert torch.equal(narrow.places(masked), labels)
    with torch.inference_mode():
        found = attack(narrow, images, labels, generator=torch.Generator().manual_seed(0))
    expected = attack(alone, images, labels, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.success, expected.success)
    # Matrices of other shapes are summed in another order, which may turn the sign of a pixel's gradient in Linf.
    if attack.norm == "l2":
        torch.testing.assert_close(found.images, expected.images, rtol=0, atol=1e-4)


def test_no_chosen_class_leaves_all_as_it_is(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    whole = SomeClasses(network, (), CPU)
    with torch.no_grad():
        assert torch.equal(whole(images), network(images))
    assert torch.equal(whole.places(labels), labels)
    assert torch.equal(whole.numbers(labels), labels)
