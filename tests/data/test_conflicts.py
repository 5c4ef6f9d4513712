"""`lit-robust data cue-conflict` on small images: which pairs, names, resumption, and the judge's gate."""

import json
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from lit_robust.cli import main
from lit_robust.core.errors import UserError
from lit_robust.data import EvaluationCrop
from lit_robust.data.packing.conflicts import ConflictSet, CuePair, category_images, conflict_pairs, make_conflicts
from lit_robust.data.packing.recognise import cues
from lit_robust.models import Network, build_classifier
from lit_robust.models.weights import read_state_dict

CATEGORIES = ("bear", "cat", "clock")


def write_sources(folder, counts, seed=0):
    random = np.random.default_rng(seed)
    for category, count in zip(CATEGORIES, counts, strict=True):
        (folder / category).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / category / f"{number}.png")


@pytest.fixture
def sources(tmp_path):
    write_sources(tmp_path / "contents", (2, 1, 3))
    write_sources(tmp_path / "textures", (1, 2, 2), seed=1)
    return tmp_path


@dataclass(frozen=True)
class HalfAndHalf:
    """The content's left half, the texture's right one."""

    calls: list

    @property
    def described(self):
        return {"method": "half"}

    def transfer(self, contents, textures, keys):
        self.calls.append(list(keys))
        return torch.cat([contents[..., :8], textures[..., 8:]], 3)


def conflict_set(sources, **settings):
    return ConflictSet(
        contents=sources / "contents",
        textures=sources / "textures",
        folder=sources / "own",
        transfer=HalfAndHalf([]),
        crop=EvaluationCrop(16, 16),
        **settings,
    )


def test_every_ordered_pair_has_as_many_images():
    pairs = conflict_pairs({"bear": 2, "cat": 1, "clock": 3}, {"bear": 2, "cat": 2, "clock": 3}, 2, seed=0)
    assert set(Counter((pair.shape, pair.texture) for pair in pairs).values()) == {2}
    assert len(set(pairs)) == len(pairs) == 18
    assert pairs == conflict_pairs({"bear": 2, "cat": 1, "clock": 3}, {"bear": 2, "cat": 2, "clock": 3}, 2, seed=0)
    assert pairs != conflict_pairs({"bear": 2, "cat": 1, "clock": 3}, {"bear": 2, "cat": 2, "clock": 3}, 2, seed=1)


def test_too_few_sources_are_refused():
    with pytest.raises(UserError, match="1 contents of cat and 2 textures of bear make 2 images, not 3"):
        conflict_pairs({"cat": 1}, {"bear": 2}, 3, seed=0)


def test_names_are_the_published_ones_and_pixels_those_of_the_sources(sources):
    one = conflict_set(sources)
    assert make_conflicts(one, 0) == 9
    files = sorted(file.relative_to(one.folder).as_posix() for file in one.folder.rglob("*.png"))
    assert files == sorted(f"{pair.name}.png" for pair in one.pairs)
    for pair in one.pairs:
        assert cues(pair.name) == (pair.shape, pair.texture)
        assert pair.name.startswith(f"{pair.shape}/{pair.shape}{pair.content + 1}-{pair.texture}{pair.pattern + 1}")
        made = torch.from_numpy(np.array(Image.open(one.path(pair)))).permute(2, 0, 1)
        assert torch.equal(made[..., :8], one.content(pair.shape, pair.content)[..., :8])
        assert torch.equal(made[..., 8:], one.texture(pair.texture, pair.pattern)[..., 8:])


def test_a_second_call_makes_what_is_missing_in_the_same_batches(sources):
    one = conflict_set(sources, batch=4)
    make_conflicts(one, 0)
    before = {pair: one.path(pair).read_bytes() for pair in one.pairs}
    one.path(one.pairs[5]).unlink()
    (one.folder / one.pairs[5].shape / f".{one.path(one.pairs[5]).name}.k1ll3d").write_text("half of it")
    again = conflict_set(sources, batch=4)
    assert make_conflicts(again, 0) == 4
    assert again.transfer.calls == [[pair.name for pair in one.pairs[4:8]]]
    assert {pair: again.path(pair).read_bytes() for pair in again.pairs} == before
    assert not list(one.folder.rglob(".*k1ll3d"))
    assert make_conflicts(again, 0) == 0


def test_other_sources_or_settings_in_the_same_folder_are_refused(sources):
    make_conflicts(conflict_set(sources), 0)
    with pytest.raises(UserError, match="is of other images or settings"):
        make_conflicts(conflict_set(sources, seed=1), 0)
    Image.new("RGB", (20, 20)).save(sources / "contents" / "cat" / "0.png")
    with pytest.raises(UserError, match="is of other images or settings"):
        make_conflicts(conflict_set(sources), 0)


