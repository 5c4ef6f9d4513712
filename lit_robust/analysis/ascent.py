"""Optimisation in image space: from any start, up any objective of a representation, within any distance.

The steps, norms and projections are those of the attacks.
"""

import json
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, Self

import torch
from torch import Tensor
from tqdm import tqdm

from lit_robust.analysis.representation import Representation
from lit_robust.attacks import frozen
from lit_robust.attacks.ascent import Ball, ascent_step
from lit_robust.attacks.attack import check_eps, check_range, check_step
from lit_robust.attacks.norms import NORMS, draw_normal
from lit_robust.core.errors import check_choice, check_count
from lit_robust.core.files import write_tensors
from lit_robust.core.folding import folded
from lit_robust.core.precision import full_precision
from lit_robust.core.seeds import stream_seed
from lit_robust.models.weights import tensors_digest

Precision = Literal["fp32", "bf16"]
KEPT_EVERY = 200  # steps


class ImageObjective(Protocol):
    """What is raised: one value an image, of its own representation alone."""

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return values ``[B]`` of representations ``[B, D]``."""

    def finished(self, vectors: Tensor) -> Tensor | None:
        """Tell of representations ``[B, D]`` which images need no further step, bool ``[B]``; None for never any."""

    def select(self, rows: Tensor) -> Self:
        """Return the objective of the images of these int64 rows."""

    def to(self, device: torch.device) -> Self:
        """Return the objective on another device."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors it depends on, by name."""

    @property
    def name(self) -> str:
        """What it is, with its settings."""


@dataclass(frozen=True)
class Match:
    """Minus the relative distance to another representation, ``-||R - t|| / ||t||`` (Engstrom et al. 2019, eq. 4).

    Attributes:
        targets: float32 ``[B, D]``, the representations to be matched.
    """

    targets: Tensor

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return minus the relative distances ``[B]``."""
        return -relative_distance(vectors, self.targets)

    def finished(self, vectors: Tensor) -> None:
        """Nothing ends before the last step."""

    def select(self, rows: Tensor) -> "Match":
        """Return the objective of some images."""
        return Match(self.targets[rows])

    def to(self, device: torch.device) -> "Match":
        """Return the objective on another device."""
        return Match(self.targets.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors it depends on."""
        return {"targets": self.targets}

    @property
    def name(self) -> str:
        """What it is."""
        return "match"


@dataclass(frozen=True)
class Maximise:
    """One coordinate of the representation, up to a level (Engstrom et al. 2019, eq. 5).

    Attributes:
        units: int64 ``[B]``, the coordinate of each image.
        level: above it there is no gradient; infinite for the feature itself. Feature addition in the paper's code
            raises ``min(R_i - 1, 0)``, so its level is 1.
        until_highest: an image is finished as soon as its coordinate exceeds all others (section 4.2.1).
    """

    units: Tensor
    level: float = float("inf")
    until_highest: bool = False

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return the coordinates ``[B]``, or how far they are below the level, where there is one."""
        chosen = vectors.gather(1, self.units[:, None])[:, 0]
        return chosen if self.level == float("inf") else (chosen - self.level).clamp_max(0)

    def finished(self, vectors: Tensor) -> Tensor | None:
        """Tell where the coordinate exceeds all others, if that is what ends it."""
        return is_highest(vectors, self.units) if self.until_highest else None

    def select(self, rows: Tensor) -> "Maximise":
        """Return the objective of some images."""
        return replace(self, units=self.units[rows])

    def to(self, device: torch.device) -> "Maximise":
        """Return the objective on another device."""
        return replace(self, units=self.units.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors it depends on."""
        return {"units": self.units}

    @property
    def name(self) -> str:
        """What it is, with its settings."""
        return f"maximise up to {self.level:g}" + (" until it is the highest" if self.until_highest else "")


def is_highest(vectors: Tensor, units: Tensor) -> Tensor:
    """Tell for each row of ``[B, D]`` whether its coordinate, of ``[B]``, exceeds all others, bool ``[B]``."""
    others = vectors.scatter(1, units[:, None], float("-inf")).amax(1)
    return vectors.gather(1, units[:, None])[:, 0] > others


def relative_distance(vectors: Tensor, targets: Tensor) -> Tensor:
    """Return ``||R - t|| / ||t||`` for each row of two ``[B, D]``; where they are equal the gradient is 0, not NaN.

    A target of length 0 has no relative distance: the result is infinite, or NaN where both are 0.
    """
    offset = vectors - targets
    zero = (offset == 0).all(1)
    # The norm's derivative at 0 is not a number, and neither is its product with 0.
    lengths = torch.where(zero[:, None], torch.ones_like(offset), offset).norm(dim=1)
    distances: Tensor = torch.where(zero, 0.0, lengths) / targets.norm(dim=1)
    return distances


