"""The texture of one image on the shape of another, by optimisation (Gatys, Ecker and Bethge 2016)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from lit_robust.core.errors import UserError, check_choice
from lit_robust.core.precision import full_precision

Features = Callable[[Tensor], Mapping[str, Tensor]]
"""Gives the outputs of some layers, ``[B, C, h, w]`` each, of float images ``[B, 3, H, W]`` in [0, 1]."""
Optimiser = Literal["adam", "lbfgs"]
Start = Literal["content", "noise"]


def gram(features: Tensor) -> Tensor:
    """Return the Gram matrices of feature maps: the products of channels, summed over places.

    Args:
        features: ``[B, C, h, w]``.

    Returns:
        ``[B, C, C]``.
    """
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2)


def style_loss(features: Tensor, target: Tensor) -> Tensor:
    """Return the squared distance of Gram matrices, over ``4 C^2 N^2`` (Gatys et al. 2016, equation 4).

    Both Gram matrices are divided by their number of places, so that images of two sizes can be compared; for images of
    one size that is the published formula.

    Args:
        features: ``[B, C, h, w]`` of the images.
        target: ``[B, C, C]`` Gram matrices, each divided by its number of places.

    Returns:
        ``[B]``.
    """
    places = features.shape[2] * features.shape[3]
    difference = gram(features) / places - target
    return difference.square().sum((1, 2)) / (4 * features.shape[1] ** 2)


def content_loss(features: Tensor, target: Tensor) -> Tensor:
    """Return half the squared distance of feature maps (Gatys et al. 2016, equation 1), ``[B]``."""
    return (features - target).square().sum((1, 2, 3)) / 2


@dataclass(frozen=True, kw_only=True)
class Gatys:
    """Settings of the optimisation.

    Attributes:
        style_layers: whose Gram matrices are matched, each with the same weight
        content_layer: whose feature maps are matched
        content_weight: weight of the content against the style's 1, once both losses are divided by their values at the
            content image and at grey; so it does not depend on the network's scale
        steps: of the optimiser
        optimiser: adam, which treats the images of a batch together; lbfgs, one image at a time, as in the paper
        learning_rate: of Adam, in [0, 1] pixel units; L-BFGS takes 1
        start: content: the content image; noise: uniform noise, drawn from the seed
        seed: of the noise
    """

    style_layers: Sequence[str]
    content_layer: str
    content_weight: float = 0.1
    steps: int = 200
    optimiser: Optimiser = "adam"
    learning_rate: float = 0.02
    start: Start = "content"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("optimiser", self.optimiser, ("adam", "lbfgs"))
        check_choice("start", self.start, ("content", "noise"))
        if not self.style_layers:
            raise UserError("style_layers is empty: name layers of the network.")
        if self.steps < 1 or self.learning_rate <= 0 or self.content_weight < 0:
            raise UserError(
                f"steps is {self.steps}, learning_rate {self.learning_rate} and content_weight {self.content_weight}: "
                "give 1 or more steps, a positive rate, and a weight of at least 0."
            )

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers that are needed."""
        return tuple(dict.fromkeys([*self.style_layers, self.content_layer]))

    def transfer(
        self, features: Features, contents: Tensor, textures: Tensor, seeds: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Give each content image the texture of another image.

        What becomes of an image follows from its own two images and its seed, but for how convolutions of larger
        batches are rounded.

        Args:
            features: gives `layers`.
            contents: float ``[B, 3, H, W]`` in [0, 1].
            textures: float ``[B, 3, h, w]`` in [0, 1].
            seeds: one an image, of the noise it starts from.

        Returns:
            The images, ``[B, 3, H, W]`` in [0, 1], and the losses ``[2, B]`` of style and content, as shares of their
            scales.
        """
        with torch.no_grad(), full_precision(contents.device.type):
            found = features(textures)
            targets = {name: gram(found[name]) / found[name][0, 0].numel() for name in self.style_layers}
            kept = features(contents)
            wanted = kept[self.content_layer]
            grey = features(torch.full_like(contents, 0.5))
            # Shares of what the content image has of style loss, and a grey one of content loss.
            styles = sum(style_loss(kept[name], targets[name]) for name in self.style_layers)
            scales = [torch.as_tensor(styles).clamp(min=1e-12), content_loss(grey[self.content_layer], wanted)]
            scales[1] = scales[1].clamp(min=1e-12)
        if self.start == "content":
            begin = contents.clone()
        else:
            drawn = [torch.rand(contents.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
            begin = torch.stack(drawn).to(contents.device)

        def losses(images: Tensor, rows: slice) -> Tensor:
            now = features(images)
            style = torch.stack([style_loss(now[name], targets[name][rows]) for name in self.style_layers]).sum(0)
            content = content_loss(now[self.content_layer], wanted[rows])
            return torch.stack([style / scales[0][rows], content / scales[1][rows]])

        with torch.enable_grad(), full_precision(contents.device.type):
            if self.optimiser == "adam":
                made = self._adam(begin, partial(losses, rows=slice(None)))
            else:
                rows = [slice(place, place + 1) for place in range(len(begin))]
                made = torch.cat([self._lbfgs(begin[row], partial(losses, rows=row)) for row in rows])
        with torch.no_grad(), full_precision(contents.device.type):
            return made, losses(made, slice(None))

    def _total(self, found: Tensor) -> Tensor:
        return (found[0] + self.content_weight * found[1]).sum()

    def _adam(self, begin: Tensor, losses: Callable[[Tensor], Tensor]) -> Tensor:
        images = begin.clone().requires_grad_()
        optimiser = torch.optim.Adam([images], lr=self.learning_rate)
        for _ in range(self.steps):
            optimiser.zero_grad()
            self._total(losses(images)).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():
                images.clamp_(0, 1)
        return images.detach()

    def _lbfgs(self, begin: Tensor, losses: Callable[[Tensor], Tensor]) -> Tensor:
        images = begin.clone().requires_grad_()
        optimiser = torch.optim.LBFGS([images], lr=1, max_iter=self.steps, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            total = self._total(losses(images))
            total.backward()  # type: ignore[no-untyped-call]
            return total

        optimiser.step(closure)  # type: ignore[no-untyped-call]
        return images.detach().clamp(0, 1)
