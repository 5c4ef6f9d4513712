"""The same images in each derived set, found by name, and what becomes of images that a set lacks."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_sets import SMALL, WHOLE, write

from lit_robust.callbacks import CleanAccuracy, CueExamples
from lit_robust.callbacks.evaluate import evaluate
from lit_robust.core.errors import UserError
from lit_robust.data import ImageNetDataModule, RobustnessSuite, StimulusDataModule
from lit_robust.models import Network, build_classifier
from lit_robust.report.page import write_report
from lit_robust.stimuli.scrambled import Scrambled
from lit_robust.stimuli.stimulus import Stimulus


@dataclass(frozen=True, kw_only=True)
class Turned(Stimulus):
    """Turns images round; those of class 0 leave the set, which shifts the others' numbers."""

    kind: ClassVar[str] = "silhouettes-turned"

    def fits(self, key, label):
        return label != 0

    def make(self, images, origins):
        return [image.flip(2) for image in images]


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    root = tmp_path_factory.mktemp("cues")
    write(root / "imagenet", "val", [0, 3, 0, 5, 1, 3, 7], num_classes=8)
    members = [
        ImageNetDataModule(evaluation=WHOLE, **SMALL),
        StimulusDataModule(evaluation=WHOLE, stimulus=Turned(), name="turned", **SMALL),
        StimulusDataModule(evaluation=WHOLE, stimulus=Scrambled(grid=2), name="scrambled-2", **SMALL),
    ]
    names = ("imagenet", "turned", "scrambled-2")
    measures = [*map(CleanAccuracy, names), CueExamples(["scrambled-2", "turned", "not-there"], examples=3)]
    network = build_classifier(Network("lit_robust/resnet_tiny", 8))
    data = RobustnessSuite(members, root=root)
    found = evaluate(network, data, measures, device="cpu", folder=root / "run", progress=False)
    return root, data, found


def read(root, example, role):
    return torch.from_numpy(np.array(Image.open(root / "run" / example.images[role]))).permute(2, 0, 1)


def test_each_image_stands_beside_what_was_made_of_it(tested):
    root, _, found = tested
    assert [example.index for example in found.examples] == [1, 4, 6], "of the five that all sets have"
    for example in found.examples:
        assert list(example.images) == ["imagenet", "scrambled-2", "turned"]
        clean = read(root, example, "imagenet")
        assert torch.equal(read(root, example, "turned"), clean.flip(2))
        pixels = [read(root, example, role).flatten(1).sort(1)[0] for role in ("imagenet", "scrambled-2")]
        assert torch.equal(*pixels)
        assert example.captions.keys() == {"label", *example.images}


def test_the_page_shows_them_by_kind_of_cue(tested, tmp_path):
    root, _, found = tested
    page = write_report([root / "run"], tmp_path / "report.html").read_text()
    section = page.split("Images with one cue less", 1)[1].split("</details>", 1)[0]
    table, images = section.split("<h4>Images: the same ones", 1)
    order = ["imagenet", "Shape destroyed", "scrambled-2", "Texture removed", "turned"]
    assert sorted(order, key=table.index) == order
    (value,) = [one for one in found.results if (one.dataset, one.metric) == ("turned", "top1")]
    assert f"{100 * value.value:.1f}" in table.split("turned", 1)[1]
    assert images.count("<img") == 9
    assert page.count("data:image/png") == 9, "each picture stands on the page once"


def test_no_image_in_common_is_an_error(tested):
    root, _, _ = tested

    @dataclass(frozen=True, kw_only=True)
    class Class0(Turned):
        def fits(self, key, label):
            return label == 0

    members = [
        StimulusDataModule(evaluation=WHOLE, stimulus=kind(), name=name, **SMALL)
        for name, kind in (("one", Turned), ("other", Class0))
    ]
    data = RobustnessSuite(members, root=root)
    network = build_classifier(Network("lit_robust/resnet_tiny", 8))
    with pytest.raises(UserError, match="No image of one is in each of one, other"):
        evaluate(network, data, [CueExamples(["other"], dataset="one")], device="cpu", progress=False)
