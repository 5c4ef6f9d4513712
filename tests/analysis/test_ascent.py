"""Optimisation in image space against closed forms of a linear representation."""

import pytest
import torch
from linear import linear, pictures

from lit_robust.analysis import ascent
from lit_robust.analysis.ascent import Match, Maximise, Settings, ascend, noise_starts, relative_distance
from lit_robust.analysis.representation import Representation
from lit_robust.models import Network, build_classifier


def test_inversion_of_a_linear_representation_ends_at_the_nearest_image_that_matches():
    represent, rows = linear(orthonormal=False)
    start, target = pictures(3, 0), pictures(3, 1)
    images = start
    for step_size in (0.01, 0.001, 0.0001):  # Steps have one length, so the end is known to about one of them.
        images = ascend(represent, Match(represent(target).detach()), images, Settings(step_size=step_size, steps=400))[
            0
        ]
    nearest = start.flatten(1) + (target - start).flatten(1) @ (torch.linalg.pinv(rows) @ rows).T
    torch.testing.assert_close(images.flatten(1), nearest, rtol=0, atol=2e-4)


@pytest.mark.parametrize("eps", [0.02, 0.05, 10.0])
def test_what_can_be_reached_within_a_distance_of_a_linear_representation(eps):
    represent, rows = linear()
    start, target = pictures(3, 0), pictures(3, 1)
    goal = represent(target).detach()
    settings = Settings(eps=eps, step_size=min(eps / 50, 1e-3), steps=600)
    found = ascend(represent, Match(goal), start, settings)
    away = ((target - start).flatten(1) @ rows.T).norm(dim=1)
    expected = (away - eps).clamp_min(0) / goal.norm(dim=1)
    torch.testing.assert_close(relative_distance(represent(found.images), goal).detach(), expected, rtol=0, atol=1e-3)
    assert ((found.images - start).flatten(1).norm(dim=1) <= eps * (1 + 1e-5)).all()


def test_maximising_a_linear_feature_goes_straight_along_its_weights():
    represent, rows = linear(orthonormal=False)
    start, units = pictures(2, 0), torch.tensor([1, 4])
    found = ascend(represent, Maximise(units), start, Settings(step_size=0.3, steps=7))
    direction = rows[units] / rows[units].norm(dim=1, keepdim=True)
    path = start.flatten(1)
    for _ in range(7):
        path = (path + 0.3 * direction).clamp(0, 1)
    torch.testing.assert_close(found.images.flatten(1), path, rtol=0, atol=1e-5)
    assert ((found.images == 0) | (found.images == 1)).any()  # The clamp took part.


def test_a_level_ends_the_addition_of_a_feature():
    represent, _ = linear()
    start, units = pictures(2, 0), torch.tensor([1, 4])
    level = float(represent(start).detach().gather(1, units[:, None]).max()) + 0.2
    found = ascend(represent, Maximise(units, level), start, Settings(step_size=0.03, steps=50))
    reached = represent(found.images).gather(1, units[:, None])[:, 0]
    assert ((reached >= level) & (reached <= level + 0.03)).all()
    assert (found.vanished > 0).all()


def test_a_finished_image_stays_while_others_go_on():
    represent, _ = linear()
    start, units = pictures(4, 0, spread=1.0), torch.tensor([0, 1, 2, 3])
    settings = Settings(step_size=0.05, steps=60)
    found = ascend(represent, Maximise(units, until_highest=True), start, settings)
    never = ascend(represent, Maximise(units), start, settings)
    assert len(set(found.steps.tolist())) > 1
    for row in range(4):
        chosen = slice(row, row + 1)
        alone = ascend(represent, Maximise(units[chosen], until_highest=True), start[chosen], settings)
        assert torch.equal(found.images[row], alone.images[0])
        steps = int(found.steps[row])
        assert steps == alone.steps[0] < 60
        # One step less, and the feature is not yet the highest; so many, and it is.
        for count in range(max(steps - 1, 0), steps + 1):
            moved = ascend(represent, Maximise(units[chosen]), start[chosen], Settings(step_size=0.05, steps=count))
            assert (int(represent(moved.images).argmax(1)) == row) == (count == steps)
    assert never.steps.tolist() == [60] * 4


def test_the_same_image_twice_is_at_distance_0_with_a_gradient():
    represent, _ = linear()
    start = pictures(1, 0)
    goal = represent(start).detach()
    found = ascend(represent, Match(goal), start, Settings(steps=3))
    assert torch.equal(found.images, start)
    assert found.vanished.tolist() == [3]


def test_a_killed_ascent_goes_on_to_the_same_images(tmp_path, monkeypatch):
    network = build_classifier(Network("lit_robust/resnet_tiny", 4)).eval()
    start, target = noise_starts((3, 16, 16), [0, 1], 0), noise_starts((3, 16, 16), [5, 6], 0)
    represent = Representation.of(network, start[:1])
    goal, settings = Match(represent(target).detach()), Settings(step_size=0.1, steps=12)
    whole = ascend(represent, goal, start, settings)

    monkeypatch.setattr(ascent, "KEPT_EVERY", 5)
    taken = 0
    real = ascent.ascent_step

    def killed(*arguments):
        nonlocal taken
        taken += 1
        if taken == 8:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(ascent, "ascent_step", killed)
    file = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        ascend(represent, goal, start, settings, file=file)
    again = ascend(represent, goal, start, settings, file=file)
    assert taken == 8 + 7  # From step 5, not from the beginning.
    assert torch.equal(again.images, whole.images)
    assert torch.equal(again.steps, whole.steps)
    ascend(represent, goal, start, settings, file=file)
    assert taken == 15  # It is finished.
    other = ascend(represent, goal, target, settings, file=file)
    assert taken == 27  # Another start is another run.
    assert not torch.equal(other.images, whole.images)


def test_noise_is_each_images_own():
    both = noise_starts((3, 8, 8), [3, 4], 0)
    assert torch.equal(noise_starts((3, 8, 8), [4], 0)[0], both[1])
    assert not torch.equal(noise_starts((3, 8, 8), [4], 1)[0], both[1])
    many = noise_starts((3, 64, 64), [0], 0)
    assert abs(float(many.mean()) - 0.5) < 0.002
    assert abs(float(many.std()) - 0.05) < 0.002


def test_an_ascent_runs_without_the_batch_norms_and_ends_at_the_same_images(monkeypatch):
    torch.manual_seed(0)
    network = build_classifier(Network("lit_robust/resnet_tiny", 10)).eval()
    norms = [part for part in network.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.running_var.copy_(torch.rand_like(norm.running_var) + 0.5)
    start, target = torch.rand(2, 2, 3, 48, 48)
    found, calls = [], []
    own = torch.nn.functional.batch_norm
    monkeypatch.setattr(
        torch.nn.functional, "batch_norm", lambda *given, **named: calls.append(1) or own(*given, **named)
    )
    for whole in (False, True):
        represent = Representation(network)
        goal = represent(target).detach()
        if whole:
            monkeypatch.setattr("lit_robust.core.folding.NORMS", ())
        calls.clear()
        found.append(ascend(represent, Match(goal), start, Settings(step_size=0.1, steps=3)).images)
        assert bool(calls) == whole
    torch.testing.assert_close(*found, rtol=0, atol=1e-4)
