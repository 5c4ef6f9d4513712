"""``lit-robust analyze inversion`` and its like: studies of representations; typed functions, as in ``commands``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_robust.cli.options import Count, Seed, made
from lit_robust.cli.studied import Studied

if TYPE_CHECKING:
    from lit_robust.analysis.ascent import Settings
    from lit_robust.analysis.representations import Subject
    from lit_robust.cli.study import Study

AS_IT_IS: Mapping[str, Any] = {}
INVERSION: Mapping[str, Any] = {"norm": "l2", "step_size": 1.0, "steps": 10_000, "precision": "fp32"}
VISUALISATION: Mapping[str, Any] = {**INVERSION, "steps": 200}
MANIPULATION: Mapping[str, Any] = {**INVERSION, "step_size": 0.1, "steps": 800}


@dataclass(frozen=True)
class SearchSettings:
    """A representation, and how images are searched for that have another one.

    Attributes:
        layer: of the representation; null for what the last linear layer is given
        search: norm, step_size (in [0, 1] pixel units of the norm), steps, and precision: fp32, or bf16, in which a
            distance comes no nearer than about 0.01
        rectified: leave the gradient of the last ReLU as it is; the paper lets the gradient pass
        seed: of the noise
    """

    search: Mapping[str, Any]
    layer: str | None = None
    rectified: bool = False
    seed: Seed = 0

    def settings(self) -> "Settings":
        """Return the settings of the search.

        Raises:
            UserError: one does not fit.
        """
        from lit_robust.analysis.ascent import Settings

        return made(Settings, "search", self.search)


def analyze_inversion(
    data: Path,
    *,
    command: str,
    judge: Mapping[str, Any] = AS_IT_IS,
    starts: Literal["noise", "images"] = "noise",
    repeats: Count = 2,
    within: Sequence[float] = (),
    studied: Studied = Studied(Path("runs/inversion"), images=64),
    how: SearchSettings = SearchSettings(INVERSION),
) -> None:
    """Search for images that have the representations of others (Engstrom et al. 2019, section 4.1).

    Any set may be inverted, one of other classes than the network's too. A call that was interrupted goes on.

    Args:
        data: folder of the set's shards, such as data/imagenet
        command: the command line
        judge: a second network, likewise, that says what it sees in the inversions; as it is for none
        images: how many are inverted, drawn once and for all
        starts: noise around grey; or images, for each target another one of the set, of another class
        repeats: inversions from different noise; 2 or more to tell how much they depend on it
        within: largest distances from the start, [0, 1] pixel units of the norm, each a search of its own (Figure 4)
        studied: the network, and the images
        how: which representation, and the search
    """
    from lit_robust.analysis.representations import inversion_study, within_eps

    settings = how.settings()
    for eps in within:
        within_eps(settings, eps)
    study, subject = _opened("inversion", data, command, studied, how, judge)
    study.finish(inversion_study(subject, starts, repeats, within, settings))


def analyze_interpolation(
    data: Path,
    *,
    command: str,
    judge: Mapping[str, Any] = AS_IT_IS,
    points: Count = 10,
    studied: Studied = Studied(Path("runs/interpolation"), images=16),
    how: SearchSettings = SearchSettings(INVERSION),
) -> None:
    """Go from image to image through the representation, with the mean of their pixels (section A.5, Figure 12).

    Args:
        data: folder of the set's shards, such as data/imagenet
        command: the command line
        judge: a second network, likewise, that says what it sees on the way; as it is for none
        images: how many paths; each leads to an image of another class
        points: of a path, both ends among them
        seed: recorded; nothing is drawn
        studied: the network, and the images
        how: which representation, and the search
    """
    from lit_robust.analysis.representations import interpolation_study

    settings = how.settings()
    study, subject = _opened("interpolation", data, command, studied, how, judge)
    study.finish(interpolation_study(subject, points, settings))


def analyze_visualisation(
    data: Path,
    *,
    command: str,
    judge: Mapping[str, Any] = AS_IT_IS,
    units: Sequence[int] = (),
    count: Count = 16,
    starts: Count = 4,
    studied: Studied = Studied(Path("runs/visualisation"), images=512),
    how: SearchSettings = SearchSettings(VISUALISATION),
) -> None:
    """Raise units of a representation from images and from noise, without any prior (section 4.2, Figures 7 and 8).

    Args:
        data: folder of the set's shards, such as data/imagenet
        command: the command line
        judge: a second network, likewise, that says what it sees in the images; as it is for none
        images: among which those are found that excite a unit most
        units: which are raised, from 0; [] to draw some
        count: units that are drawn of those that some image excites
        starts: images, and as many of noise, that each unit is raised from
        seed: of noise and units
        studied: the network, and the images
        how: which representation, and the search
    """
    from lit_robust.analysis.representations import visualisation_study

    settings = how.settings()
    study, subject = _opened("visualisation", data, command, studied, how, judge)
    study.finish(visualisation_study(subject, units, count, starts, settings))


def analyze_manipulation(
    data: Path,
    *,
    command: str,
    units: Sequence[int] = (),
    count: Count = 4,
    rule: Literal["text", "code"] = "text",
    studied: Studied = Studied(Path("runs/manipulation"), images=8),
    how: SearchSettings = SearchSettings(MANIPULATION),
) -> None:
    """Add a feature to images and leave the rest of them (section 4.2.1, Figure 11).

    Args:
        data: folder of the set's shards, such as data/imagenet
        command: the command line
        images: that each feature is added to
        units: the features, from 0; [] to draw some
        count: features that are drawn of those that some image has
        rule: text: it ends as soon as the feature is the highest of all; code: as soon as it is 1, as the paper's code
            has it
        seed: of the units
        studied: the network, and the images
        how: which representation, and the search
    """
    from lit_robust.analysis.representations import manipulation_study

    settings = how.settings()
    study, subject = _opened("manipulation", data, command, studied, how, {})
    study.finish(manipulation_study(subject, units, count, studied.images, rule, settings))


def _opened(
    name: str, data: Path, command: str, studied: Studied, how: SearchSettings, judge: Mapping[str, Any]
) -> "tuple[Study, Subject]":
    """Open all that a study of representations begins with; the images first, for they are quick to be wrong."""
    from lit_robust.analysis.inversion import Work
    from lit_robust.analysis.representation import Representation
    from lit_robust.analysis.representations import Subject
    from lit_robust.cli.study import network_of
    from lit_robust.models import build_classifier

    images = studied.open(data)
    study = studied.begin(name, command)
    taken, labels = images.whole()
    second = build_classifier(network_of(judge, "judge")).eval().to(study.device) if judge else None
    represent = Representation.of(study.build(), taken[:1].to(study.device), how.layer, not how.rectified)
    return study, Subject(
        represent=represent,
        images=taken,
        labels=labels,
        names=images.class_names,
        dataset=images.name,
        protocol={**images.protocol, "seed": how.seed, "judge": dict(judge) or None},
        judge=second,
        seed=how.seed,
        work=Work(studied.batch, study.output / "parts", progress=True),
    )
