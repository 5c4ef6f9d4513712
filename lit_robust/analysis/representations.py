"""The studies of representations whole: from a network and images to values, arrays and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_robust.analysis.ascent import Settings, noise_starts
from lit_robust.analysis.interpolation import interpolate, path_measures
from lit_robust.analysis.inversion import (
    Inversions,
    Measured,
    Work,
    distance_left,
    in_batches,
    invert,
    measures,
    opinions,
    other_class,
    start_invariance,
)
from lit_robust.analysis.outcome import Outcome
from lit_robust.analysis.pictures import as_levels, labelled_grid
from lit_robust.analysis.representation import Representation
from lit_robust.analysis.visualisation import (
    Rule,
    drawn_units,
    exciting,
    manipulate,
    manipulation_measures,
    visualisation_measures,
    visualise,
)
from lit_robust.core.results import Result
from lit_robust.metrics.intervals import mean_of

Starts = Literal["noise", "images"]
SHOWN = 8  # columns of a picture


@dataclass(frozen=True)
class Subject:
    """What is studied, and on what.

    Attributes:
        represent: the network's representation.
        images: float32 ``[N, C, H, W]`` in [0, 1].
        labels: int64 ``[N]``; -1 where a set has no classes.
        names: what to call each image's class.
        dataset: name of the set.
        protocol: which images these are, and the seed.
        judge: a second network, images in [0, 1] to logits; None for none.
        seed: of noise and of units that are drawn.
        work: batches, and where they are kept.
    """

    represent: Representation
    images: Tensor
    labels: Tensor
    names: Sequence[str]
    dataset: str
    protocol: Mapping[str, Any]
    judge: nn.Module | None
    seed: int = 0
    work: Work = field(default_factory=Work)

    def noise(self, stream: int = 0) -> Tensor:
        """Return noise for each image to start from; each stream gives other noise."""
        channels, height, width = self.images.shape[1:]
        return noise_starts((channels, height, width), list(range(len(self.images))), self.seed + stream)

    def results(
        self, study: str, measured: Sequence[Measured], settings: Settings, warnings: Sequence[str] = (), **facets: Any
    ) -> list[Result]:
        """Return what was measured as results, with the protocol of this subject."""
        more = ["In bf16 a distance of about 0.01 is rounding."] if settings.precision == "bf16" else []
        protocol = {**self.protocol, **self.represent.protocol(), **asdict(settings)}
        ending = "".join(f"_{value:g}" if isinstance(value, float) else f"_{value}" for value in facets.values())
        return [
            Result(
                dataset=self.dataset,
                metric=f"{study}_{one.measure}{ending}",
                value=one.estimate.value,
                unit=one.unit,
                count=one.estimate.count,
                protocol=protocol,
                interval=one.estimate.interval,
                facets={"measure": f"{study}_{one.measure}", **facets},
                warnings=(*more, *warnings),
            )
            for one in measured
        ]


def _stuck(inverted: Inversions) -> list[str]:
    """Return a warning where images never moved."""
    count = int((inverted.vanished == inverted.steps).sum()) if inverted.steps else 0
    return [f"The gradient was zero at every step for {count} of {len(inverted.after)} images."] if count else []


def inversion_study(
    subject: Subject, starts: Starts, repeats: int, within: Sequence[float], settings: Settings
) -> Outcome:
    """Invert the representation of each image, and measure how near that comes (Figures 3 to 6).

    Args:
        subject: network, images, judge.
        starts: ``noise``, or ``images``: for each target another image of the set, of another class.
        repeats: inversions from different noise, 2 or more to tell how much they depend on it; of ``images`` 1.
        within: largest distances from the start, in the norm of the settings; each is a search of its own.
        settings: of the search that no distance bounds.
    """
    images = subject.images
    sources = images[other_class(subject.labels)] if starts == "images" else None
    found = [
        invert(
            subject.represent,
            images,
            subject.noise(number) if sources is None else sources,
            settings,
            subject.work,
            f"inversion-{starts}-{number}",
        )
        for number in range(repeats if sources is None else 1)
    ]
    first, judged = found[0], subject.judge is not None and bool((subject.labels >= 0).all())
    measured = measures(first)
    if subject.judge is not None and judged:
        measured += opinions(subject.judge, first, subject.labels, subject.work.batch)
    if len(found) > 1:
        measured.append(Measured("start_invariance", mean_of(start_invariance(found[0], found[1])), "ratio"))
    results = subject.results("inversion", measured, settings, _stuck(first), start=starts)
    rows = {"target": images[:SHOWN], "start": first.starts[:SHOWN], "inversion": first.images[:SHOWN]}
    if len(found) > 1:
        rows["other start"] = found[1].images[:SHOWN]
    arrays = {
        "images": torch.from_numpy(as_levels(first.images)),
        "representation_distance": first.after,
        "representation_distance_of_start": first.before,
    }
    for eps in within:
        near = within_eps(settings, eps)
        one = invert(subject.represent, images, first.starts, near, subject.work, f"inversion-{starts}-within-{eps:g}")
        measured = [
            Measured("representation_distance", mean_of(one.after), "ratio"),
            Measured("distance_left", mean_of(distance_left(one)), "ratio"),
        ]
        if subject.judge is not None and judged:
            measured += opinions(subject.judge, one, subject.labels, subject.work.batch)[:1]
        results += subject.results("inversion_within", measured, near, _stuck(one), start=starts, eps=float(eps))
        rows[f"within {eps:g}"] = one.images[:SHOWN]
        arrays[f"representation_distance_within_{eps:g}"] = one.after
    caption = f"Inversions of {subject.represent.layer or 'the penultimate layer'}, from {starts}"
    return Outcome(
        results,
        arrays,
        pictures={"inversion": labelled_grid(rows, subject.names[:SHOWN])},
        captions={"inversion": caption},
    )


def within_eps(settings: Settings, eps: float) -> Settings:
    """Return the settings of a search as long, within a distance of its start.

    Raises:
        UserError: the distance is none.
    """
    # The step size that MadryLab/robustness advises: with it a search can cross the ball and settle.
    return Settings(settings.norm, eps, 2.5 * eps / max(settings.steps, 2), settings.steps, settings.precision)


def interpolation_study(subject: Subject, points: int, settings: Settings) -> Outcome:
    """Go from each image to another of another class through the representation, and through the pixels (Figure 12).

    Args:
        subject: network, images, judge.
        points: of a path, both ends among them.
        settings: of the search.
    """
    images, others = subject.images, other_class(subject.labels)
    paths = interpolate(subject.represent, images, images[others], points, settings, subject.work)
    ends = torch.stack([subject.labels, subject.labels[others]], 1)
    measured = path_measures(paths, subject.judge, ends, subject.work.batch)
    rows: dict[str, Tensor] = {}
    for number in range(min(3, len(images))):
        end = subject.names[int(others[number])]
        rows[f"{subject.names[number]} to {end}"] = paths.images[number]
        rows[f"{' ' * number}mean of pixels"] = paths.pixels[number]
    arrays = {
        "images": torch.from_numpy(as_levels(paths.images.flatten(0, 1))).view(*paths.images.shape[:2], *_last(images)),
        "representation_distance": paths.after,
        "representation_distance_of_pixel_mean": paths.before,
    }
    return Outcome(
        subject.results("interpolation", measured, settings),
        arrays,
        pictures={"interpolation": labelled_grid(rows, [f"{part:.2f}" for part in torch.linspace(0, 1, points)])},
        captions={"interpolation": "From image to image through the representation, with the mean of their pixels"},
    )


def _last(images: Tensor) -> tuple[int, int, int]:
    return images.shape[2], images.shape[3], images.shape[1]


def visualisation_study(
    subject: Subject, units: Sequence[int], count: int, per_unit: int, settings: Settings
) -> Outcome:
    """Raise units from images and from noise, next to the images that excite them most (Figures 7 and 8).

    Args:
        subject: network, images, judge.
        units: which; empty to draw some that are above 0 for some image.
        count: units that are drawn.
        per_unit: starts of each kind, and images that excite it most.
        settings: of the search.
    """
    chosen = _units(subject, units, count)
    starts = {"images": subject.images[:per_unit], "noise": subject.noise()[:per_unit]}
    top = exciting(subject.represent, subject.images, chosen, per_unit, subject.work.batch)
    results, rows = [], {}
    arrays: dict[str, Tensor] = {"units": chosen, "exciting": top}
    for kind, begun in starts.items():
        made = visualise(subject.represent, chosen, begun, settings, subject.work, f"visualisation-{kind}")
        arrays |= {f"before_{kind}": made.before, f"after_{kind}": made.after}
        measured = visualisation_measures(made, subject.judge, subject.labels[top], subject.work.batch)
        results += subject.results("visualisation", measured, settings, start=kind)
        rows[f"from {kind}"] = made.images[:SHOWN, 0]
        if per_unit > 1:
            rows[f"from other {kind}"] = made.images[:SHOWN, 1]
    rows["excited most by"] = subject.images[top[:SHOWN, 0]]
    names = [f"unit {unit}" for unit in chosen[:SHOWN].tolist()]
    return Outcome(
        results,
        arrays,
        pictures={"visualisation": labelled_grid(rows, names)},
        captions={"visualisation": "Units raised from images and from noise, and the image that excites each most"},
    )


def manipulation_study(
    subject: Subject, units: Sequence[int], count: int, per_unit: int, rule: Rule, settings: Settings
) -> Outcome:
    """Add features to images, and measure how far that takes them (Figure 11).

    Args:
        subject: network and images.
        units: which; empty to draw some that are above 0 for some image.
        count: units that are drawn.
        per_unit: images that each is added to.
        rule: when it ends; see ``manipulate``.
        settings: of the search.
    """
    chosen = _units(subject, units, count)
    made = manipulate(subject.represent, chosen, subject.images[:per_unit], settings, rule, subject.work)
    missed = int((~made.exceeds).sum())
    missing = (
        [f"In {missed} of {made.exceeds.numel()} images the feature did not become the highest."] if missed else []
    )
    shown = min(SHOWN, per_unit)
    rows = {"image": made.starts[:shown]}
    rows |= {f"unit {unit}": made.images[k, :shown] for k, unit in enumerate(chosen[:4].tolist())}
    return Outcome(
        subject.results("manipulation", manipulation_measures(made), settings, missing, rule=rule),
        {"units": chosen, "steps": made.steps, "before": made.before, "after": made.after},
        pictures={"manipulation": labelled_grid(rows, subject.names[:shown])},
        captions={"manipulation": "Features added to images"},
    )


def _units(subject: Subject, units: Sequence[int], count: int) -> Tensor:
    if units:
        return torch.tensor(list(units))
    return drawn_units(in_batches(subject.represent, subject.images, subject.work.batch), count, subject.seed)
