"""The stylising benchmark: both make the same images. No time is asserted."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from test_corrupting import write_clean

from lit_robust.bench import stylising
from lit_robust.core.errors import UserError
from lit_robust.data.loading.splits import Reading, open_table
from lit_robust.data.loading.transforms import EvaluationCrop
from lit_robust.data.packing.derivation import Derivation
from lit_robust.data.packing.stylised import Stylised
from lit_robust.stimuli.adain import decoder, vgg


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Images of 32 px, so that a test is quick."""
    write_clean(tmp_path / "imagenet", 5)
    monkeypatch.setattr(stylising, "SIDE", 32)
    return tmp_path


def test_the_table_has_both_and_their_ratio(small):
    text = stylising.bench_stylising(small / "imagenet", "val", 3, 2, 1)
    assert text.count("images/s") == 2
    assert "AdaIN, 3 images of 32 px in batches of 16, 2 styles" in text
    with pytest.raises(UserError, match="has 5 images in val, fewer than 9"):
        stylising.bench_stylising(small / "imagenet", "val", 3, 9, 1)


def test_the_scripts_loop_makes_what_ours_makes(small):
    torch.manual_seed(0)
    torch.save(vgg().state_dict(), small / "vgg.pth")
    torch.save(decoder().state_dict(), small / "decoder.pth")
    (small / "styles").mkdir()
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(small / "styles" / "a.png")
    stimulus = Stylised(styles=small / "styles", vgg=small / "vgg.pth", decoder=small / "decoder.pth", style_size=32)
    source = open_table(small / "imagenet", "val", Reading())
    one = Derivation(source=source, folder=small / "x", split="val", stimulus=stimulus, crop=EvaluationCrop(256, 32))
    ours = list(one.encoded(range(3)))
    contents = [stylising._file(source, number) for number in range(3)]
    theirs = stylising.script(stimulus.networks.network, contents, [small / "styles" / "a.png"] * 3, 2)
    for mine, other in zip(ours, theirs, strict=True):
        first, second = (np.array(Image.open(io.BytesIO(file))).astype(int) for file in (mine, other))
        # Pillow's resizing rounds to whole levels, and ours does not.
        assert np.abs(first - second).mean() < 1
