"""Shape against texture by category as an image for W&B, in the manner of Geirhos et al. 2019, figure 4."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def shape_image(decisions: Mapping[str, tuple[int, int]]) -> NDArray[np.uint8]:
    """Draw how the decisions for an image's shape or its texture divide in each category, and over all of them.

    Args:
        decisions: category of shapes to the numbers of decisions for shape and for texture; a category with neither
            gets no mark.

    Returns:
        uint8 ``[H, W, 3]``: a row a category, a mark further left the more decisions are for shape, and a line at the
        fraction over all categories.
    """
    from matplotlib.figure import Figure

    names = [name.replace("_", " ") for name in decisions]
    counts = np.array(list(decisions.values()), dtype=np.float64).reshape(-1, 2)
    figure = Figure(figsize=(5.2, 1.2 + 0.26 * len(names)), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    decided = counts.sum(1) > 0
    axes.plot(counts[decided, 1] / counts[decided].sum(1), np.flatnonzero(decided), "o", clip_on=False, zorder=3)
    if decided.any():
        axes.axvline(counts[:, 1].sum() / counts.sum(), zorder=2)
    axes.axvline(0.5, color="black", linewidth=0.8, zorder=1)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("fraction of texture decisions")
    above = axes.secondary_xaxis("top", functions=(_mirrored, _mirrored))
    above.set_xlabel("fraction of shape decisions")
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    return np.asarray(Image.open(drawn).convert("RGB"))


def _mirrored(fraction: Any) -> Any:
    return 1 - fraction
