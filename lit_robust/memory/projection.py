"""Fewer dimensions: keys on their principal components, in one pass and exactly."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from lit_robust.core.errors import DataError, UserError
from lit_robust.core.files import write_tensors

Centring = Literal["both", "keys"]
On = Literal["unit", "raw"]


@dataclass(frozen=True, eq=False)
class Projection:
    """Principal components, and what is done with their mean.

    Attributes:
        mean: fp32 ``[d]``, of the keys the components were found on.
        components: fp32 ``[dimensions, d]``, of unit length, the most important first; the sign of each makes its
            largest number positive.
        variances: fp64 ``[dimensions]``, of the keys along each.
        total_variance: of the keys, along all ``d``.
    """

    mean: Tensor
    components: Tensor
    variances: Tensor
    total_variance: float

    @property
    def explained(self) -> float:
        """The share of the variance that is left."""
        return float(self.variances.sum()) / self.total_variance if self.total_variance else 1.0

    def apply(self, vectors: Tensor) -> Tensor:
        """Return ``[B, dimensions]`` of vectors ``[B, d]``, centred."""
        return (vectors - self.mean) @ self.components.T

    def save(self, file: Path) -> None:
        """Write mean and components as safetensors, all of it or nothing."""
        write_tensors(file, {"mean": self.mean, "components": self.components})


def read_projection(file: Path) -> tuple[Tensor, Tensor]:
    """Return mean and components of a memory's keys.

    Raises:
        DataError: the file is missing or broken.
    """
    try:
        tensors = load_file(str(file))
        return tensors["mean"], tensors["components"]
    except Exception as error:  # The library's own exceptions are private.
        raise DataError(f"{file} cannot be read ({error}): copy the whole memory, or project it again.") from error


def principal_components(pieces: Iterator[NDArray[np.floating]], dimensions: int) -> Projection:
    """Return the principal components of vectors that come in pieces.

    Mean and covariance are summed in fp64 around the first piece's mean, so the result does not depend on the pieces
    beyond rounding; an incremental decomposition, as in the code of paper 000, gives an approximation of the same.

    Args:
        pieces: ``[n, d]`` each, all but the last of more than one vector.
        dimensions: how many components, at most ``d``.

    Raises:
        UserError: more components are asked for than there are dimensions or vectors.
    """
    count, origin, total, products = 0, None, None, None
    for piece in pieces:
        vectors = torch.from_numpy(np.asarray(piece, dtype=np.float64))
        if origin is None or total is None or products is None:
            width = vectors.shape[1]
            origin, total = vectors.mean(0), vectors.new_zeros(width)
            products = vectors.new_zeros(width, width)
        centred = vectors - origin
        count += len(vectors)
        total += centred.sum(0)
        products.addmm_(centred.T, centred)
    if origin is None or total is None or products is None or dimensions > min(len(origin), count):
        have = 0 if origin is None else min(len(origin), count)
        raise UserError(f"{dimensions} principal components of {have}: ask for at most {have}.")
    offset = total / count
    covariance = products / count - torch.outer(offset, offset)
    values, vectors = torch.linalg.eigh(covariance)
    components = vectors.T.flip(0)[:dimensions]
    peaks = components.gather(1, components.abs().argmax(1, keepdim=True))
    return Projection(
        mean=(origin + offset).float(),
        components=(components * peaks.sign()).float(),
        variances=values.flip(0)[:dimensions].clamp(min=0),
        total_variance=float(covariance.diagonal().sum()),
    )
