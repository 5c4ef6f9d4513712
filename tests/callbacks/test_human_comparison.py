"""A network next to people from stimuli and CSV files to results, against a loop over the same answers."""

import json

import pytest
import torch
from pytorch_lightning import Trainer

from lit_robust.callbacks import HumanComparison, ResultsFile, ShapeBiasEvaluation
from lit_robust.core.errors import UserError
from lit_robust.core.results import RunResults
from lit_robust.data import EvaluationCrop, HumanStimuliDataModule
from lit_robust.data.packing.derivation import encode
from lit_robust.models import Network
from lit_robust.modules import Optimisation, StandardModule
from lit_robust.shards import ShardWriter

CATEGORIES = {"cat": [0, 3], "dog": [1], "knife": [2, 4, 5]}
CONDITIONS = ["c100", "c30", "c01"]  # Only the second enters a mean.
HEADER = "subj,Session,trial,rt,object_response,category,condition,imagename\n"
COUNT = 60


def trial(n):
    return list(CATEGORIES)[n % 3], CONDITIONS[n % 4 % 3]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Stimuli, categories, and what two people decided: the second one did not see every image."""
    root = tmp_path_factory.mktemp("human")
    random = torch.Generator().manual_seed(0)
    rows = {"subject-01": "", "subject-02": "", "resnet50": ""}
    with ShardWriter(root / "contrast", "test") as writer:
        for n in range(COUNT):
            category, condition = trial(n)
            image = torch.randint(256, (3, 32, 32), generator=random, dtype=torch.uint8)
            name = f"{n:04d}_con_dnn_{condition}_{category}_10_n00000001_{n}"
            writer.write(f"session-1/{name}", {"png": encode(image, "png"), "cls": b"0"})
            for person in rows:
                if person != "subject-02" or n % 5:
                    said = list(CATEGORIES)[(n + int(torch.randint(4, (1,), generator=random))) % 3]
                    own = name.replace("dnn", "s01")
                    rows[person] += f"{person},1,{n},0.5,{said},{category},{condition},{own}.png\n"
    for person, text in rows.items():
        (root / f"contrast_{person}.csv").write_text(HEADER + text)
    (root / "categories.json").write_text(json.dumps(CATEGORIES))
    return root


def data(root, **settings):
    crop = EvaluationCrop(None, None)
    given = {"eval_batch_size": 7, "num_workers": 0, **settings}
    return HumanStimuliDataModule(
        root, name="contrast", categories=str(root / "categories.json"), evaluation=crop, **given
    )


def module():
    torch.manual_seed(5)
    return StandardModule(Network("lit_robust/resnet_tiny", num_classes=6), Optimisation())


def results(root, folder, **settings):
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[HumanComparison(root, "contrast"), ResultsFile()],
    )
    trainer.test(module(), data(root, **settings), verbose=False)
    return {one.metric: one for one in RunResults.load(folder).results}


def answers(root):
    """Return each image's number to whether the network is right, without any callback."""
    network, found = module().eval(), {}
    stimuli = data(root)
    stimuli.setup("test")
    key = stimuli.sample_key("contrast")
    for batch in stimuli.test_dataloader()["contrast"]:
        batch = batch.select(batch.valid).as_float()
        with torch.no_grad():
            shares = network(batch.image).softmax(1)
        for row, index in zip(shares, batch.index.tolist(), strict=True):
            n = int(key(index).rsplit("_", 1)[1])
            means = {name: float(row[classes].mean()) for name, classes in CATEGORIES.items()}
            found[n] = max(means, key=means.get) == trial(n)[0]
    return found


def people(root):
    found = {}
    for name in ("subject-01", "subject-02"):
        lines = (root / f"contrast_{name}.csv").read_text().splitlines()[1:]
        cells = [line.split(",") for line in lines]
        found[name] = {int(row[2]): row[4] == row[5] for row in cells}
    return found


def near(one, other, condition):
    """Return squared difference of accuracies, agreement and kappa on the images of a condition that both saw."""
    both = [(one[n], other[n]) for n in one if n in other and trial(n)[1] == condition]
    p, q = (sum(pair[side] for pair in both) / len(both) for side in (0, 1))
    agreed = sum(a == b for a, b in both) / len(both)
    chance = p * q + (1 - p) * (1 - q)
    return (p - q) ** 2, agreed, (agreed - chance) / (1 - chance)


def test_all_measures_are_those_of_a_loop(root, tmp_path):
    found, own, others = results(root, tmp_path), answers(root), people(root)
    for condition, ending in (("c30", ""), *((name, f"_{name}") for name in CONDITIONS)):
        expected = [near(own, other, condition) for other in others.values()]
        names = ("accuracy_difference", "observed_consistency", "error_consistency")
        for place, name in enumerate(names):
            result = found[name + ending]
            assert result.value == pytest.approx(sum(row[place] for row in expected) / 2, abs=1e-12)
            assert result.interval[0] <= result.value <= result.interval[1]
        share = found[f"accuracy_among_categories{ending}"]
        shown = [n for n in own if trial(n)[1] == condition]
        assert share.value == pytest.approx(sum(own[n] for n in shown) / len(shown))
        assert share.count == len(shown)
        told = share.protocol["humans"]
        between = near(others["subject-01"], others["subject-02"], condition)
        assert [told[name] for name in names] == pytest.approx(between)
    assert found["error_consistency"].protocol["conditions"] == ["c30"]
    assert found["error_consistency"].protocol["number_of_people"] == 2
    assert found["error_consistency_c01"].facets == {"measure": "error_consistency", "condition": "c01"}
    again = results(root, tmp_path / "again", eval_batch_size=64)
    assert {name: (one.value, one.interval) for name, one in again.items()} == {
        name: (one.value, one.interval) for name, one in found.items()
    }


def test_one_cue_has_no_bias(root, tmp_path):
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, callbacks=[ShapeBiasEvaluation("contrast")]
    )
    with pytest.raises(UserError, match="contrast shows one cue, not two in conflict"):
        trainer.test(module(), data(root), verbose=False)


def test_networks_alone_are_not_people(root, tmp_path):
    file = root / "contrast_resnet50.csv"
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, callbacks=[HumanComparison(file, "contrast")]
    )
    with pytest.raises(UserError, match="has no person's decisions on contrast, only those of resnet50"):
        trainer.test(module(), data(root), verbose=False)
