"""The norms attacks live in: how a step is scaled, how an offset is kept in the ball, where a search starts, and draws.

Everything here works image by image on ``[B, ...]`` float32 tensors of any memory format.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lit_robust.core.errors import UserError

Generators = torch.Generator | Sequence[torch.Generator]
"""One generator for the whole batch, or one for each of its samples."""


def draw_normal(shape: Sequence[int], generator: Generators, device: torch.device) -> Tensor:
    """Return standard normal float32 numbers of ``shape`` ``[B, ...]`` on ``device``.

    Numbers are drawn on the generator's own device and moved, so a CPU generator gives the same ones everywhere.

    Raises:
        UserError: the number of generators is not ``B``.
    """
    return _draw(torch.randn, shape, generator, device)


def draw_uniform(shape: Sequence[int], generator: Generators, device: torch.device) -> Tensor:
    """Return float32 numbers uniform in [0, 1), drawn as ``draw_normal`` draws."""
    return _draw(torch.rand, shape, generator, device)


def choose_generators(generator: Generators | None, rows: Tensor) -> Generators | None:
    """Return the generators of some of a batch's samples; one for the whole batch stays what it is.

    Args:
        generator: of the batch.
        rows: int64 places in the batch.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    return [generator[row] for row in rows.tolist()]


def _draw(draw: Callable[..., Tensor], shape: Sequence[int], generator: Generators, device: torch.device) -> Tensor:
    if isinstance(generator, torch.Generator):
        return draw(list(shape), generator=generator, device=generator.device).to(device)
    if len(generator) != shape[0]:
        raise UserError(
            f"{len(generator)} generators for {shape[0]} images: give one for the whole batch or one an image."
        )
    if not generator:
        return torch.zeros(list(shape), device=device)
    return torch.stack([draw(list(shape[1:]), generator=one, device=one.device) for one in generator]).to(device)


Radius = float | Tensor
"""One radius for all images, or each image's own as float32 ``[B, 1, 1, 1]``; in [0, 1] pixel units."""

FAINT = 1e-6
"""Below this norm the 1e-10 that keeps a quotient from being 0 / 0 begins to count."""


def to_unit_size(values: Tensor) -> Tensor:
    """Return the power of two, ``[B, 1, ...]``, that takes each row's largest absolute value to between 0.5 and 1.

    A product with a power of two is not rounded. Rows below 2**-100 get the factor of that number.
    """
    largest = values.abs().amax(dim=tuple(range(1, values.ndim)), keepdim=True).clamp_min(2.0**-100)
    # A number's mantissa over the number is a power of two, without a rounding error.
    return torch.frexp(largest).mantissa / largest


def none_on_cpu(flags: Tensor) -> bool:
    """Tell that no flag is set, so that work for the rare case may be left out; false on an accelerator, unread.

    A step of a small network takes no longer there for that work than for the wait.
    """
    return flags.device.type == "cpu" and not bool(flags.any())


class Norm(ABC):
    """A norm on images, with the geometry of its ball."""

    @abstractmethod
    def length(self, offset: Tensor) -> Tensor:
        """Return each image's norm, ``[B, 1, ...]`` so that it multiplies ``offset`` ``[B, ...]``."""

    @abstractmethod
    def normalise(self, gradient: Tensor) -> Tensor:
        """Return the direction of steepest ascent, of length 1; 0 where the gradient is 0."""

    def ascent(self, gradient: Tensor, images: Tensor) -> Tensor:
        """Return the direction, of length 1, of a step from ``images`` in [0, 1]; `normalise`'s, if not said."""
        return self.normalise(gradient)

    @abstractmethod
    def project(self, offset: Tensor, eps: Radius) -> Tensor:
        """Return the nearest offset (in L2) in the closed ball of radius ``eps``; what is inside stays as it is."""

    @abstractmethod
    def ball(self, images: Tensor, eps: Radius, generator: Generators) -> Tensor:
        """Return offsets of the shape of ``images``, uniform in the volume of the ball of radius ``eps``."""

    @abstractmethod
    def diameter(self, shape: Sequence[int]) -> float:
        """Return the largest distance of two images ``[C, H, W]`` in [0, 1]; no ball need be larger."""


class L2(Norm):
    """Euclidean norm over all pixels and channels of an image."""

    def length(self, offset: Tensor) -> Tensor:
        """Return the Euclidean norms ``[B, 1, ...]``."""
        norms: Tensor = torch.linalg.vector_norm(offset, dim=tuple(range(1, offset.ndim)), keepdim=True)
        return norms

    def normalise(self, gradient: Tensor) -> Tensor:
        """Return the gradient over its norm plus 1e-10, as MadryLab/robustness does (``attack_steps.py``).

        There the sum makes the steps up faint gradients short: no more than half as long for a norm below 1e-10. Here
        a gradient of a norm below 1e-6 is first brought to a largest value between 0.5 and 1, so its step is whole.
        """
        length = self.length(gradient)
        faint = length < FAINT
        if none_on_cpu(faint):
            return gradient / (length + 1e-10)
        lifted = torch.where(faint, gradient * to_unit_size(gradient), gradient)
        return lifted / (torch.where(faint, self.length(lifted), length) + 1e-10)

    def project(self, offset: Tensor, eps: Radius) -> Tensor:
        """Shrink offsets longer than ``eps`` to ``eps``."""
        # Inside the ball the quotient is eps / eps, exactly 1; the tiny number keeps eps = 0 from being 0 / 0.
        least = eps.clamp_min(1e-30) if isinstance(eps, Tensor) else max(eps, 1e-30)
        return offset * (eps / self.length(offset).clamp_min(least))

    def sphere(self, images: Tensor, eps: Radius, generator: Generators) -> Tensor:
        """Return offsets of length ``eps`` in uniform directions; the random start of MadryLab/robustness."""
        direction = draw_normal(images.shape, generator, images.device)
        return direction * (eps / self.length(direction))

    def ball(self, images: Tensor, eps: Radius, generator: Generators) -> Tensor:
        """Return a uniform direction times ``eps`` times a uniform number to the power 1 / dimension."""
        direction = self.sphere(images, eps, generator)
        radius = draw_uniform(images.shape[:1], generator, images.device)
        return direction * radius.view(-1, *[1] * (images.ndim - 1)) ** (1 / math.prod(images.shape[1:]))

    def diameter(self, shape: Sequence[int]) -> float:
        """Return the square root of the number of values in an image: 388 for 3 channels of 224 by 224."""
        return math.sqrt(math.prod(shape))


