"""Images without texture: black-and-white, edges and silhouettes."""

import io
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from PIL import Image

from lit_robust.core.errors import UserError, check_choice
from lit_robust.stimuli.stimulus import Origin, Stimulus, check_images

if TYPE_CHECKING:
    from torch import Tensor

Rule = Literal["threshold", "otsu", "potrace"]
RULES: tuple[Rule, ...] = ("threshold", "otsu", "potrace")


def black_and_white(images: "Tensor", threshold: "Tensor | float" = 0.5) -> "Tensor":
    """Make pixels white where the mean of their channels is above a threshold, black elsewhere.

    At 0.5 that is potrace's rule (its blacklevel of bitmaps: white where R + G + B > 0.5 * 3 * 255).

    Args:
        images: uint8 ``[B, 3, H, W]``.
        threshold: from 0, black, to 1, white; one, or ``[B]``.

    Returns:
        uint8 ``[B, 3, H, W]`` of 0 and 255.
    """
    import torch

    limit = torch.as_tensor(threshold, dtype=torch.float64, device=images.device).reshape(-1, 1, 1, 1) * 765
    white = images.sum(1, keepdim=True, dtype=torch.int64) > limit
    return (white * 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


def otsu_threshold(images: "Tensor") -> "Tensor":
    """Return the threshold of Otsu 1979, by which dark and bright pixels differ most, for each image.

    Args:
        images: uint8 ``[B, 3, H, W]``.

    Returns:
        float64 ``[B]``, of the mean of the channels, from 0 to 1; an image of one value has that value.
    """
    import torch

    sums = images.sum(1, dtype=torch.int64).flatten(1)
    levels = torch.arange(766, dtype=torch.float64, device=images.device)
    found = []
    for each in sums:
        counts = torch.bincount(each, minlength=766).double()
        below, above = counts.cumsum(0), counts.flip(0).cumsum(0).flip(0) - counts
        mass = (counts * levels).cumsum(0)
        low, high = mass / below.clamp(min=1), (mass[-1] - mass) / above.clamp(min=1)
        between = below * above * (low - high) ** 2
        # All levels between two groups are as good as one another; the middle one is far from both.
        best = (between >= between.max() * (1 - 1e-12)).nonzero()[:, 0].double()
        found.append(best.mean().floor() if between.max() > 0 else each[0].double())
    return torch.stack(found) / 765


def traced(image: "Tensor") -> "Tensor":
    """Return an image in black and white as potrace draws it, and librsvg renders what it drew (Geirhos et al. 2019).

    Specks of at most 2 px go, and outlines become curves. Chen et al. 2020 write ``rsvg-convert image.svg >
    image.jpeg``. What that program writes is a PNG all the same, transparent where it is white, and 4/3 as large: read
    without its transparency it is entirely black. So a white ground and the image's size are asked for here.

    Args:
        image: uint8 ``[3, H, W]``.

    Returns:
        uint8 ``[3, H, W]``, mostly 0 and 255: edges are antialiased.

    Raises:
        UserError: the programs are not installed, or fail.
    """
    import torch

    height, width = image.shape[1:]
    bitmap = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(bitmap, "BMP")
    drawn = _run(["potrace", "--svg", "-o", "-", "-"], bitmap.getvalue())
    size = ["--width", str(width), "--height", str(height), "--background-color", "white"]
    picture = _run(["rsvg-convert", *size], drawn)
    with Image.open(io.BytesIO(picture), formats=("PNG",)) as opened:
        return torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)


def _run(command: list[str], given: bytes) -> bytes:
    if shutil.which(command[0]) is None:
        raise UserError(
            f"The program {command[0]} is not installed, which the rule potrace needs: install Debian's potrace and "
            "librsvg2-bin, or choose the rule threshold."
        )
    done = subprocess.run(command, input=given, capture_output=True, check=False)
    if done.returncode:
        raise UserError(
            f"{command[0]} failed ({done.stderr.decode(errors='replace').strip()}): check its installation."
        )
    return done.stdout


@dataclass(frozen=True, kw_only=True)
class BlackAndWhite(Stimulus):
    """Two colours alone (Chen, Agarwal & Nguyen 2020, section 3.2.2).

    The rules make different sets: single decisions of a network on them agree in fewer than half of the images.

    Attributes:
        rule: threshold: white where the mean of red, green and blue is above one half, as potrace does; potrace:
            through the programs potrace and rsvg-convert, which smooth outlines and drop specks; otsu: a threshold of
            each image
    """

    rule: Rule = "threshold"
    kind: ClassVar[str] = "black-and-white"

    def __post_init__(self) -> None:
        check_choice("rule", self.rule, RULES)

    @property
    def set_name(self) -> str:
        """``black-and-white`` by the threshold; ``black-and-white-potrace`` and ``-otsu`` are other sets."""
        return self.kind if self.rule == "threshold" else f"{self.kind}-{self.rule}"

    def make(self, images: "Tensor", origins: Sequence[Origin]) -> "Sequence[Tensor]":
        """Make each image black and white; see `Stimulus.make`."""
        check_images(images, origins)
        if self.rule == "potrace":
            return [traced(image) for image in images]
        return list(black_and_white(images, otsu_threshold(images) if self.rule == "otsu" else 0.5))


def edges(image: "Tensor", sigma: float = 0.4, low: float = 0.35, high: float = 0.9) -> "Tensor":
    """Return Canny's edges of the grey image, black on white.

    Args:
        image: uint8 ``[3, H, W]``.
        sigma: of the Gaussian before, pixels.
        low: gradient from which on an edge is followed; grey values go from 0 to 1.
        high: gradient from which on an edge begins.

    Returns:
        uint8 ``[3, H, W]`` of 0 and 255.

    Raises:
        UserError: scikit-image is not installed.
    """
    import torch

    try:
        from skimage.color import rgb2gray
        from skimage.feature import canny
    except ModuleNotFoundError as error:
        raise UserError("Edges need scikit-image: install lit-robust[stimuli].") from error
    grey = rgb2gray(image.permute(1, 2, 0).cpu().numpy())
    found = canny(grey, sigma=sigma, low_threshold=low, high_threshold=high)  # type: ignore[no-untyped-call]
    return torch.from_numpy(np.where(found, 0, 255).astype(np.uint8)).expand(3, -1, -1).clone()


@dataclass(frozen=True, kw_only=True)
class Edges(Stimulus):
    """Canny's edges, black on white.

    Attributes:
        sigma: of the Gaussian before, pixels
        low: gradient from which on an edge is followed; grey values go from 0 to 1
        high: gradient from which on an edge begins
    """

    sigma: float = 0.4
    low: float = 0.35
    high: float = 0.9
    kind: ClassVar[str] = "edges"

    def __post_init__(self) -> None:
        if not (self.sigma > 0 and 0 <= self.low <= self.high):
            raise UserError(
                f"sigma is {self.sigma}, low {self.low} and high {self.high}: give a positive sigma, and low not above "
                "high."
            )

    def make(self, images: "Tensor", origins: Sequence[Origin]) -> "Sequence[Tensor]":
        """Draw the edges of each image; see `Stimulus.make`."""
        check_images(images, origins)
        return [edges(image, self.sigma, self.low, self.high) for image in images]


def silhouette(figure: "Tensor") -> "Tensor":
    """Return a black figure on white ground.

    Args:
        figure: bool ``[H, W]``.

    Returns:
        uint8 ``[3, H, W]`` of 0 and 255.
    """
    import torch

    return (~figure * 255).to(torch.uint8).expand(3, -1, -1).clone()
