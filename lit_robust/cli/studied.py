"""The options that most ``lit-robust analyze`` commands share, and what they open."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_robust.cli.options import Count

if TYPE_CHECKING:
    from lit_robust.analysis.images import Images
    from lit_robust.cli.study import Study


@dataclass(frozen=True)
class Studied:
    """A network, the images of a set that it is studied on, and where what is found goes.

    Attributes:
        output: folder for results.json, arrays and pictures
        images: how many, drawn once and for all
        network: name, num_classes, weights, mean and std, as of --model.network; a .ckpt of `lit-robust fit` as weights
            says the rest itself
        split: of the set
        resize: shorter side first, pixels; null for none
        crop: then the centre, pixels; null for none
        batch: images at once
    """

    output: Path
    images: Count
    network: Mapping[str, Any] = field(default_factory=dict)
    split: str = "val"
    resize: Count | None = 256
    crop: Count | None = 224
    batch: Count = 32

    def open(self, data: Path) -> "Images":
        """Open the images of a set.

        Raises:
            UserError: there are no such shards.
        """
        from lit_robust.analysis.images import Images
        from lit_robust.data.loading.transforms import EvaluationCrop

        images = Images.open(data, self.split, EvaluationCrop(self.resize, self.crop), self.images)
        if len(images) < self.images:
            print(
                f"warning: {data} has {len(images)} images of {self.split}: all are taken, not {self.images}.",
                file=sys.stderr,
            )
        return images

    def begin(self, name: str, command: str) -> "Study":
        """Return the study, whose network is not built yet.

        Raises:
            UserError: a setting of the network does not fit.
        """
        from lit_robust.cli.study import Study, network_of

        return Study(name, self.output, command, network_of(self.network))