class Linf(Norm):
    """Largest absolute change of any value of an image."""

    def length(self, offset: Tensor) -> Tensor:
        """Return the largest absolute values ``[B, 1, ...]``."""
        return offset.abs().amax(dim=tuple(range(1, offset.ndim)), keepdim=True)

    def normalise(self, gradient: Tensor) -> Tensor:
        """Return the sign of the gradient (Goodfellow et al. 2015, section 4)."""
        return gradient.sign()

    def project(self, offset: Tensor, eps: Radius) -> Tensor:
        """Clamp every value to [-eps, eps]."""
        return offset.clamp(-eps, eps)  # type: ignore[arg-type]  # Both numbers or both tensors, as torch wants it.

    def ball(self, images: Tensor, eps: Radius, generator: Generators) -> Tensor:
        """Return values uniform in [-eps, eps)."""
        return (2 * draw_uniform(images.shape, generator, images.device) - 1) * eps

    def diameter(self, shape: Sequence[int]) -> float:
        """Return 1, the range of a pixel."""
        return 1.0


class L1(Norm):
    """Sum of the absolute changes of all values of an image.

    The steepest ascent would change one value a step. Steps are those of sparse L1 descent instead (Tramer and Boneh
    2019), which change a hundredth of the values.
    """

    kept = 0.01
    """Share of an image's values that a step changes."""

    def length(self, offset: Tensor) -> Tensor:
        """Return the sums of absolute values ``[B, 1, ...]``."""
        return offset.abs().sum(dim=tuple(range(1, offset.ndim)), keepdim=True)

    def normalise(self, gradient: Tensor) -> Tensor:
        """Return the signs of the largest hundredth of the gradient, over their number; those of a tie all."""
        sizes = gradient.abs()
        # As many as lie at or above the 0.99 quantile, where it falls between two values.
        count = sizes[0].numel() - math.ceil((1 - self.kept) * (sizes[0].numel() - 1)) if len(sizes) else 1
        least = sizes.flatten(1).topk(count, sorted=True).values[:, -1].view(-1, *[1] * (sizes.ndim - 1))
        signs = torch.where(sizes >= least, gradient.sign(), 0)
        return signs / self.length(signs).clamp_min(1)

    def ascent(self, gradient: Tensor, images: Tensor) -> Tensor:
        """Leave out the values that would only step out of [0, 1], which the step's length is too short to waste on."""
        stuck = ((images <= 0) & (gradient < 0)) | ((images >= 1) & (gradient > 0))
        return self.normalise(gradient.masked_fill(stuck, 0))

    def project(self, offset: Tensor, eps: Radius) -> Tensor:
        """Draw all values of offsets longer than ``eps`` towards 0 by the same amount (Duchi et al. 2008, fig. 1)."""
        sizes = offset.abs().flatten(1)
        radius = eps.flatten(1) if isinstance(eps, Tensor) else eps
        ordered = sizes.sort(dim=1, descending=True).values
        ranks = torch.arange(1, sizes.shape[1] + 1, device=sizes.device)
        # In fp32 the sum of 150,528 values would leave the ball by more than rounding does elsewhere.
        surplus = (ordered.cumsum(1, dtype=torch.float64) - radius) / ranks
        # Of the sorted values those that stay positive come first.
        positive = (ordered > surplus).sum(1, keepdim=True).clamp_min(1)
        amount = surplus.gather(1, positive - 1).float().view(-1, *[1] * (offset.ndim - 1))
        shrunk = offset.sign() * (offset.abs() - amount).clamp_min(0)
        return torch.where(self.length(offset) <= eps, offset, shrunk)

    def ball(self, images: Tensor, eps: Radius, generator: Generators) -> Tensor:
        """Return exponential numbers of random sign over the sum of their sizes and one more (Barthe et al. 2005)."""
        # One draw gives the sign and, independent of it, the size; 2**-25 is half the finest step of a draw.
        either = 2 * draw_uniform(images.shape, generator, images.device) - 1
        sizes = -(1 - either.abs()).clamp_min(2**-25).log()
        rest = -(1 - draw_uniform(images.shape[:1], generator, images.device)).log()
        return either.sign() * sizes * (eps / (self.length(sizes) + rest.view(-1, *[1] * (images.ndim - 1))))

    def diameter(self, shape: Sequence[int]) -> float:
        """Return the number of values in an image: 150,528 for 3 channels of 224 by 224."""
        return float(math.prod(shape))


NORMS: Mapping[str, Norm] = {"l1": L1(), "l2": L2(), "linf": Linf()}
"""Every norm by its name in settings; an attack names those of them that it knows."""
