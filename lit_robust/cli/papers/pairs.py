"""Chen, Agarwal & Nguyen 2020, Table 3 and Figure 3: pairs of networks on images with one cue less."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_robust.cli.options import Count
from lit_robust.cli.papers.networks import SHAPE, Networks
from lit_robust.cli.papers.runs import Command, overlay, part, recipes, run
from lit_robust.core.errors import UserError

PAIRS: Mapping[str, Sequence[str]] = {
    "alexnet": ["alexnet-standard", "alexnet-robust"],
    "googlenet": ["googlenet-standard", "googlenet-robust"],
    "resnet50": ["resnet50-standard", "resnet50-robust"],
}
SIXTEEN: Mapping[str, Sequence[int]] = {}  # What CategoryAccuracy takes where nothing is said.


def shape_table_3(
    output: Path,
    /,
    *,
    data: str = "data",
    networks: Networks = SHAPE,
    pairs: Mapping[str, Sequence[str] | None] = PAIRS,
    grids: Sequence[int] = (2, 4, 8),
    seed: int = 0,
    stylised: str = "stylized-imagenet",
    silhouettes: str = "silhouettes",
    eps: float = 3.0,
    step_size: float = 0.5,
    steps: Count = 7,
    attacked: Count | None = None,
    categories: Mapping[str, Sequence[int]] = SIXTEEN,
    resize: Count | None = 256,
    crop: Count | None = 224,
    workers: int = 8,
    base: str = "eval/quick",
) -> list[Command]:
    """Chen, Agarwal & Nguyen 2020, Table 3 and Figure 3: pairs of networks on shape-less and texture-less images.

    Each pair is tested on the images that both get right as they are. Scrambled, black-and-white and edge images are
    made as they are loaded; stylised images and silhouettes are taken where `data derive` wrote them. The paired
    difference of two networks on the same images stands last.

    Args:
        output: folder of the runs
        data: root of the sets; imagenet/ and, where they are there, the stylised images and silhouettes
        networks: name to a network: name, num_classes, weights, mean, std; as in
            --networks.resnet50-robust.weights FILE
        pairs: name of a pair to the names of its standard and its robust network; null leaves a pair out
        grids: patches a side of the scrambled images; each must divide the crop
        seed: of the scrambled images
        stylised: folder of the stylised images
        silhouettes: folder of the silhouettes
        eps: of PGD in L2, in [0, 1] pixel units
        step_size: of PGD, in the units of eps
        steps: of PGD
        attacked: images that are attacked; null for all
        categories: name to classes, by which silhouettes are scored; {} for the 16 in ImageNet's classes
        resize: shorter side first, pixels; null for none
        crop: then the centre, pixels; null for none
        workers: processes a rank
        base: recipe of logger, devices and whatever else does not follow from here
    """
    kept = {name: list(pair) for name, pair in pairs.items() if pair is not None}
    for name, pair in kept.items():
        if len(pair) != 2 or not all(networks.get(one) is not None for one in pair):
            raise UserError(
                f"The pair {name} is {pair}: name a standard and a robust network of --networks, or set it to null."
            )
    used = dict.fromkeys(one for pair in kept.values() for one in pair)
    images = {"evaluation": {"resize": resize, "crop": crop}, "num_workers": workers}
    clean = [
        part("callbacks.CleanAccuracy", {"dataset": "imagenet"}),
        part("callbacks.CorrectSamples", {"dataset": "imagenet"}),
    ]
    suite = {"members": [part("data.ImageNetDataModule", images)]}
    words = ["test", *recipes(base, _overlay(output, "clean", clean, suite)), "--data.root", data, "--model.network"]
    runs = [run(f"clean-{one}", *words, networks[one]) for one in used]
    members = [*suite["members"], *_derived(grids, seed, images)]
    written = {"evaluation": {"resize": None, "crop": crop}, "num_workers": workers}
    members += [part("data.DerivedDataModule", {"name": name, **written}) for name in (stylised, silhouettes)]
    made = [str(member["init_args"]["name"]) for member in members[1:]]
    attack = part("attacks.PGD", {"norm": "l2", "eps": eps, "step_size": step_size, "steps": steps})
    adversarial = {"dataset": "imagenet", "attack": attack, **({} if attacked is None else {"limit": attacked})}
    measures = [part("callbacks.AdversarialAccuracy", adversarial)]
    for name in ("imagenet", *made):
        measures += [part(f"callbacks.{kind}", {"dataset": name}) for kind in ("CleanAccuracy", "KeepPredictions")]
    known = {"dataset": silhouettes, "categories": dict(categories) or None}
    measures.append(part("callbacks.CategoryAccuracy", known))
    measures.append(part("callbacks.CueExamples", {"sets": made}))
    for name, pair in kept.items():
        lists = [str(output / f"clean-{one}" / "correct-imagenet.json") for one in pair]
        both = [part("callbacks.SampleRestriction", {"files": lists, "dataset": one}) for one in ("imagenet", *made)]
        settings = _overlay(output, name, [*both, *measures], {"missing": "skip", "members": members})
        words = ["test", *recipes(base, settings), "--data.root", data, "--model.network"]
        standard, robust = pair
        runs.append(run(f"{name}-{standard}", *words, networks[standard]))
        # The robust network's values less the standard one's, which its test kept.
        less = [
            part("callbacks.PairedDifference", {"run": str(output / f"{name}-{standard}"), "dataset": one})
            for one in ("imagenet", *made)
        ]
        beyond = overlay(output, f"{name}-paired", {"trainer": {"callbacks+": less}})
        words = ["test", *recipes(base, settings, beyond), "--data.root", data, "--model.network"]
        runs.append(run(f"{name}-{robust}", *words, networks[robust]))
        runs.append(run(f"{name}-paired", "paired", *(output / f"{name}-{one}" for one in pair)))
    return runs


def _derived(grids: Sequence[int], seed: int, images: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the data modules of the sets that are made as they are loaded."""
    made = {f"scrambled-{grid}": ("scrambled.Scrambled", {"grid": grid, "seed": seed}) for grid in grids} | {
        "black-and-white": ("textureless.BlackAndWhite", {}),
        "edges": ("textureless.Edges", {}),
    }
    return [
        part("data.StimulusDataModule", {"name": name, "stimulus": part(f"stimuli.{kind}", settings), **images})
        for name, (kind, settings) in made.items()
    ]


def _overlay(output: Path, name: str, callbacks: Sequence[Mapping[str, Any]], suite: Mapping[str, Any]) -> str:
    settings = {"trainer": {"callbacks": callbacks}, "data": part("data.RobustnessSuite", suite)}
    return overlay(output, name, settings)
