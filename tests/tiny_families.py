"""The smallest member of each family of timm that its constructors make, for images of 32 px."""

import timm
from timm.models.mlp_mixer import MlpMixer

FAMILIES = {
    "vit": ("test_vit", {"img_size": 32, "depth": 2}),
    "deit": ("deit_tiny_distilled_patch16_224", {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2}),
    "eva": ("eva02_tiny_patch14_224", {"img_size": 28, "depth": 2, "embed_dim": 32, "num_heads": 2}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4},
    ),
    "mixer": ("mixer", {"img_size": 32, "patch_size": 8, "num_blocks": 2, "embed_dim": 32}),
    "convnext": ("test_convnext", {}),
    "efficientnet": ("test_efficientnet", {}),
    "regnet": ("regnetx_002", {}),
    "mobilenet": ("mobilenetv3_small_050", {}),
    "resnet": ("test_resnet", {}),
    "clip": ("test_vit3", {"img_size": 32, "depth": 2}),
}


def make(family: str, num_classes: int):
    """Return a network with random weights."""
    name, settings = FAMILIES[family]
    if name == "mixer":  # timm's own functions settle these.
        made = MlpMixer(num_classes, **settings)
        made.pretrained_cfg = {"classifier": "head"}
        return made
    return timm.create_model(name, num_classes=num_classes, **settings)