@dataclass(frozen=True)
class Settings:
    """How an optimisation in image space goes.

    Attributes:
        norm: ``l1``, ``l2`` or ``linf``, in which a step has its length and the distance from the start is bounded.
        eps: largest distance from the start, in [0, 1] pixel units; null for any image in [0, 1].
        step_size: length of a step, in the units of eps.
        steps: number of steps, each one forward and one backward pass.
        precision: of the passes, ``fp32`` or ``bf16``; steps are taken, and all numbers measured, in fp32. In bf16 a
            relative distance comes no nearer than about 0.01.
    """

    norm: str = "l2"
    eps: float | None = None
    step_size: float = 1.0
    steps: int = 10_000
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        check_choice("norm", self.norm, NORMS)
        check_choice("precision", self.precision, ("fp32", "bf16"))
        check_count("steps", self.steps, 0)
        if self.eps is None:
            check_eps("step_size", self.step_size, self.norm)
        else:
            check_eps("eps", self.eps, self.norm)
            check_step("step_size", self.step_size, self.eps, self.norm)

    def ball(self, centres: Tensor) -> Ball:
        """Return the images that may be reached from ``centres``, float32 ``[B, C, H, W]`` in [0, 1]."""
        norm = NORMS[self.norm]
        return Ball(centres, norm, norm.diameter(centres.shape[1:]) if self.eps is None else self.eps)

    def passes(self, device_type: str) -> AbstractContextManager[None]:
        """Return the context that the passes run in."""
        if self.precision == "fp32":
            return full_precision(device_type)
        return torch.autocast(device_type, torch.bfloat16)


class Ascent(NamedTuple):
    """Where an optimisation led.

    Attributes:
        images: float32 ``[B, C, H, W]`` in [0, 1].
        steps: int64 ``[B]``, how many were taken; fewer where an image was finished.
        vanished: int64 ``[B]``, at how many of them the gradient was zero or not finite.
    """

    images: Tensor
    steps: Tensor
    vanished: Tensor


def ascend(
    represent: Representation,
    objective: ImageObjective,
    starts: Tensor,
    settings: Settings,
    *,
    file: Path | None = None,
    progress: str = "",
) -> Ascent:
    """Take steps up the objective, each along its normalised gradient, projected to the ball and clamped to [0, 1].

    Each image goes its own way, whatever the others in the batch. No random number is drawn. The network is left as it
    was.

    Args:
        represent: images to representations.
        objective: one value an image.
        starts: float32 ``[B, C, H, W]`` in [0, 1].
        settings: norm, distance, steps. Before each step a finished image leaves the batch, and stays as it is.
        file: where the state is kept while it goes on, so that a call with the same arguments goes on there; null to
            keep nothing.
        progress: what a progress bar says; empty for none.

    Raises:
        UserError: images are not in [0, 1], or the representation has no gradient to them.
    """
    check_range(starts)
    identity = _identity(represent, objective, starts, settings) if file else ""
    begun, state = _read(file, identity) if file else (0, None)
    if state is None:
        none = torch.zeros(len(starts), dtype=torch.int64, device=starts.device)
        state = Ascent(starts.clone(), none, none.clone())
    else:
        state = Ascent(*(part.to(starts.device) for part in state))
    ball = settings.ball(starts.clone())
    rows = torch.arange(len(starts), device=starts.device)
    bar = tqdm(range(begun, settings.steps), progress, initial=begun, total=settings.steps, disable=not progress)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        frozen(represent.network),
        folded(represent.network),
        settings.passes(starts.device.type),
    ):
        for step in bar:
            images = state.images[rows]
            moved, here = ascent_step(represent, objective.select(rows), images, ball.select(rows), settings.step_size)
            over = objective.select(rows).finished(here.logits)
            vanished = here.vanished
            if over is not None:  # How many are left is known on the processor alone: this waits for an accelerator.
                rows, moved, vanished = rows[~over], moved[~over], vanished[~over]
                if not len(rows):
                    break
            state.images[rows] = moved
            state.steps[rows] += 1
            state.vanished[rows] += vanished
            if file and (step + 1) % KEPT_EVERY == 0:
                _write(file, identity, step + 1, state)
    if file:
        _write(file, identity, settings.steps, state)
    return state


def _identity(represent: Representation, objective: ImageObjective, starts: Tensor, settings: Settings) -> str:
    """Return a digest of all that the result follows from."""
    state = {f"network.{name}": tensor for name, tensor in represent.network.state_dict().items()}
    about = {**asdict(settings), **represent.protocol(), "objective": objective.name}
    return tensors_digest({**state, **objective.tensors(), "starts": starts}) + json.dumps(about)


def _write(file: Path, identity: str, steps: int, state: Ascent) -> None:
    write_tensors(file, state._asdict(), {"identity": identity, "steps": str(steps)})


def _read(file: Path, identity: str) -> tuple[int, Ascent | None]:
    """Return the steps that were done, and where they led; nothing where another call has written, or none has."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return 0, None
    try:
        with safe_open(file, "pt") as opened:
            about = opened.metadata() or {}
            if about.get("identity") != identity:
                return 0, None
            return int(about["steps"]), Ascent(*(opened.get_tensor(name) for name in Ascent._fields))
    except (SafetensorError, KeyError, ValueError):
        return 0, None


def noise_starts(shape: tuple[int, int, int], numbers: list[int], seed: int) -> Tensor:
    """Return noise to start from, normal with mean 0.5 and deviation 1/20, clamped (Engstrom et al. 2019, their code).

    Args:
        shape: channels, height and width of an image.
        numbers: of the images, which seed the draws: image 7 starts at the same noise in any batch.
        seed: of all draws; each gives other noise.

    Returns:
        float32 ``[len(numbers), C, H, W]`` in [0, 1], in the processor's memory.
    """
    sources = [torch.Generator().manual_seed(stream_seed(seed, "image start", number)) for number in numbers]
    return (0.5 + draw_normal((len(numbers), *shape), sources, torch.device("cpu")) / 20).clamp(0, 1)
