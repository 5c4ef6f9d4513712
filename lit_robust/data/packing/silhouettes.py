"""Silhouettes: black figures on white ground, from masks of three origins."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from lit_robust.core.errors import DataError, UserError, check_choice
from lit_robust.core.files import file_sha256
from lit_robust.core.seeds import stream_seed
from lit_robust.reference import imagenet_categories
from lit_robust.shards import decode_rgb
from lit_robust.stimuli.figures import CLASS_NAMES, figure_mask
from lit_robust.stimuli.stimulus import Origin, Stimulus, check_images, check_seed
from lit_robust.stimuli.textureless import silhouette

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class MaskSilhouettes(Stimulus):
    """Silhouettes from a folder of masks; images without a mask leave the set.

    Attributes:
        masks: folder with a PNG for each image, of its key or the last part of that, as in n01440764/a.png or a.png;
            what is not black is figure; of the image's size before or after its crop
    """

    masks: Path
    kind: ClassVar[str] = "silhouettes"
    lack: ClassVar[str] = "have no mask"

    @cached_property
    def files(self) -> Mapping[str, Path]:
        """Key, or last part of a key, to its mask."""
        if not self.masks.is_dir():
            raise UserError(f"There is no folder {self.masks}: name one with a PNG for each image.")
        found = {
            file.relative_to(self.masks).with_suffix("").as_posix(): file for file in sorted(self.masks.rglob("*.png"))
        }
        if not found:
            raise UserError(f"The folder {self.masks} has no PNG: name one with a PNG for each image.")
        return found

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Stimulus.settings`; ``masks`` is a digest over the names and bytes of the masks."""
        digest = hashlib.sha256()
        for name, file in self.files.items():
            digest.update(f"{name} {file_sha256(file)}\n".encode())
        return {"masks": digest.hexdigest()}

    def fits(self, key: str, label: int) -> bool:
        """Return whether an image has a mask."""
        return self._file(key) is not None

    def _file(self, key: str) -> Path | None:
        return self.files.get(key, self.files.get(key.rsplit("/", 1)[-1]))

    def make(self, images: "Tensor", origins: Sequence[Origin]) -> "Sequence[Tensor | None]":
        """Return the silhouette of each image; see `Stimulus.make`.

        Raises:
            DataError: a mask has another size than its image.
        """
        check_images(images, origins)
        return [self._made(image, origin) for image, origin in zip(images, origins, strict=True)]

    def _made(self, image: "Tensor", origin: Origin) -> "Tensor | None":
        import torch

        file = self._file(origin.key)
        if file is None:
            return None
        pixels = decode_rgb(file.read_bytes(), file, ("PNG",))
        mask = torch.from_numpy((pixels.max(2, keepdims=True) > 0) * np.uint8(255)).permute(2, 0, 1).expand(3, -1, -1)
        if mask.shape != image.shape and origin.crop is not None:
            mask = origin.crop(mask.permute(1, 2, 0).contiguous().numpy())
        if mask.shape != image.shape:
            raise DataError(
                f"The mask {file} is {pixels.shape[1]} x {pixels.shape[0]} px, which does not become the "
                f"{image.shape[2]} x {image.shape[1]} px of its image: draw it on the image, before or after its crop."
            )
        return silhouette(mask[0] > 127)


@dataclass(frozen=True, kw_only=True)
class ToySilhouettes(Stimulus):
    """Silhouettes of the toy figures, drawn anew: exact.

    Attributes:
        seed: of the toy data
        drawn_for: folder and split of the toy set that the figures were drawn for
    """

    seed: int = 0
    drawn_for: str = "imagenet val"
    kind: ClassVar[str] = "silhouettes-toy"

    def __post_init__(self) -> None:
        check_seed(self.seed)

    def make(self, images: "Tensor", origins: Sequence[Origin]) -> "Sequence[Tensor]":
        """Return the silhouette of each figure; see `Stimulus.make`.

        Raises:
            DataError: an image is not one of the toy data.
        """
        import torch

        check_images(images, origins)
        height, width = images.shape[2:]
        made = []
        for origin in origins:
            name, _, number = origin.key.partition("/")
            if name not in CLASS_NAMES or not number.isdecimal() or height != width:
                raise DataError(f"{origin.key} is not a toy figure: derive from what `data toy` wrote.")
            stream = np.random.SeedSequence(stream_seed(self.seed, f"figure {self.drawn_for}", int(number)))
            mask = figure_mask(outline=CLASS_NAMES.index(name), size=height, seed=stream)
            made.append(silhouette(torch.from_numpy(mask)))
        return made


