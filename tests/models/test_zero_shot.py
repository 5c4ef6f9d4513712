"""Zero-shot classifiers: logits by the definition in float64, and files that are not class vectors."""

import pytest
import torch
from safetensors.torch import save_file

from lit_robust.core.errors import UserError
from lit_robust.models import Network, build_classifier, weights_digest

NAME = "lit_robust.models.zero_shot:zero_shot"
IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def text(folder, scale=None, count=5):
    vectors = torch.randn(count, 7, generator=torch.Generator().manual_seed(1))
    extra = {} if scale is None else {"logit_scale": torch.tensor(scale)}
    save_file({"text": vectors, **extra}, folder / "text.safetensors")
    return vectors


def built(folder, num_classes=5, **tower):
    torch.manual_seed(2)
    arguments = {"tower": {"name": "lit_robust/resnet_tiny", **tower}, "text": str(folder / "text.safetensors")}
    return build_classifier(Network(NAME, num_classes, arguments=arguments)).eval()


@pytest.mark.parametrize("scale", [None, 3.5])
def test_logits_are_scaled_cosines(tmp_path, scale):
    vectors = text(tmp_path, scale).double()
    network = built(tmp_path)
    with torch.no_grad():
        image = network.network.tower(IMAGES).double()
        found = network(IMAGES)
    assert image.shape == (4, 7)
    cosines = (image @ vectors.T) / image.norm(dim=1)[:, None] / vectors.norm(dim=1)
    torch.testing.assert_close(found.double(), (scale or 100) * cosines, rtol=1e-4, atol=1e-4)


def test_the_tower_normalises_as_it_is_told(tmp_path):
    text(tmp_path)
    network = built(tmp_path, mean=[0.1, 0.2, 0.3], std=[0.5, 0.5, 0.5])
    assert network.normalisation == ((0, 0, 0), (1, 1, 1))
    assert network.network.tower.normalisation == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))


def test_a_clip_tower_of_timm_gives_vectors_of_its_projection(tmp_path):
    save_file({"text": torch.eye(6, 9)}, tmp_path / "text.safetensors")
    network = built(tmp_path, 6, name="timm/test_vit")
    images = torch.rand(2, 3, 160, 160)
    assert network(images).shape == (2, 6)
    assert network.network.tower.network.head.out_features == 9


def test_another_head_is_another_network(tmp_path):
    text(tmp_path)
    first = weights_digest(built(tmp_path).network)
    text(tmp_path, scale=2.0)
    assert weights_digest(built(tmp_path).network) != first


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"words": torch.ones(5, 7)}, "holds words: it needs text"),
        ({"text": torch.ones(5)}, "it needs text, floats"),
        ({"text": torch.ones(5, 7, dtype=torch.int64)}, "it needs text, floats"),
        ({"text": torch.ones(4, 7)}, "has the vectors of 4 classes, but num_classes is 5"),
        ({"text": torch.ones(5, 7).index_fill(0, torch.tensor(3), 0)}, "The vector of class 3 in .* has no direction"),
        ({"text": torch.ones(5, 7).index_fill(0, torch.tensor(1), torch.nan)}, "The vector of class 1 in"),
        ({"text": torch.ones(5, 7), "logit_scale": torch.tensor(-1.0)}, "logit_scale in .* is -1.0: give one number"),
    ],
)
def test_other_files_are_refused(tmp_path, tensors, words):
    save_file(tensors, tmp_path / "text.safetensors")
    with pytest.raises(UserError, match=words):
        built(tmp_path)


def test_what_is_no_file_and_no_tower(tmp_path):
    with pytest.raises(UserError, match=r"The class vectors .*text.safetensors cannot be read"):
        built(tmp_path)
    (tmp_path / "text.safetensors").write_bytes(b"not that")
    with pytest.raises(UserError, match="cannot be read"):
        built(tmp_path)
    text(tmp_path)
    with pytest.raises(UserError, match="tower has no setting 'wheights'"):
        built(tmp_path, wheights="x")
