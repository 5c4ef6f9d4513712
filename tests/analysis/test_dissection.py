"""Dissections against loops over pixels in float64, and networks whose units are concepts."""

import csv
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lit_robust.analysis.concepts import Concepts, open_concepts
from lit_robust.analysis.dissection import Labels, Team, dissect
from lit_robust.analysis.labelled_units import labelled_study, twin_overlap, twin_results, unit_pictures
from lit_robust.analysis.upsampling import bilinear
from lit_robust.core.errors import DataError, UserError
from lit_robust.data.packing.concepts import CATEGORIES, NUMBERS, write_concepts
from lit_robust.models import Classifier, Network, build_classifier
from lit_robust.models.taps import outputs

LAYERS = ["layers.0", "layers.2"]
AXES = dict.fromkeys(LAYERS, bilinear)
SHARE = 0.03


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("concepts") / "set"
    write_concepts(folder, seed=0, count=20, size=24)
    return folder


@pytest.fixture(scope="module")
def concepts(folder):
    return open_concepts(folder)


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    model = build_classifier(Network("lit_robust/resnet_tiny", 5)).eval()
    with torch.no_grad():
        model.network.layers[2][0].bn2.weight[3] = 0
        model.network.layers[2][0].bn2.bias[3] = -100  # A unit that is dead.
    return model


@pytest.fixture(scope="module")
def dissection(classifier, concepts):
    return dissect(classifier, concepts, LAYERS, SHARE, AXES, batch_size=8)


@torch.no_grad()
def by_definition(classifier, concepts, layer, denominator):
    """Return the IoU of each unit and label, and thresholds, by loops over images, units and labels."""
    images = torch.stack([concepts.pixels(n) for n in range(len(concepts))]).float() / 255
    maps = outputs(classifier, images, [layer])[layer]
    flat = maps.transpose(0, 1).flatten(1).double().numpy()
    limits = np.sort(flat, 1)[:, ::-1][:, int(SHARE * flat.shape[1])]
    units, labels = len(flat), len(concepts.names)
    both, own, area = np.zeros((units, labels)), np.zeros((units, labels)), np.zeros(labels)
    for number in range(len(concepts)):
        label_maps, whole = concepts.labels(number)
        size = label_maps.shape[1:]
        marks = {int(label): (label_maps == label).sum(0) for label in np.unique(label_maps) if label}
        marks |= {label: np.ones(size) for label in whole}
        has = {int(concepts.category[label]) for label in marks}
        for label, mark in marks.items():
            area[label] += mark.sum()
        up = nn.functional.interpolate(maps[number, None], size, mode="bilinear")[0].double().numpy()
        for unit in range(units):
            mask = up[unit] > limits[unit]
            for label, mark in marks.items():
                both[unit, label] += (mask * mark).sum()
            touched = {int(concepts.category[label]) for label, mark in marks.items() if (mask * mark).any()}
            touched |= {int(concepts.category[label]) for label in whole}
            for label in range(1, labels):
                category = int(concepts.category[label])
                counts = {"all": True, "category-images": category in has, "touched": category in touched}
                own[unit, label] += mask.sum() * counts[denominator]
    with np.errstate(invalid="ignore"):
        return both / (own + area - both), limits


@pytest.mark.parametrize("denominator", ["category-images", "touched", "all"])
def test_iou_is_the_definitions(classifier, concepts, dissection, denominator):
    found = dissection.iou(denominator)
    for layer in LAYERS:
        expected, limits = by_definition(classifier, concepts, layer, denominator)
        units = dissection.layers[layer]
        np.testing.assert_array_equal(dissection.thresholds[units].numpy(), limits.astype(np.float32))
        np.testing.assert_allclose(found[units, 1:].numpy(), expected[:, 1:], rtol=1e-12)
    assert found.nan_to_num(0).max() > 0.1


def test_lites_iou_is_never_lower(dissection):
    original, lite, everywhere = (dissection.iou(one).nan_to_num(0) for one in ("category-images", "touched", "all"))
    assert (lite >= original).all()
    assert (original >= everywhere).all()
    assert (lite > original).any()
    assert (original > everywhere).any()


def test_batches_order_and_ranks_do_not_matter(classifier, concepts, dissection, monkeypatch):
    order = np.random.default_rng(0).permutation(len(concepts))
    mixed = Concepts(
        concepts.folder, concepts.names, concepts.categories, concepts.category, [concepts.images[n] for n in order]
    )
    for room in (0, 5 * 16 * 24 * 24, 1 << 30):  # Nothing is kept, some first batches, all.
        found = dissect(classifier, mixed, LAYERS, SHARE, AXES, batch_size=3, room=room)
        assert torch.equal(found.thresholds, dissection.thresholds)
        for name, value in vars(dissection.tally).items():
            assert torch.equal(getattr(found.tally, name), value), name