DETECTORS = ("maskrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn")
COCO_CLASSES = 91


@dataclass(frozen=True, kw_only=True)
class DetectedSilhouettes(Stimulus):
    """Silhouettes of what a detector trained on COCO finds of an image's category; all 16 are among its classes.

    An image leaves the set where its class is of no category, or where the detector finds no instance. Chen, Agarwal &
    Nguyen 2020 took a segmentation network (DeepLab-v2 on COCO-Stuff): theirs are other silhouettes.

    Attributes:
        weights: file of torchvision's weights of the detector, such as maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth; null
            for that file itself, downloaded at first use
        detector: torchvision's name of it
        score: least score of an instance, 0 to 1; all such instances of the category make up the figure
        device: where to compute: cpu or cuda
    """

    weights: Path | None = None
    detector: Literal["maskrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn"] = "maskrcnn_resnet50_fpn_v2"
    score: float = 0.5
    device: str = "cpu"
    kind: ClassVar[str] = "silhouettes-detected"
    lack: ClassVar[str] = "show no instance of a category that the detector finds"

    def __post_init__(self) -> None:
        check_choice("detector", self.detector, DETECTORS)
        if not 0 <= self.score <= 1:
            raise UserError(f"score is {self.score}: give 0 to 1.")

    @cached_property
    def network(self) -> "nn.Module":
        """The detector, with its weights, strictly."""
        from torchvision.models import detection

        from lit_robust.models.weights import load_weights

        build = getattr(detection, self.detector)
        network: nn.Module = build(weights=None, weights_backbone=None, num_classes=COCO_CLASSES)
        if self.weights is None:
            network.load_state_dict(self._published.get_state_dict(check_hash=True, weights_only=True))
        else:
            load_weights(network, self.weights, f"torchvision/{self.detector}", COCO_CLASSES)
        return network.eval().requires_grad_(False).to(self.device)

    @property
    def _published(self) -> Any:
        from torchvision.models import get_model_weights

        return get_model_weights(self.detector)["COCO_V1"]

    @cached_property
    def numbers(self) -> Mapping[int, int]:
        """ImageNet's class to COCO's of its category."""
        from torchvision.models.detection import MaskRCNN_ResNet50_FPN_V2_Weights

        names: list[str] = MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1.meta["categories"]
        return {label: names.index(name) for name, labels in imagenet_categories().items() for label in labels}

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Stimulus.settings`; ``weights`` is a digest, or a published name with a part of it."""
        weights = self._published.url.rsplit("/", 1)[-1] if self.weights is None else file_sha256(self.weights)
        return {"weights": weights, "detector": self.detector, "score": self.score}

    def fits(self, key: str, label: int) -> bool:
        """Return whether an image's class is of one of the 16 categories."""
        return label in self.numbers

    def make(self, images: "Tensor", origins: Sequence[Origin]) -> "Sequence[Tensor | None]":
        """Return the silhouette of each image; see `Stimulus.make`."""
        import torch

        check_images(images, origins)
        with torch.inference_mode():
            found = self.network(list(images.to(self.device).float() / 255))
        made: list[Tensor | None] = []
        for origin, each in zip(origins, found, strict=True):
            figure = union_of_instances(each, self.numbers[origin.label], self.score)
            made.append(None if figure is None else silhouette(figure.cpu()))
        return made


def union_of_instances(found: "Mapping[str, Tensor]", wanted: int, score: float) -> "Tensor | None":
    """Return where the instances of a class are; None where there is none.

    Args:
        found: what torchvision's detectors give of an image: ``labels`` ``[N]``, ``scores`` ``[N]``, ``masks``
            ``[N, 1, H, W]`` from 0 to 1.
        wanted: the class.
        score: least score of an instance.

    Returns:
        bool ``[H, W]``.
    """
    chosen = (found["labels"] == wanted) & (found["scores"] >= score)
    figure = (found["masks"][chosen] > 0.5).flatten(0, 1).any(0)
    return figure if bool(figure.any()) else None
