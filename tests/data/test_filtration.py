"""Filtration by its rules' own words, and its crops and files next to torchvision's and brute force."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import nn
from torchvision.transforms import v2
from two_processes import in_two_ranks

from lit_robust.core.errors import UserError
from lit_robust.data.filtration import (
    CropAnswers,
    FilterCrops,
    FilterNetwork,
    anomalous_images,
    ask,
    hard_images,
    stage_counts,
)
from lit_robust.data.loading.splits import Reading, open_index, open_table, table_split
from lit_robust.data.loading.transforms import CropError
from lit_robust.data.packing.selection import two_parts, write_selection
from lit_robust.models import Classifier
from lit_robust.shards.write import ShardWriter


def drawn(count, classes, seed=0, networks=2):
    """Labels and answers of random networks on a pool."""
    source = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=source)
    answers = [
        CropAnswers(
            right=torch.rand(count, generator=source) < 0.3,
            confidence=torch.rand(count, generator=source) * 0.3,
            predicted=torch.randint(classes, (count,), generator=source),
            highest=torch.rand(count, generator=source),
        )
        for _ in range(networks)
    ]
    return labels.numpy(), answers


@pytest.mark.parametrize("seed", range(3))
def test_hard_images_by_a_loop(seed):
    labels, answers = drawn(400, 4, seed)
    stages = hard_images(labels, answers, most_confidence=0.2, per_confusion=3)
    wrong = [n for n in range(400) if not any(bool(each.right[n]) for each in answers)]
    confidence = [max(float(each.confidence[n]) for each in answers) for n in range(400)]
    unsure = [n for n in wrong if confidence[n] <= 0.2]
    pairs = {}
    for n in sorted(unsure, key=lambda n: confidence[n]):
        pairs.setdefault((labels[n], int(answers[0].predicted[n])), []).append(n)
    chosen = sorted((n for pair in pairs.values() for n in pair[:3]), key=lambda n: confidence[n])
    assert [stage.left.tolist() for stage in stages] == [list(range(400)), wrong, unsure, chosen]
    assert max(map(len, pairs.values())) > 3  # The cap took some.


def test_fewer_networks_leave_more():
    labels, answers = drawn(500, 3)
    both, one = hard_images(labels, answers, 0.1, 10**6), hard_images(labels, answers[:1], 0.1, 10**6)
    for fewer, more in zip(both, one, strict=True):
        assert set(fewer.left) <= set(more.left)
    assert len(both[-1].left) < len(one[-1].left)


def test_anomalies_are_confident_of_no_known_class_and_in_order():
    _, answers = drawn(300, 5)
    keys = [f"n0{n % 7}440764/{n}" for n in range(300)]
    stages = anomalous_images(keys, answers, 0.6, leave_out=["n01440764", "n05440764"])
    least = torch.stack([each.highest for each in answers]).amin(0)
    outside = [n for n in range(300) if n % 7 not in (1, 5)]
    chosen = sorted((n for n in outside if float(least[n]) >= 0.6), key=lambda n: -float(least[n]))
    assert [stage.left.tolist() for stage in stages] == [list(range(300)), outside, chosen]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"most_confidence": 15}, "most_confidence is 15: give a fraction"),
        ({"per_confusion": 0}, "per_confusion is 0: give 1 or more"),
        ({"answers": []}, "No network filters"),
        ({"labels": np.array([0, -1])}, "1 images of the pool have no label"),
    ],
)
def test_wrong_numbers_are_refused(change, says):
    labels, answers = drawn(2, 2)
    with pytest.raises(UserError, match=says):
        hard_images(**{"labels": labels, "answers": answers, **change})


def test_the_crops_are_torchvisions():
    image = np.random.default_rng(0).integers(0, 256, (40, 61, 3), dtype=np.uint8)
    cuts = FilterCrops(resize=None, crop=24)
    found = cuts.separated(cuts(image)[None])
    expected = torch.stack(v2.TenCrop(24)(torch.from_numpy(image).permute(2, 0, 1)))
    assert torch.equal(found, expected)
    centre = FilterCrops(resize=None, crop=24, crops="centre")
    assert torch.equal(centre.separated(centre(image)[None])[0], expected[4])
    resized = FilterCrops(resize=32, crop=24)(image)
    assert resized.shape == (3, 240, 24)
    with pytest.raises(CropError, match="is 61 x 40 px, smaller than a crop of 48 px"):
        FilterCrops(resize=None, crop=48)(image)


class Corner(nn.Module):
    """Logits are an image's mean red, green and blue, so that the answer is its brightest colour."""

    def __init__(self, classes=3):
        super().__init__()
        self.weight = nn.Parameter(2 * torch.eye(classes, 3))

    def forward(self, images):
        return images.mean((2, 3)) @ self.weight.T


