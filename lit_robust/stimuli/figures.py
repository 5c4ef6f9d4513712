"""The toy figures: an outline on a plain ground, filled with a fine texture, each of which can name the class.

They show within minutes what the cue-conflict images of Geirhos et al. 2019 ("ImageNet-trained CNNs are biased towards
texture", section 2) show on ImageNet. In training outline and texture agree. The outline is the large difference
between figure and ground; the texture is a small difference between neighbouring pixels, which a small perturbation can
cover. A network trained as usual prefers the texture, one trained on adversarial images must turn to the outline.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_robust.core.errors import UserError
from lit_robust.stimuli import outlines, textures

Image = NDArray[np.uint8]

OUTLINES: tuple[str, ...] = outlines.TRAINED + outlines.NOVEL
TEXTURES: tuple[str, ...] = textures.TRAINED + textures.NOVEL
CLASS_NAMES: tuple[str, ...] = outlines.TRAINED
"""The trained classes; class ``k`` has outline ``k`` and texture ``k``."""

SUPERSAMPLING = 3
LIGHT, DARK = (0.5, 0.8), (0.2, 0.45)


@dataclass(frozen=True)
class Layout:
    """How a figure lies in its image. Lengths are shares of the image's side.

    Attributes:
        radius: least and largest length of the outline's unit; the outline reaches about 1 unit from its middle.
        offset: largest distance of its middle from the image's, along each axis.
        turn: largest rotation to either side, in radians; below 1.
        period: least and largest period of the texture.
        amplitude: how far the texture rises above and falls below the figure's colour; 1 is white, 0.2 the most.
        clutter: number of coloured strips that cross the ground.

    Raises:
        UserError: a radius or period is not positive, or the texture would be brighter than white or darker than black.
    """

    radius: tuple[float, float] = (0.32, 0.38)
    offset: float = 0.07
    turn: float = 0.2
    period: tuple[float, float] = (0.1, 0.12)
    amplitude: float = 0.1
    clutter: int = 0

    def __post_init__(self) -> None:
        if min(self.radius) <= 0 or min(self.period) <= 0:
            raise UserError(f"Radius {self.radius} and period {self.period} must be positive: choose larger ones.")
        if not 0 <= self.amplitude <= DARK[0]:
            raise UserError(f"A texture of amplitude {self.amplitude} leaves [0, 1]: choose 0 to {DARK[0]}.")


PLAIN = Layout()
HARD = Layout(radius=(0.18, 0.3), offset=0.36, turn=0.5, clutter=6)


class FigureDraws:
    """Uniform numbers from the raw words of PCG64.

    NumPy keeps the words of a bit generator the same for ever, but not what ``Generator`` makes of them (NEP 19).
    """

    def __init__(self, seed: np.random.SeedSequence) -> None:
        self._bits = np.random.PCG64(seed)

    def uniform(self, low: float, high: float) -> float:
        """Return a number of at least ``low`` and below ``high``."""
        word = int(self._bits.random_raw())
        return low + (high - low) * ((word >> 11) * 2.0**-53)

    def colour(self, span: tuple[float, float]) -> NDArray[np.float32]:
        """Return red, green and blue, each of its own within ``span``."""
        return np.array([self.uniform(*span) for _ in range(3)], dtype=np.float32)


def draw_figure(
    *, outline: int, texture: int, size: int, seed: np.random.SeedSequence, layout: Layout = PLAIN
) -> Image:
    """Draw one figure; the same bytes for the same arguments, on every machine.

    Place, size, rotation, colours and phase of the texture follow from the seed alone. Each channel of figure and
    ground is drawn from 0.5 to 0.8 for the one and from 0.2 to 0.45 for the other; which is the lighter is drawn too.

    Args:
        outline: number in ``OUTLINES``.
        texture: number in ``TEXTURES``.
        size: height and width of the image in pixels, at least 16.
        seed: of the figure, such as ``SeedSequence([run_seed, number])``.
        layout: how the figure lies in its image.

    Returns:
        uint8 ``[size, size, 3]``, RGB.

    Raises:
        UserError: no such outline or texture, or the size is too small.
    """
    _check("outline", outline, OUTLINES)
    _check("texture", texture, TEXTURES)
    _check_size(size)
    draws = FigureDraws(seed)
    spans = (LIGHT, DARK) if draws.uniform(0, 1) < 0.5 else (DARK, LIGHT)
    figure, ground = draws.colour(spans[0]), draws.colour(spans[1])
    x, y = _axes(size)
    inside = _place_outline(OUTLINES[outline], x, y, layout, draws)
    bright = _place_texture(TEXTURES[texture], x, y, layout, draws)
    scene = _draw_ground(x, y, ground, layout.clutter, draws)
    lit, unlit = _coverage(inside & bright), _coverage(inside & ~bright)
    scene += (lit + unlit) * (figure - scene) + (lit - unlit) * np.float32(layout.amplitude)
    image: Image = np.floor(scene * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    return image


def figure_mask(*, outline: int, size: int, seed: np.random.SeedSequence, layout: Layout = PLAIN) -> NDArray[np.bool_]:
    """Return which pixels of a figure lie inside its outline by more than half, bool ``[size, size]``.

    The arguments are those of `draw_figure`; the figure's texture and colours do not matter.
    """
    _check("outline", outline, OUTLINES)
    _check_size(size)
    draws = FigureDraws(seed)
    for _ in range(7):  # Which is the lighter, and the two colours.
        draws.uniform(0, 1)
    coverage: NDArray[np.float32] = _coverage(_place_outline(OUTLINES[outline], *_axes(size), layout, draws))
    return coverage[:, :, 0] > 0.5


def draw_figures(cues: Sequence[tuple[int, int]], *, size: int, seed: int, layout: Layout = PLAIN) -> NDArray[np.uint8]:
    """Draw a set of figures; figure ``n`` depends on the seed, ``n`` and its own cues alone.

    Args:
        cues: outline and texture of each, as numbers in ``OUTLINES`` and ``TEXTURES``.
        size: height and width in pixels, at least 16.
        seed: of the set, not negative.
        layout: how each figure lies in its image.

    Returns:
        uint8 ``[N, size, size, 3]``, RGB.

    Raises:
        UserError: as ``draw_figure``, or a negative seed.
    """
    _check_size(size)
    if seed < 0:
        raise UserError(f"Seed {seed} is negative: choose one from 0.")
    images = np.empty((len(cues), size, size, 3), dtype=np.uint8)
    for number, (outline, texture) in enumerate(cues):
        sequence = np.random.SeedSequence([seed, number])
        images[number] = draw_figure(outline=outline, texture=texture, size=size, seed=sequence, layout=layout)
    return images


def agreeing_cues(count: int) -> list[tuple[int, int]]:
    """Return the cues of training, validation and hard figures: outline and texture both name the class."""
    return [(n % len(CLASS_NAMES), n % len(CLASS_NAMES)) for n in range(count)]


def conflicting_cues(count: int) -> list[tuple[int, int]]:
    """Return the cues of conflict figures: all pairs of two different trained classes, in turn, 56 in a round."""
    classes = range(len(CLASS_NAMES))
    pairs = [(outline, (outline + step) % len(classes)) for step in classes[1:] for outline in classes]
    return [pairs[n % len(pairs)] for n in range(count)]


def stylized_cues(count: int) -> list[tuple[int, int]]:
    """Return the cues of stylized figures: each trained outline with each of the 12 textures, 96 in a round.

    The label is the outline, and the texture says nothing of it, as in Stylized-ImageNet (Geirhos et al. 2019,
    section 2.3).
    """
    classes = len(CLASS_NAMES)
    return [(n % classes, (n % classes + n // classes) % len(TEXTURES)) for n in range(count)]


def novel_cues(count: int) -> list[tuple[int, int]]:
    """Return the cues of out-of-distribution figures: outlines and textures no class has, 16 pairs in a round."""
    known, new = len(CLASS_NAMES), len(outlines.NOVEL)
    return [(known + n % new, known + (n % new + n // new) % len(textures.NOVEL)) for n in range(count)]


def _check(kind: str, number: int, names: Sequence[str]) -> None:
    if not 0 <= number < len(names):
        raise UserError(f"There is no {kind} {number}: choose one from 0 to {len(names) - 1}.")


def _check_size(size: int) -> None:
    if size < 16:
        raise UserError(f"A figure of {size} px cannot show its texture: choose a size of at least 16.")


def _axes(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the points' abscissae ``[1, S]`` and ordinates ``[S, 1]``, as shares of the side from the middle."""
    steps = SUPERSAMPLING * size
    axis = ((np.arange(steps, dtype=np.float32) + np.float32(0.5)) / np.float32(steps)) - np.float32(0.5)
    return axis[None, :], -axis[:, None]