def test_a_folder_with_other_files_is_refused(sources):
    (sources / "own").mkdir()
    (sources / "own" / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="holds files that this command did not write"):
        make_conflicts(conflict_set(sources), 0)


def test_tiles_stand_side_by_side(sources):
    tiled = conflict_set(sources, tiles=2).texture("cat", 0)
    assert tiled.shape == (3, 16, 16)
    assert torch.equal(tiled[:, :8, :8], tiled[:, 8:, 8:])
    with pytest.raises(UserError, match="give a number of pixels that 3 tiles divide"):
        conflict_set(sources, tiles=3)


@pytest.mark.parametrize(("name", "sentence"), [("Cat", "has other letters than a to z"), ("c4t", "a to z")])
def test_categories_that_no_name_can_hold_are_refused(sources, name, sentence):
    (sources / "contents" / "cat").rename(sources / "contents" / name)
    with pytest.raises(UserError, match=sentence):
        category_images(sources / "contents")


def test_empty_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        category_images(tmp_path / "none")
    with pytest.raises(UserError, match="has no folder with images"):
        category_images(tmp_path)


@pytest.fixture
def network(tmp_path):
    """A tiny network of three classes, one a category."""
    torch.manual_seed(0)
    classifier = build_classifier(Network("lit_robust/resnet_tiny", 3))
    torch.save(classifier.network.state_dict(), tmp_path / "net.pt")
    assert read_state_dict(tmp_path / "net.pt")
    (tmp_path / "categories.json").write_text(json.dumps({name: [n] for n, name in enumerate(CATEGORIES)}))
    return {"name": "lit_robust/resnet_tiny", "num_classes": 3, "weights": str(tmp_path / "net.pt")}


def test_the_whole_way_with_a_judge(sources, network, capsys):
    words = ["data", "cue-conflict", str(sources / "own"), "--each", "1", "--resize", "16", "--crop", "16"]
    words += ["--contents", str(sources / "contents"), "--textures", str(sources / "textures")]
    words += ["--network", json.dumps(network), "--judge", json.dumps(network)]
    words += ["--gatys", json.dumps({"style_layers": ["layers.0"], "content_layer": "layers.1", "steps": 2})]
    words += ["--categories", str(sources / "categories.json"), "--least", "1"]
    assert main(words) == 0
    said = json.loads((sources / "own" / "gate.json").read_text())
    # A network that was never trained says the same of most images.
    judge = build_classifier(Network(**network)).eval()
    one = conflict_set(sources)
    right = 0
    for pair in {(pair.shape, pair.content) for pair in one.pairs}:
        logits = judge(one.content(*pair)[None] / 255)
        right += CATEGORIES[int(logits.argmax())] == pair[0]
    assert said["contents"] == {"count": len({(p.shape, p.content) for p in one.pairs}), "recognised": right}
    assert said["weak"] is True
    assert sum(said["decisions"].values()) == 9
    assert said["decisions"]["right without conflict"] + said["decisions"]["wrong without conflict"] == 3
    out = capsys.readouterr().out
    assert "the set is weak" in out
    assert "Made 9 of 9 images" in out
    record = json.loads((sources / "own" / "made-by.json").read_text())
    assert (record["method"], record["network"], record["steps"]) == ("gatys", "lit_robust/resnet_tiny", 2)
    shards = ["data", "shard", str(sources / "own"), str(sources / "cue-conflict"), "--split", "test"]
    assert main([*shards, "--layout", "cue-conflict", "--categories", str(sources / "categories.json")]) == 0


def test_categories_that_the_judge_lacks_are_refused(sources, network, capsys):
    words = ["data", "cue-conflict", str(sources / "own"), "--each", "1", "--resize", "16", "--crop", "16"]
    words += ["--contents", str(sources / "contents"), "--textures", str(sources / "textures")]
    words += ["--network", json.dumps(network), "--judge", json.dumps(network)]
    words += ["--gatys", json.dumps({"style_layers": ["layers.0"], "content_layer": "layers.1", "steps": 1})]
    (sources / "contents" / "clock").rename(sources / "contents" / "zebra")
    assert main([*words, "--categories", str(sources / "categories.json")]) == 2
    assert "The judge's categories lack zebra" in capsys.readouterr().err


def test_a_pair_is_named_from_one():
    assert CuePair("cat", "bear", 0, 4).name == "cat/cat1-bear5"