def network(classes=3):
    return Classifier(Corner(classes), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()


@pytest.fixture
def pool(tmp_path):
    """23 images of 20 px: a colour, and in each second one another colour in a corner."""
    from lit_robust.data.packing.derivation import encode

    source = torch.Generator().manual_seed(3)
    with ShardWriter(tmp_path / "pool", "val", shard_size=10, num_classes=3) as writer:
        for number in range(23):
            pixels = torch.zeros(3, 20, 20, dtype=torch.uint8)
            pixels[number % 3] = 200
            pixels += torch.randint(0, 50, pixels.shape, dtype=torch.uint8, generator=source)
            if number % 2:
                pixels[:, :8, :8] = 0
                pixels[(number + 1) % 3, :8, :8] = 255
            writer.write(f"image-{number}", {"png": encode(pixels, "png"), "cls": b"%d" % ((number + 1) % 3)})
    return open_table(tmp_path / "pool", "val", Reading())


def test_answers_by_brute_force_in_any_batches_and_after_a_kill(pool, tmp_path, monkeypatch):
    from lit_robust.shards import decode_rgb

    cuts, one = FilterCrops(resize=None, crop=8), FilterNetwork("corner", network())
    rows = []
    for number in range(len(pool)):
        image = decode_rgb(pool.table.readers[0].image_bytes(number), "image")
        crops = torch.stack(v2.TenCrop(8)(torch.from_numpy(image).permute(2, 0, 1))).double() / 255
        each = (crops.mean((2, 3)) * 2).softmax(1)
        label = int(pool.table.label[number])
        rows.append((bool((each.argmax(1) == label).any()), float(each[:, label].max()), int(each[4].argmax())))
    for batch_size in (1, 7, 64):
        found = ask(one, pool, cuts, batch_size=batch_size, num_workers=0)
        assert found.right.tolist() == [row[0] for row in rows]
        assert found.confidence.tolist() == pytest.approx([row[1] for row in rows], abs=1e-6)
        assert found.predicted.tolist() == [row[2] for row in rows]
    assert 0 < sum(row[0] for row in rows) < len(rows)

    monkeypatch.setattr("lit_robust.data.filtration.KEPT_EVERY", 2)
    asked = []

    def counted(self, images, whole=FilterNetwork.probabilities):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(len(images))
        return whole(self, images)

    file = tmp_path / "answers.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(FilterNetwork, "probabilities", counted)
        with pytest.raises(KeyboardInterrupt):
            ask(one, pool, cuts, batch_size=4, num_workers=0, file=file)
    asked.clear()
    with monkeypatch.context() as patch:
        patch.setattr(FilterNetwork, "probabilities", lambda self, x, f=counted: asked.clear() or f(self, x))
        again = ask(one, pool, cuts, batch_size=7, num_workers=0, file=file)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again, found, strict=True))
    with monkeypatch.context() as patch:  # All is kept: nothing is asked again.
        patch.setattr(FilterNetwork, "probabilities", None)
        kept = ask(one, pool, cuts, num_workers=0, file=file)
    assert torch.equal(kept.confidence, found.confidence)


def test_a_network_that_filtered_is_right_nowhere(pool, tmp_path):
    cuts, one = FilterCrops(resize=None, crop=8), FilterNetwork("corner", network())
    answers = ask(one, pool, cuts, num_workers=0)
    stages = hard_images(pool.table.label, [answers], most_confidence=1.0)
    write_selection(pool, stages[-1].left.tolist(), tmp_path / "hard", "test", {"kind": "test"}, 4)
    left = open_table(tmp_path / "hard", "test", Reading())
    assert 0 < len(left) < len(pool)
    assert not ask(one, left, cuts, num_workers=0).right.any()
    assert left.protocol["generated"] == {"kind": "test"}
    key, number = left.table.key(0), int(stages[-1].left[0])
    assert (key, left.table.readers[0].image_bytes(0)) == (
        pool.table.key(number),
        pool.table.readers[0].image_bytes(number),
    )
    counts = stage_counts(stages, pool.table.label, ["red", "green", "blue"])
    assert [count["left"] for count in counts] == [len(stage.left) for stage in stages]
    assert all(sum(count["classes"].values()) == count["left"] for count in counts)
    with pytest.raises(UserError, match="No image is left"):
        write_selection(pool, [], tmp_path / "none", "test", {}, 4)


