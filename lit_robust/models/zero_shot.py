"""Zero-shot classifiers, as CLIP (Radford et al. 2021): an image tower, its head a file of one vector a class."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_robust.core.errors import UserError
from lit_robust.models.network import Classifier, build_from

TEXT, SCALE = "text", "logit_scale"
USUAL_SCALE = 100.0  # What CLIP's training stopped at, and open_clip's.


class ZeroShot(nn.Module):
    """Images in [0, 1] to logits: a scale times the cosines of an image's vector with each class's.

    Args:
        tower: images in [0, 1] to vectors ``[B, D]``, of any length.
        text: ``[num_classes, D]``, any length; usually the mean over a class's prompts.
        scale: what the cosines are multiplied by.
    """

    # The tower normalises by itself; `build_classifier` reads what it must do before.
    pretrained_cfg: Mapping[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    text: Tensor
    scale: Tensor

    def __init__(self, tower: Classifier, text: Tensor, scale: float = USUAL_SCALE) -> None:
        super().__init__()
        self.tower = tower
        self.register_buffer("text", F.normalize(text.float(), dim=1))
        self.register_buffer("scale", torch.tensor(float(scale)))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` of float images ``[B, 3, H, W]`` in [0, 1]."""
        logits: Tensor = self.scale * F.normalize(self.tower(images), dim=1) @ self.text.T
        return logits


def zero_shot(num_classes: int, tower: Mapping[str, Any], text: str | Path) -> ZeroShot:
    """Build a zero-shot classifier; `--model.network.name lit_robust.models.zero_shot:zero_shot` makes any test use it.

    timm has the image towers of CLIP, open_clip, SigLIP and others, ``timm/vit_base_patch16_clip_224`` and so on, whose
    last layer is the projection. The class vectors are made once, where the text tower and its tokenizer are: encode
    the prompts of each class, normalise each vector, take their mean, and save the tensor as ``text``.

    Args:
        num_classes: as many as there are class vectors.
        tower: settings of a ``Network``: name, weights and more.
        text: safetensors file with ``text``, ``[num_classes, D]`` in the order of the classes, and, where it is not
            100, ``logit_scale``, what cosines are multiplied by.

    Raises:
        UserError: the file cannot be read or is of another number of classes, or the tower cannot be built.
    """
    vectors, scale = read_text(Path(text))
    if len(vectors) != num_classes:
        raise UserError(
            f"{text} has the vectors of {len(vectors)} classes, but num_classes is {num_classes}: set it to "
            f"{len(vectors)}, or give another file."
        )
    return ZeroShot(build_from("tower", tower, vectors.shape[1]), vectors, scale)


def read_text(file: Path) -> tuple[Tensor, float]:
    """Return class vectors ``[classes, D]``, float32, and the scale of a file; see `zero_shot`.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"The class vectors {file} cannot be read ({error}): give a safetensors file.") from error
    vectors, scale = found.get(TEXT), found.get(SCALE, torch.tensor(USUAL_SCALE))
    if vectors is None or vectors.ndim != 2 or not vectors.is_floating_point():
        raise UserError(f"{file} holds {', '.join(found) or 'nothing'}: it needs {TEXT}, floats [classes, dimensions].")
    vectors = vectors.float()
    lengths = vectors.norm(dim=1)
    if not bool(lengths.isfinite().all()) or not bool((lengths > 0).all()):
        row = int((~lengths.isfinite() | (lengths == 0)).nonzero()[0])
        raise UserError(f"The vector of class {row} in {file} has no direction: encode its prompts again.")
    if scale.numel() != 1 or not 0 < float(scale) < float("inf"):
        raise UserError(f"{SCALE} in {file} is {scale.tolist()}: give one number above 0, not its logarithm.")
    return vectors, float(scale)
