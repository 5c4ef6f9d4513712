"""Scores of units against whole passes, one a unit, with the unit zeroed by a hook."""

import numpy as np
import pytest
import torch
from scipy import stats

from lit_robust.analysis import ablation
from lit_robust.analysis.ablation import Conflict, changed_decisions, scores_study, unit_scores
from lit_robust.models import Network, build_classifier
from lit_robust.models.taps import changed, outputs

LAYERS = ["relu", "layers.1", "layers.3"]
IMAGES = torch.rand(24, 3, 24, 24, generator=torch.Generator().manual_seed(3))
CATEGORIES = {"one": [0, 1], "two": [2], "three": [3, 4]}


def decide(logits):
    return ablation.category_probabilities(logits, CATEGORIES).argmax(1)


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    model = build_classifier(Network("lit_robust/resnet_tiny", 5)).eval()
    with torch.no_grad():
        model.network.layers[1][0].bn2.weight[3] = 0  # Two units that are dead: one without a change, one below 0.
        model.network.layers[1][0].bn2.bias[3] = -100
        # So that images are decided for each of the classes, and one unit can change that.
        model.network.fc.bias.sub_(model(IMAGES).mean(0))
    return model


@pytest.fixture(scope="module")
def conflict(classifier):
    with torch.no_grad():
        decided = decide(classifier(IMAGES)).numpy()
    shapes = decided.copy()
    shapes[::2] = (shapes[::2] + 1) % 3  # Every second image is decided for its texture, every fifth for neither.
    textures = np.where(np.arange(24) % 2 == 0, decided, (decided + 1) % 3)
    textures[::5], shapes[::5] = (decided[::5] + 1) % 3, (decided[::5] + 2) % 3
    return Conflict(lambda place: IMAGES[place, None], shapes, textures, CATEGORIES, {"split": "test"})


@torch.no_grad()
def by_hooks(classifier, conflict, layer, units):
    """Return both scores of every unit by whole passes."""
    scores = np.zeros((2, units), dtype=int)
    for unit in range(units):

        def without(output, unit=unit):
            output[:, unit] = 0
            return output

        for place in range(24):
            image = conflict.images(place)
            before = int(decide(classifier(image)))
            with changed(classifier, layer, without):
                after = int(decide(classifier(image)))
            scores[0, unit] += before == conflict.shapes[place] and after != before
            scores[1, unit] += before == conflict.textures[place] and after != before
    return scores


def test_scores_are_those_of_whole_passes(classifier, conflict):
    found = unit_scores(classifier, conflict, LAYERS)
    total = 0
    for layer, units in zip(LAYERS, (16, 32, 128), strict=True):
        expected = by_hooks(classifier, conflict, layer, units)
        assert found.shape[layer].tolist() == expected[0].tolist(), layer
        assert found.texture[layer].tolist() == expected[1].tolist(), layer
        total += expected.sum(1)
    assert min(total) > 3
    assert (found.decided == 0).sum() == 5
    assert found.shape["layers.1"][3] == 0


def test_units_at_once_do_not_matter(classifier, conflict):
    image = conflict.images(1)
    whole = changed_decisions(classifier, image, LAYERS, decide)
    for at_once in (1, 5):
        found = changed_decisions(classifier, image, LAYERS, decide, at_once)
        assert all(torch.equal(found[layer], whole[layer]) for layer in LAYERS)


def test_an_interrupted_study_goes_on(classifier, conflict, tmp_path, monkeypatch):
    whole = unit_scores(classifier, conflict, LAYERS)
    monkeypatch.setattr(ablation, "SAVE_EVERY", 4)
    asked = []

    def breaking(place):
        asked.append(place)
        if len(asked) == 11:
            raise KeyboardInterrupt
        return conflict.images(place)

    broken = Conflict(breaking, conflict.shapes, conflict.textures, CATEGORIES, {})
    partial = tmp_path / "partial.safetensors"
    with pytest.raises(KeyboardInterrupt):
        unit_scores(classifier, broken, LAYERS, partial=partial, identity="same")
    asked.clear()
    asked.extend([0] * 100)
    resumed = unit_scores(classifier, broken, LAYERS, partial=partial, identity="same")
    assert asked[100:] == [0, *range(8, 24)]  # The first once more, for the numbers of units.
    for layer in LAYERS:
        assert torch.equal(resumed.shape[layer], whole.shape[layer])
        assert torch.equal(resumed.texture[layer], whole.texture[layer])
    asked[:] = [0] * 100
    unit_scores(classifier, broken, LAYERS[:1], partial=partial, identity="another")
    assert asked[100:] == [0, *range(24)]


def test_scores_are_joined_with_labels(classifier, conflict):
    scores = unit_scores(classifier, conflict, LAYERS)
    labels = {("layers.3", 1): ("disc", "object", 0.1), ("layers.3", 2): ("red", "colour", 0.2)}
    labels |= {("layers.3", 4): ("blue", "colour", 0.3), ("layers.3", 5): ("lines", "texture", 0.03)}
    outcome = scores_study(classifier, conflict, scores, "mean", labels)
    found = {(r.facets["measure"], r.facets.get("category")): r for r in outcome.results if "category" in r.facets}
    values = scores.shape["layers.3"].double()
    assert {category for _, category in found} == {"all", "object", "colour"}
    assert found["shape_score", "colour"].value == float(values[[2, 4]].mean())
    assert found["shape_score", "all"].value == pytest.approx(float(values[[1, 2, 4]].mean()))
    assert found["shape_score", "all"].count == 3
    row = next(row for row in outcome.tables["units"] if row["layer"] == "layers.3" and row["unit"] == 2)
    assert (row["concept"], row["shape_score"]) == ("red", int(values[2]))
    assert set(outcome.pictures) == {"scores", *(f"exciting-{layer}" for layer in LAYERS)}
    related = {r.facets["variant"]: r for r in outcome.results if r.metric.startswith("score_correlation_relu")}
    rows = [row for row in outcome.tables["units"] if row["layer"] == "relu"]
    for variant, result in related.items():
        one, other = ([row.get(f"{name}_score", row.get(name)) for row in rows] for name in variant.split(", "))
        assert result.value == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-6, nan_ok=True)
    assert related.keys() == {"shape, texture", "shape, map_tv", "texture, map_tv"}
    with torch.no_grad():
        maps = outputs(classifier, IMAGES, ["relu"])["relu"]
    by_hand = (maps.diff(dim=2).abs().sum((2, 3)) + maps.diff(dim=3).abs().sum((2, 3))).mean(0)
    assert [row["map_tv"] for row in rows] == pytest.approx(by_hand.tolist(), rel=1e-5)


def test_without_a_decision_all_scores_are_zero(classifier, conflict):
    answers = decide(classifier(IMAGES)).detach().numpy()
    none = Conflict(conflict.images, (answers + 1) % 3, (answers + 2) % 3, CATEGORIES, {})
    scores = unit_scores(classifier, none, LAYERS)
    assert [len(scores.shape[layer]) for layer in LAYERS] == [16, 32, 128]
    assert not any(score.any() for kind in (scores.shape, scores.texture) for score in kind.values())
    pictures = scores_study(classifier, none, scores, "mean").pictures
    assert pictures.keys() == {"scores", *(f"exciting-{layer}" for layer in LAYERS)}
    assert pictures["exciting-relu"].shape == (6 * 26 - 2, 8 * 26 - 2, 3)
