"""Scrambled images: patches of a grid in another order, so that texture stays and shape goes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from lit_robust.core.errors import UserError, check_choice
from lit_robust.core.seeds import key_seed
from lit_robust.stimuli.stimulus import Origin, Stimulus, check_images, check_seed

if TYPE_CHECKING:
    from torch import Tensor

Permutation = Literal["random", "derangement", "fixed-212"]
PERMUTATIONS: tuple[Permutation, ...] = ("random", "derangement", "fixed-212")
LARGEST_GRID = 1000


def scramble(images: "Tensor", orders: NDArray[np.int64]) -> "Tensor":
    """Put the patches of square grids into other orders.

    Args:
        images: ``[B, C, H, W]`` of any type.
        orders: ``[B, p * p]``; place ``k`` of an image, row by row, gets the patch from place ``orders[b, k]``.

    Returns:
        ``[B, C, H, W]``.

    Raises:
        UserError: a side is not divisible by p.

    >>> import torch
    >>> scramble(torch.tensor([[[[1, 2], [3, 4]]]]), np.array([[3, 2, 1, 0]])).tolist()
    [[[[4, 3], [2, 1]]]]
    """
    import torch

    count, channels, height, width = images.shape
    grid = round(orders.shape[1] ** 0.5)
    if height % grid or width % grid:
        raise UserError(
            f"Images of {width} x {height} px have no grid of {grid} x {grid} equal patches: choose a crop that {grid} "
            "divides, or another grid."
        )
    shape = (count, channels, grid, height // grid, grid, width // grid)
    patches = images.reshape(shape).permute(0, 2, 4, 1, 3, 5).reshape(count, grid * grid, -1)
    taken = torch.from_numpy(orders).to(images.device)[:, :, None].expand_as(patches)
    moved = patches.gather(1, taken).reshape(count, grid, grid, channels, *shape[3::2])
    return moved.permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


def patch_order(patches: int, rule: Permutation, seed: int) -> NDArray[np.int64]:
    """Return an order of patches.

    Args:
        patches: how many; at least 2 for ``derangement``, 1 otherwise.
        rule: ``random``: each order as likely as any other; one of 24 at 2 x 2 patches leaves the image as it is, and
            one patch stays in its place on average. ``derangement``: each order in which no patch stays in its place
            as likely. ``fixed-212``: the one order of ``numpy.random.seed(212)``, which Chen et al.'s code
            (``shape-bias/utils.py:scrimble_img``) gives every image.
        seed: of the draw.
    """
    if rule == "fixed-212":
        return np.random.RandomState(212).permutation(patches).astype(np.int64)
    random = np.random.Generator(np.random.PCG64(seed))
    order = random.permutation(patches)
    # By rejection: about one draw of e is free of fixed points.
    while rule == "derangement" and (order == np.arange(patches)).any():
        order = random.permutation(patches)
    return order.astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Scrambled(Stimulus):
    """Patches in another order: what texture alone tells (Chen, Agarwal & Nguyen 2020, section 3.2.1).

    Attributes:
        grid: patches a side; the paper's are 2, 4 and 8; it must divide both sides of the image
        permutation: random: any order; derangement: no patch stays in its place; fixed-212: the paper's code's one
            order for all images
        seed: of the orders; each image has a stream of its own, by its key
    """

    grid: int = 4
    permutation: Permutation = "random"
    seed: int = 0
    kind: ClassVar[str] = "scrambled"

    def __post_init__(self) -> None:
        check_choice("permutation", self.permutation, PERMUTATIONS)
        check_seed(self.seed)
        if not 1 <= self.grid <= LARGEST_GRID:
            raise UserError(f"grid is {self.grid}: give 1 to {LARGEST_GRID} patches a side.")
        if self.grid == 1 and self.permutation == "derangement":
            raise UserError("One patch has no other place: give a grid of at least 2, or another permutation.")

    def make(self, images: "Tensor", origins: Sequence[Origin]) -> "Sequence[Tensor]":
        """Scramble each image; see `Stimulus.make`."""
        check_images(images, origins)
        seeds = [key_seed(self.seed, "scrambled", origin.key) for origin in origins]
        orders = [patch_order(self.grid**2, self.permutation, seed) for seed in seeds]
        return list(scramble(images, np.stack(orders))) if orders else []