def test_a_subset_is_masked_in_a_whole_network_and_is_all_of_a_small_one(pool):
    cuts = FilterCrops(resize=None, crop=8)
    masked, small = FilterNetwork("whole", network(5), (1, 2)), FilterNetwork("small", network(2), (1, 2))
    two = pool.table.select(np.flatnonzero(pool.table.label > 0))
    part = type(pool)(where="part", num_classes=3, class_names=(), protocol={}, table=two)
    images = torch.rand(6, 3, 8, 8)
    logits = 2 * images.mean((2, 3))
    torch.testing.assert_close(masked.probabilities(images), logits[:, 1:3].softmax(1))
    torch.testing.assert_close(small.probabilities(images), logits[:, :2].softmax(1))
    assert set(ask(masked, part, cuts, num_workers=0).predicted.tolist()) <= {1, 2}
    with pytest.raises(UserError, match="an image of class 0, which is not one of the 2 classes"):
        ask(masked, pool, cuts, num_workers=0)
    with pytest.raises(UserError, match="the pool's go up to 9: give a network that has them"):
        FilterNetwork("whole", network(3), (1, 9)).probabilities(images)
    with pytest.raises(UserError, match="an image of class 2, but a filter network has 2 classes"):
        ask(FilterNetwork("two", network(2)), pool, cuts, num_workers=0)


NETWORKS = "{a: {name: 'tests.data.test_filtration:three', num_classes: 3, mean: [0, 0, 0], std: [1, 1, 1]}}"


def three(num_classes, entry=None):
    return Corner(num_classes)


def test_from_pool_to_reviewed_set_by_commands(pool, tmp_path, capsys):
    from lit_robust.cli import main

    where, hard, kept = (str(tmp_path / name) for name in ("pool", "hard", "kept"))
    words = ["data", "filter", "hard", where, hard, "--networks", NETWORKS, "--resize", "null", "--crop", "8"]
    assert main([*words, "--most-confidence", "1", "--workers", "0"]) == 0
    out = capsys.readouterr().out
    about = json.loads(Path(hard, "filtration.json").read_text())
    assert f"{about['stages'][-1]['left']:>9} at most 15 of each confusion" in out
    assert main(words) == 2
    assert "has the split test already" in capsys.readouterr().err
    page = Path(hard, "review.html").read_text()
    keys = [image["key"] for image in about["images"]]
    assert page.count("<li>") == len(keys) > 2
    digest = table_split(open_index(Path(hard), "test", Reading()), "test").protocol["shards_sha256"]
    decisions = tmp_path / "decisions.json"
    decisions.write_text(json.dumps({"digest": digest, "decisions": {keys[0]: "keep", keys[1]: "drop"}}))
    assert main(["data", "filter", "apply", hard, str(decisions), kept]) == 0
    assert "Kept 1 of" in capsys.readouterr().out
    assert open_table(Path(kept), "test", Reading()).table.key(0) == keys[0]
    decisions.write_text(json.dumps({"digest": "other", "decisions": {}}))
    assert main(["data", "filter", "apply", hard, str(decisions), str(tmp_path / "other")]) == 2
    assert "is of another set" in capsys.readouterr().err

    odd = str(tmp_path / "odd")
    words = ["data", "filter", "anomalies", where, odd, "--networks", NETWORKS, "--resize", "null", "--crop", "8"]
    least = ask(FilterNetwork("a", network()), pool, FilterCrops(None, 8, "centre"), num_workers=0).highest.median()
    assert main([*words, "--least-confidence", f"{least:.6f}", "--workers", "0"]) == 0
    about = json.loads(Path(odd, "filtration.json").read_text())
    assert min(image["highest_confidence"][0] for image in about["images"]) >= round(float(least), 5)
    assert 0 < len(about["images"]) < 23


