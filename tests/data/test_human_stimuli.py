"""Stimuli of model-vs-human: packed from folders as they are published, and read by condition and category."""

import pytest
from tiny_sets import SMALL, loaded, png, ready, write

from lit_robust.cli import main
from lit_robust.core.errors import DataError, UserError
from lit_robust.data import HumanStimuliDataModule
from lit_robust.reference import imagenet_categories

NAMES = [
    "session-1/0001_nse_dnn_0.35_knife_10_n03041632_82878.png",
    "session-1/0002_nse_dnn_0.90_dog_10_n02085620_1.png",
    "session-1/0003_nse_dnn_0.0_knife_10_n03041632_7.png",
    "session-1/0004_nse_dnn_0.35_airplane_10_n02690373_7.png",
]


def plant(folder, names):
    for place, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(place))


@pytest.mark.parametrize("inner", ["", "dnn/"])
def test_trials_are_packed_and_read(tmp_path, inner):
    plant(tmp_path / "stimuli", [inner + name for name in NAMES])
    assert main(["data", "shard", str(tmp_path / "stimuli"), str(tmp_path / "uniform-noise"), "--split", "test"]) == 0
    module = ready(HumanStimuliDataModule(tmp_path, name="uniform-noise", **SMALL))
    described = module.evaluation_sets["uniform-noise"]
    assert described.groups == ["0", "0.35", "0.9"]  # In the published order.
    assert described.categories == imagenet_categories()
    found = loaded(module)
    categories = list(imagenet_categories())
    by_image = {int(image[0, 0, 0]): place for place, image in enumerate(found["image"])}
    told = [
        (described.groups[found["group"][by_image[n]]], categories[found["label"][by_image[n]]])
        for n in range(len(NAMES))
    ]
    assert told == [("0.35", "knife"), ("0.9", "dog"), ("0", "knife"), ("0.35", "airplane")]
    module.check_classes(1000)
    with pytest.raises(UserError, match="The network has 26 classes"):
        module.check_classes(26)


def test_a_set_of_one_condition_lies_in_folders_of_its_categories(tmp_path):
    write(tmp_path / "edge", "test", [1, 0], keys=["bear/bear1", "airplane/airplane10"])
    module = ready(HumanStimuliDataModule(tmp_path, name="edge", **SMALL))
    assert module.evaluation_sets["edge"].groups == ["0"]
    assert [list(imagenet_categories())[n] for n in loaded(module)["label"]] == ["bear", "airplane"]


def test_an_unknown_category_is_named(tmp_path):
    write(tmp_path / "edge", "test", [0], keys=["zebra/zebra1"])
    with pytest.raises(DataError, match="zebra/zebra1, of the category 'zebra', which is not one of airplane, bear"):
        HumanStimuliDataModule(tmp_path, name="edge", **SMALL).setup("test")