def two_ranks(rank, folder, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{results}/ranks", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = build_classifier(Network("lit_robust/resnet_tiny", 5)).eval()
    found = dissect(model, open_concepts(folder), LAYERS, SHARE, AXES, batch_size=4, team=Team())
    one = dissect(model, open_concepts(folder, limit=1), LAYERS, SHARE, AXES, batch_size=4, team=Team())
    if rank == 1:  # Which has no image of the second set.
        torch.save([found.thresholds, vars(found.tally), one.thresholds, vars(one.tally)], results / "found.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_are_as_one(concepts, folder, tmp_path):
    children = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            try:
                two_ranks(rank, folder, tmp_path)
            finally:
                os._exit(0)
        children.append(pid)
    for child in children:
        os.waitpid(child, 0)
    thresholds, tally, of_one, tally_of_one = torch.load(tmp_path / "found.pt")
    torch.manual_seed(0)
    model = build_classifier(Network("lit_robust/resnet_tiny", 5)).eval()
    whole = dissect(model, concepts, LAYERS, SHARE, AXES, batch_size=4)
    torch.testing.assert_close(thresholds, whole.thresholds)
    assert torch.equal(tally["label"], whole.tally.label)
    assert torch.equal(tally["both"], whole.tally.both)
    whole = dissect(model, open_concepts(folder, limit=1), LAYERS, SHARE, AXES, batch_size=4)
    torch.testing.assert_close(of_one, whole.thresholds)
    assert torch.equal(tally_of_one["both"], whole.tally.both)


def test_combinations_of_labels():
    maps = np.array([[[1, 2, 0]], [[1, 0, 0]], [[7, 7, 0]]])
    # A label that two maps give counts twice.
    found = Labels.of(SimpleNamespace(labels=lambda number: (maps[:number], (5,))), 3)
    assert found.labels.tolist() == [1, 2, 7]
    assert found.marks[found.joint].tolist() == [
        [2, 0, 1],
        [0, 1, 1],
        [0, 0, 0],
    ]
    assert (found.size, found.whole.tolist()) == ((1, 3), [5])
    none = Labels.of(SimpleNamespace(labels=lambda number: (maps[:number], ())), 0)
    assert (none.joint.tolist(), none.marks.shape, len(none.labels)) == ([0, 0, 0], (1, 0), 0)


class Reads(nn.Module):
    """A network whose two units are the red channel, and the negative of it."""

    def __init__(self):
        super().__init__()
        self.units = nn.Identity()
        self.head = nn.Linear(2, 5)

    def forward(self, images):
        maps = self.units(torch.stack([images[:, 0], -images[:, 0]], 1))
        return self.head(maps.mean((2, 3)))


@pytest.fixture
def plain(tmp_path):
    """Black images with a red square of 3 by 4 pixels in 16 by 16, marked, and another label next to it."""
    rows = [(1, "red", "colour"), (300, "below", "part"), (2, "absent", "part")]
    with (tmp_path / "names.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("number", "name", "category"), *rows])
    for name in ("images", "maps"):
        (tmp_path / name).mkdir()
    for number in range(4):
        pixels, labels = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)
        pixels[2 : 2 + 3, number : number + 4, 0] = 200
        labels[2 : 2 + 3, number : number + 4, 0] = 1
        labels[8:10, :8] = 300 % 256, 300 // 256, 0
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(labels).save(tmp_path / "maps" / f"{number}.png")
    return tmp_path


def test_a_unit_that_is_a_concept(plain):
    concepts = open_concepts(plain)
    assert concepts.categories == ["colour", "part"]
    classifier = Classifier(Reads().eval(), (0.0,) * 3, (1.0,) * 3)
    found = dissect(classifier, concepts, ["units"], 12 / 256, {"units": bilinear})
    # As many values exceed the threshold as there are red pixels, so it is the largest of the others.
    assert found.thresholds.tolist() == [0.0, 0.0]
    assert found.tied.tolist() == [True, True]
    found = dissect(classifier, concepts, ["units"], 11 / 256, {"units": bilinear})
    assert found.tally.both[0].tolist() == [0] * 301  # The red pixels are all alike: none exceeds the others.
    for number in range(4):  # One red pixel is the lightest of all.
        file = plain / "images" / f"{number}.png"
        pixels = np.asarray(Image.open(file)).copy()
        pixels[2, number, 0] = 180
        Image.fromarray(pixels).save(file)
    found = dissect(classifier, concepts, ["units"], 11 / 256, {"units": bilinear})
    iou = found.iou("category-images")
    assert float(iou[0, 1]) == 11 / 12
    assert float(iou[0, 300]) == 0
    assert found.tally.label[[1, 300]].tolist() == [48, 64]
    assert found.ceiling("category-images")[0, [1, 300]].tolist() == [44 / 48, 44 / 64]
    strict = labelled_study(found, concepts, "category-images", 0.7, {})
    assert any("1 of 2 concepts are so much larger or smaller" in warning for warning in strict.results[0].warnings)
    assert [row["ceiling"] for row in strict.tables["concepts"]] == [round(44 / 48, 6), 44 / 64]
    outcome = labelled_study(found, concepts, "category-images", 0.04, {})
    assert not any("larger or smaller" in warning for warning in outcome.results[0].warnings)
    first, second = outcome.tables["units"]
    assert (first["concept"], first["category"], first["iou"]) == ("red", "colour", round(11 / 12, 6))
    assert (second["concept"], second["tied"]) == ("", 1)
    assert [row["concept"] for row in outcome.tables["concepts"]] == ["red", "below"]
    detectors = {r.facets["category"]: r.value for r in outcome.results if r.metric.startswith("detectors_units")}
    assert detectors == {"colour": 1, "part": 0}
    assert any("1 units are active in fewer places" in warning for warning in outcome.results[0].warnings)


def test_sums_and_pictures(classifier, concepts, dissection):
    outcome = labelled_study(dissection, concepts, "category-images", 0.04, {"set": "toy"})
    iou = dissection.iou("category-images").nan_to_num(0)
    iou[dissection.tied] = 0
    found = {r.metric: r for r in outcome.results}
    alive = ~dissection.tied[dissection.layers["layers.2"]]
    diversity = (iou[dissection.layers["layers.2"]] >= 0.01).sum(1)[alive].double()
    assert found["diversity_layers.2"].value == pytest.approx(float(diversity.mean()))
    assert found["tied_units_layers.2"].value >= 1
    assert sum(found[f"detectors_all_{c}"].value for c in CATEGORIES) == int((iou.amax(1) > 0.04).sum())
    pictures, captions = unit_pictures(classifier, concepts, dissection, "category-images", AXES, units=2, images=3)
    assert pictures["units-layers.0"].shape == (2 * 26 - 2, 3 * 26 - 2, 3)
    assert captions.keys() == pictures.keys() == {"units-layers.0", "units-layers.2"}


def test_the_drawn_set(folder, concepts):
    assert concepts.categories == list(CATEGORIES)
    assert len(concepts) == 20
    pairs = set()
    for number in range(20):
        maps, whole = concepts.labels(number)
        named = {concepts.names[label] for label in np.unique(maps) if label} | {concepts.names[w] for w in whole}
        assert bool(whole) == (number % 9 == 8)
        assert len(maps) == (1 if whole else 3)
        pairs.add(frozenset(named & {*CATEGORIES["object"], *CATEGORIES["texture"]}))
        if not whole:
            objects, texture, colour = maps
            assert (colour > 0).all()
            assert ((objects > 0) == (texture > 0)).all()
            assert 0.05 < (objects > 0).mean() < 0.5
    assert len(pairs) > 15
    assert concepts.names[NUMBERS["colour/light red"]] == "light red"
    with pytest.raises(UserError, match="holds files already"):
        write_concepts(folder, 0)


def test_twins(folder, concepts, classifier):
    found = twin_overlap(classifier, concepts, folder / "twins", LAYERS, 0.01)
    same = twin_overlap(classifier, concepts, folder / "images", LAYERS, 0.01)
    for layer in LAYERS:
        alive = ~same[layer].isnan()
        assert torch.equal(same[layer][alive], torch.ones_like(same[layer][alive]))
        assert 0 < found[layer][alive].mean() < 0.95
    results = twin_results(found, 0.01, {})
    assert [r.facets["layer"] for r in results] == LAYERS
    with pytest.raises(DataError, match="has no twin"):
        twin_overlap(classifier, concepts, folder, LAYERS, 0.01)


def test_sets_that_are_not_whole(folder, plain, tmp_path):
    with pytest.raises(UserError, match=r"has neither index.csv, as Broden has, nor names.csv"):
        open_concepts(tmp_path / "maps")
    (plain / "names.csv").write_text("number,name\n1,red\n")
    with pytest.raises(DataError, match="has the label 300, which has no name"):
        open_concepts(plain).labels(0)
    index = folder / "index.csv"
    text = index.read_text()
    try:
        index.write_text(text.replace("000000.png,", "../../000000.png,"))
        with pytest.raises(DataError, match="lies outside of it"):
            open_concepts(folder)
        index.write_text(text.replace(",24,24", ",tall,24"))
        with pytest.raises(DataError, match="has 'tall' as"):
            open_concepts(folder)
    finally:
        index.write_text(text)
    assert len(open_concepts(folder, limit=5)) == 5