def test_two_ranks_write_the_bytes_of_one(pool, tmp_path):
    """23 images in batches of 4: the first rank has three, the second three, of which the last is short."""
    from lit_robust.cli import main

    where, common = str(tmp_path / "pool"), ["--networks", NETWORKS, "--resize", "null", "--crop", "8"]
    common += ["--most-confidence", "1", "--workers", "0", "--batch-size", "4"]
    for kind in ("hard", "transfer"):
        assert main(["data", "filter", kind, where, str(tmp_path / "1" / kind), *common]) == 0
        assert in_two_ranks(["data", "filter", kind, where, str(tmp_path / "2" / kind), *common]) == [0, 0]
    names = ["filtration.json", "review.html", "_info.json"]
    names += [file.name for file in (tmp_path / "1" / "hard").glob("*.tar")]
    assert len(names) > 3
    for name in names:  # The review sheet names its folder, in the command that follows.
        one, two = (
            (tmp_path / n / "hard" / name).read_bytes().replace(bytes(tmp_path / n / "hard"), b"") for n in "12"
        )
        assert one == two, name
    one, two = (json.loads((tmp_path / n / "transfer" / "results.json").read_text())["results"] for n in "12")
    assert one == two
    # More ranks than batches: the second one has nothing to ask.
    assert in_two_ranks(["data", "filter", "hard", where, str(tmp_path / "one"), *common[:-1], "64"]) == [0, 0]
    found, whole = (
        json.loads((tmp_path / name / "filtration.json").read_text())["images"] for name in ("one", "1/hard")
    )
    assert [image["key"] for image in found] == [image["key"] for image in whole]


def test_transfer_between_networks_by_command(pool, tmp_path, capsys):
    from lit_robust.cli import main
    from lit_robust.core.results import RunResults

    # The second network sees red and green exchanged, so that it errs elsewhere.
    two = (
        NETWORKS[:-1]
        + ", b-1: {name: 'tests.data.test_filtration:exchanged', num_classes: 3, mean: [0, 0, 0], std: [1, 1, 1]}}"
    )
    words = ["data", "filter", "transfer", str(tmp_path / "pool"), str(tmp_path / "out"), "--networks", two]
    assert main([*words, "--resize", "null", "--crop", "8", "--most-confidence", "1", "--workers", "0"]) == 0
    assert "a: " in capsys.readouterr().out
    found = {one.metric: one for one in RunResults.load(tmp_path / "out").results}
    assert found["top1_a_fools_a"].value == found["top1_b-1_fools_b-1"].value == 0  # By construction.
    labels = pool.table.label
    answers = [ask(FilterNetwork("", one), pool, FilterCrops(None, 8), num_workers=0) for one in (network(), other())]
    left = hard_images(labels, answers[:1], 1.0, 15)[-1].left
    right = (answers[1].predicted.numpy() == labels)[left].mean()
    one = found["top1_a_fools_b-1"]
    assert (one.value, one.count) == (pytest.approx(right), len(left))
    assert (one.facets["filter"], one.facets["tested"]) == ("a", "b-1")
    wrong = [answers[1].predicted.numpy()[(labels == c) & (answers[1].predicted.numpy() != labels)] for c in range(3)]
    spread = [entropy(np.bincount(errors, minlength=3), base=2) for errors in wrong if len(errors)]
    assert found["error_entropy_b-1"].value == pytest.approx(np.mean(spread))
    assert found["error_entropy_b-1"].count == len(spread)
    assert one.interval[0] <= one.value <= one.interval[1]


def exchanged(num_classes, entry=None):
    corner = Corner(num_classes)
    with torch.no_grad():
        corner.weight.copy_(corner.weight[[1, 0, 2]])
    return corner


def other():
    return Classifier(exchanged(3), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()


def test_two_parts_hold_every_class_and_each_image_once(pool, tmp_path, capsys):
    from lit_robust.cli import main

    labels = np.array([5] * 10 + [2] * 4 + [0] * 2)
    first, second = two_parts(labels, 0.8, 3)
    assert sorted([*first, *second]) == list(range(16))
    assert [int((labels[first] == one).sum()) for one in (5, 2, 0)] == [8, 3, 1]
    assert two_parts(labels, 0.8, 3)[0].tolist() == first.tolist() != two_parts(labels, 0.8, 4)[0].tolist()
    # Another class more moves none of the others.
    assert two_parts(np.append(labels, [7, 7]), 0.8, 3)[0][:-1].tolist() == first.tolist()
    with pytest.raises(UserError, match="Class 1 has one image"):
        two_parts(np.array([0, 0, 1]), 0.5, 0)
    with pytest.raises(UserError, match="fraction is 1"):
        two_parts(labels, 1, 0)
    words = ["data", "filter", "split", str(tmp_path / "pool"), str(tmp_path / "parts"), "--split", "val"]
    assert main([*words, "--fraction", "3/4"]) == 0
    parts = [open_table(tmp_path / "parts", name, Reading()) for name in ("train", "val")]
    keys = [part.table.key(number) for part in parts for number in range(len(part))]
    assert sorted(keys) == sorted(pool.table.key(number) for number in range(23))
    assert "(val)" in capsys.readouterr().out
