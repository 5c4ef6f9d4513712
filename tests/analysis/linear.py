"""A network whose representation is a matrix times the pixels, so that everything has a closed form."""

import torch
from torch import nn

from lit_robust.analysis.representation import Representation
from lit_robust.models import Classifier

SIDE, WIDTH = 4, 6


class LinearRepresentation(nn.Module):
    """``R = W x`` of the pixels themselves, and a linear layer behind it."""

    def __init__(self, orthonormal=True):
        super().__init__()
        matrix = torch.randn(WIDTH, 3 * SIDE**2, generator=torch.Generator().manual_seed(1))
        self.rows = nn.Parameter(torch.linalg.qr(matrix.T).Q.T.contiguous() if orthonormal else matrix)
        self.fc = nn.Linear(WIDTH, 3)

    def forward(self, images):
        return self.fc(images.flatten(1) @ self.rows.T)


def linear(orthonormal=True):
    """Return the representation, and its matrix."""
    network = Classifier(LinearRepresentation(orthonormal).eval(), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Representation(network), network.network.rows.detach()


def pictures(count, seed, spread=0.1):
    """Return images near grey, so that nothing is clamped."""
    noise = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    return 0.5 + spread * (noise - 0.5)


class Judge(nn.Module):
    """Says which part of [0, 1] the mean of an image's first channel is in."""

    def __init__(self, classes):
        super().__init__()
        self.centres = nn.Parameter(torch.linspace(0, 1, classes))

    def forward(self, images):
        return -(images[:, 0].mean((1, 2))[:, None] - self.centres).abs()
