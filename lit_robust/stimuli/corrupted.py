"""ImageNet-C's corruptions as a stimulus."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lit_robust.core.errors import UserError
from lit_robust.core.seeds import stream_seed
from lit_robust.stimuli.corruption_names import ALL_CORRUPTIONS, SEVERITIES
from lit_robust.stimuli.stimulus import Origin, Stimulus, check_images, check_seed

if TYPE_CHECKING:
    from torch import Tensor

    from lit_robust.stimuli.corruptions import FrostPictures


@dataclass(frozen=True, kw_only=True)
class Corrupted(Stimulus):
    """An image under a corruption of ImageNet-C (Hendrycks and Dietterich 2019).

    Attributes:
        corruption: one of the 19
        severity: 1 to 5
        seed: of all draws; each image has a stream of its own, by its place in the set, the same in every corruption
        frost: folder with ImageNet-C's frost pictures; null draws frost
    """

    corruption: str
    severity: int = 3
    seed: int = 0
    frost: Path | None = None
    kind: ClassVar[str] = "corrupted"

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.corruption not in ALL_CORRUPTIONS:
            raise UserError(f"There is no corruption {self.corruption!r}: choose one of {', '.join(ALL_CORRUPTIONS)}.")
        if self.severity not in SEVERITIES:
            raise UserError(f"Severity {self.severity} does not exist: choose 1 to 5.")

    @cached_property
    def pictures(self) -> "FrostPictures | None":
        """The pictures of frost; None where it is drawn."""
        from lit_robust.stimuli.corruptions import FrostPictures

        return None if self.frost is None else FrostPictures(self.frost)

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Stimulus.settings`; ``frost`` is the digest of the pictures."""
        digest = None if self.pictures is None else frost_digest(self.pictures)
        return {"corruption": self.corruption, "severity": self.severity, "seed": self.seed, "frost": digest}

    def make(self, images: "Tensor", origins: Sequence[Origin]) -> "Sequence[Tensor]":
        """Corrupt each image; see `Stimulus.make`."""
        from lit_robust.stimuli.corruptions import corrupt

        check_images(images, origins)
        seeds = [stream_seed(self.seed, "corruption", origin.number) for origin in origins]
        return list(corrupt(images, self.corruption, self.severity, seeds, self.pictures))


def frost_digest(frost: "FrostPictures") -> str:
    """Return sha256, in hexadecimal, over the pixels of frost pictures, wherever they lie."""
    digest = hashlib.sha256()
    for picture in frost.pictures:
        digest.update(json.dumps(picture.shape).encode() + picture.numpy().tobytes())
    return digest.hexdigest()