def _rotate(
    x: NDArray[np.float32], y: NDArray[np.float32], turn: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rotate by 2·atan(turn / 2), close to ``turn`` for small angles: needs no sine, whose last bit is not settled."""
    half = turn / 2
    cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    return x * cosine + y * sine, y * cosine - x * sine


def _place_outline(
    name: str, x: NDArray[np.float32], y: NDArray[np.float32], layout: Layout, draws: FigureDraws
) -> NDArray[np.bool_]:
    radius = draws.uniform(*layout.radius)
    right, up = draws.uniform(-layout.offset, layout.offset), draws.uniform(-layout.offset, layout.offset)
    across, along = _rotate((x - right) / radius, (y - up) / radius, draws.uniform(-layout.turn, layout.turn))
    return outlines.inside(name, across, along)


def _place_texture(
    name: str, x: NDArray[np.float32], y: NDArray[np.float32], layout: Layout, draws: FigureDraws
) -> NDArray[np.bool_]:
    period = draws.uniform(*layout.period)
    # Some hundred periods of phase, so that grain is never the same twice.
    phase_u, phase_v = draws.uniform(0, 512), draws.uniform(0, 512)
    across, along = _rotate(x / period, y / period, draws.uniform(-layout.turn, layout.turn) / 4)
    return textures.bright(name, across + phase_u, along + phase_v)


def _draw_ground(
    x: NDArray[np.float32], y: NDArray[np.float32], colour: NDArray[np.float32], strips: int, draws: FigureDraws
) -> NDArray[np.float32]:
    """Return ``[size, size, 3]``: the ground's colour, crossed by strips of other colours."""
    side = x.shape[1] // SUPERSAMPLING
    scene = np.empty((side, side, 3), dtype=np.float32)
    scene[:] = colour
    for _ in range(strips):
        across, along = _rotate(x, y, draws.uniform(-2, 2))
        middle, width, end = draws.uniform(-0.5, 0.5), draws.uniform(0.015, 0.06), draws.uniform(-0.5, 0.3)
        strip = _coverage((np.abs(across - middle) < width) & (along > end))
        scene += strip * (draws.colour((DARK[0], LIGHT[1])) - scene)
    return scene


def _coverage(points: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the share of each pixel's points that are true, ``[S, S]`` to ``[size, size, 1]``; counts are exact."""
    counts = np.zeros((points.shape[0] // SUPERSAMPLING, points.shape[1] // SUPERSAMPLING), dtype=np.uint8)
    for row in range(SUPERSAMPLING):
        for column in range(SUPERSAMPLING):
            counts += points[row::SUPERSAMPLING, column::SUPERSAMPLING]
    return (counts.astype(np.float32) / np.float32(SUPERSAMPLING**2))[:, :, None]
