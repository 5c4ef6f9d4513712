"""Logits where networks of torchvision, timm and Hugging Face put them."""

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
from torch import nn

from lit_robust.attacks import APGD, PGD, Square
from lit_robust.core.errors import UserError
from lit_robust.core.logits import logits_of
from lit_robust.models import Classifier

LOGITS, AUXILIARY = torch.rand(2, 5), torch.rand(2, 5)
NORMALISATION = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        torchvision.models.GoogLeNetOutputs(LOGITS, AUXILIARY, AUXILIARY),
        torchvision.models.InceptionOutputs(LOGITS, AUXILIARY),
        (LOGITS, AUXILIARY),
        [LOGITS],
        SimpleNamespace(logits=LOGITS, hidden_states=None),
        {"aux": AUXILIARY, "logits": LOGITS},
        OrderedDict(out=LOGITS, aux=AUXILIARY),
    ],
    ids=["tensor", "googlenet", "inception", "pair", "list", "attribute", "logits", "out"],
)
def test_logits_are_found(output):
    assert logits_of(output) is LOGITS


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (
            (LOGITS, torch.rand(2, 9)),
            r"returns a tuple of \[2, 5\], \[2, 9\], in which its logits cannot be recognised",
        ),
        ((LOGITS, None), r"a tuple of \[2, 5\], NoneType"),
        ({"features": LOGITS}, "a dict with features"),
        ((), "a tuple of "),
        (None, "a NoneType"),
        (torch.rand(2), r"of shape \[2\]: logits are \[batch, classes\]"),
        ({"out": torch.rand(2, 5, 7, 7)}, r"of shape \[2, 5, 7, 7\]"),
    ],
)
def test_what_holds_no_logits_is_refused_with_what_it_holds(output, sentence):
    with pytest.raises(UserError, match=sentence):
        logits_of(output)


def test_of_networks_with_auxiliary_logits_the_main_ones_are_trained_and_attacked():
    googlenet = torchvision.models.googlenet(num_classes=5, aux_logits=True, init_weights=False)
    distilled = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5, img_size=32, patch_size=16)
    distilled.set_distilled_training(True)
    for network, images in ((googlenet, torch.rand(2, 3, 64, 64)), (distilled, torch.rand(2, 3, 32, 32))):
        assert not isinstance(network.train()(images), torch.Tensor)
        assert Classifier(network, **NORMALISATION)(images).shape == (2, 5)


class Parted(nn.Module):
    """The logits and something else."""

    def forward(self, images):
        return {"logits": images.flatten(1)[:, :5], "features": images}


@pytest.mark.parametrize("attack", [PGD(eps=0.5, keep="best"), APGD(steps=3), Square(queries=3)])
def test_attacks_take_a_dict_as_the_logits_in_it(attack):
    images, labels = torch.rand(3, 3, 4, 4), torch.tensor([0, 1, 4])
    parted, plain = (
        attack(model, images, labels, generator=torch.Generator().manual_seed(0))
        for model in (Parted(), lambda images: images.flatten(1)[:, :5])
    )
    assert torch.equal(parted.images, plain.images)
