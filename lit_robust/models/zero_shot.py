"""Zero-shot classifiers, as CLIP (Radford et al. 2021): an image tower, its head a file of one vector a class."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from lit_robust.core.errors import UserError, nearest
from lit_robust.models.network import Classifier, build_from
from lit_robust.models.weights import load_weights

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
    last layer is the projection; `clip_tower` has those of open_clip. The class vectors are made once, by
    `lit-robust class-vectors` where open_clip is installed, or elsewhere: encode the prompts of each class, normalise
    each vector, take their mean, and save the tensor as ``text``.

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


def clip_tower(num_classes: int, model: str) -> nn.Module:
    """Build the image tower of one of open_clip's networks; its weights are the file of the whole network.

    Args:
        num_classes: dimensions of its vectors, which `zero_shot` asks of it.
        model: open_clip's name, such as ``ViT-B-32``.

    Raises:
        UserError: open_clip is not installed or has no such network, or its vectors have other dimensions.
    """
    network, dimensions = _clip(model)
    if dimensions != num_classes:
        raise UserError(
            f"The vectors of open_clip's {model} have {dimensions} dimensions, but the class vectors {num_classes}: "
            "make those with the same model."
        )
    tower = network.visual
    tower.pretrained_cfg = {"mean": tower.image_mean, "std": tower.image_std}
    assert isinstance(tower, nn.Module)
    return tower


def class_vectors(model: str, weights: Path, classes: Sequence[str], prompts: Sequence[str]) -> tuple[Tensor, float]:
    """Return the vector of each class, ``[classes, D]``, of length 1, and the scale that was trained with them.

    A class's vector is the mean of its prompts' vectors, each of length 1 (Radford et al. 2021, section 3.1.4).

    Args:
        model: open_clip's name, such as ``ViT-B-32``.
        weights: file of the whole network; nothing in it is run.
        classes: what to call each of them.
        prompts: sentences, in which ``{}`` stands for a class.

    Raises:
        UserError: open_clip or the model's tokenizer is not installed, the file is another network's, or a prompt has
            no ``{}``.
    """
    if not classes or not prompts or not all("{}" in prompt for prompt in prompts):
        raise UserError("Class vectors need classes, and prompts in each of which {} stands for one: give both.")
    network, dimensions = _clip(model)
    load_weights(network, weights, f"open_clip's {model}", dimensions)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network.to(device).eval()
    tokens = _tokenizer(model)
    vectors = []
    with torch.inference_mode():
        for name in tqdm(classes, "class vectors", unit="class", disable=None):
            encoded = network.encode_text(tokens([prompt.replace("{}", name) for prompt in prompts]).to(device))
            vectors.append(F.normalize(encoded.float(), dim=1).mean(0).cpu())
        scale = float(network.logit_scale.exp())
    return F.normalize(torch.stack(vectors), dim=1), scale


def _clip(model: str) -> tuple[Any, int]:
    """Return one of open_clip's networks with random weights, and the dimensions of its vectors."""
    try:
        import open_clip
    except ImportError as error:
        raise UserError(
            "CLIP-like networks come with the package open_clip_torch: install lit-robust[clip]."
        ) from error
    known = open_clip.list_models()
    if model not in known:
        raise UserError(f"open_clip has no network {model!r}{nearest(model, known)}: name one of its list_models().")
    try:
        network = open_clip.create_model(model, load_weights=False, pretrained_text=False)
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"open_clip's {model} cannot be built here ({_first_line(error)}): name another one."
        ) from error
    return network, int(open_clip.get_model_config(model)["embed_dim"])


def _tokenizer(model: str) -> Any:
    import open_clip

    try:
        return open_clip.get_tokenizer(model)
    except Exception as error:  # Of transformers and its downloads, as they please.
        raise UserError(
            f"The tokenizer of open_clip's {model} is not on this machine ({_first_line(error)}): make the class "
            "vectors where it is."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
