"""`lit-robust data filter ...`: natural adversarial examples and anomalies from a pool, and their review."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lit_robust.cli.options import Count, Seed
from lit_robust.cli.ranks import ranks
from lit_robust.core.errors import UserError

Fraction = float
Networks = Mapping[str, Any]
Numbers = tuple[int, ...]
FOUND = "filtration.json"


def data_filter_hard(
    pool: Path,
    output: Path,
    *,
    networks: Networks,
    split: str = "val",
    to_split: str = "test",
    classes: str = "all",
    resize: Count | None = 256,
    crop: Count = 224,
    crops: Literal["ten", "centre"] = "ten",
    most_confidence: Fraction = 0.15,
    per_confusion: Count = 15,
    batch_size: Count = 32,
    workers: Seed = 2,
    shard_size: Count = 1000,
    heat_layer: str | None = None,
) -> None:
    """Keep the images of a labelled pool that every network gets wrong, as ImageNet-A was made.

    The same command again goes on where a killed one was; `torchrun --nproc-per-node 4 -m lit_robust data filter ...`
    shares the pool among processes. A review sheet is written next to the shards.

    Args:
        pool: folder of shards with labels; images that a network was trained on filter themselves away
        output: folder for the shards, filtration.json and the review sheet
        networks: "{NAME: {name: torchvision/resnet50, weights: pretrained}}" and more; the first one's answers count
            for the confusions
        split: of the pool
        to_split: of what is kept
        classes: all of the networks'; imagenet-a or imagenet-o, those 200; or numbers, as 3,5,8; a network with as many
            outputs has these classes alone, of another the logits of these are taken
        resize: shorter side first, pixels; null for none
        crop: side of each crop, pixels
        crops: ten: corners and centre, and mirrored; or centre
        most_confidence: an image leaves where a crop gives the true class more, a fraction
        per_confusion: images of one class that are given one answer, the least confident first
        batch_size: images at a time, each with its crops
        workers: processes that decode
        shard_size: images a tar
        heat_layer: layer of the first network whose Grad-CAM stands on the review sheet (needs captum); null for none
    """
    from lit_robust.data.filtration import FilterCrops, hard_images
    from lit_robust.data.loading.splits import Reading, open_table

    cuts = FilterCrops(resize, crop, crops)
    opened = open_table(pool, split, Reading())
    settings = {"most_confidence": most_confidence, "per_confusion": per_confusion}
    _filter(
        opened,
        output,
        networks,
        kind="hard",
        rule=lambda answers: hard_images(opened.table.label, answers, most_confidence, per_confusion),
        settings={"classes": classes, **settings},
        chosen=_classes(classes),
        cuts=cuts,
        to_split=to_split,
        sizes=(batch_size, workers, shard_size),
        heat_layer=heat_layer,
    )


def data_filter_anomalies(
    pool: Path,
    output: Path,
    *,
    networks: Networks,
    split: str = "val",
    to_split: str = "test",
    classes: str = "all",
    resize: Count | None = 256,
    crop: Count = 224,
    least_confidence: Fraction = 0.5,
    known: Literal["imagenet", "none"] = "imagenet",
    batch_size: Count = 32,
    workers: Seed = 2,
    shard_size: Count = 1000,
    heat_layer: str | None = None,
) -> None:
    """Keep the images of a pool of other classes that every network takes for one it knows, as ImageNet-O was made.

    Args:
        pool: folder of shards; they need no labels
        output: folder for the shards, filtration.json and the review sheet
        networks: "{NAME: {name: torchvision/resnet50, weights: pretrained}}" and more
        split: of the pool
        to_split: of what is kept
        classes: among which the networks answer: all; imagenet-a or imagenet-o; or numbers, as 3,5,8
        resize: shorter side first, pixels; null for none
        crop: then the centre, pixels
        least_confidence: in the answer, of every network, a fraction; the paper names none
        known: imagenet: images whose names hold a WordNet id of its 1,000 classes leave first; none
        batch_size: images at a time
        workers: processes that decode
        shard_size: images a tar
        heat_layer: layer of the first network whose Grad-CAM stands on the review sheet (needs captum); null for none
    """
    from lit_robust.data.filtration import FilterCrops, anomalous_images
    from lit_robust.data.loading.splits import Reading, open_index, table_split
    from lit_robust.reference import imagenet_wnids

    opened = table_split(open_index(pool, split, Reading()), split)
    keys = [opened.table.key(number) for number in range(len(opened))]
    leave_out = imagenet_wnids() if known == "imagenet" else ()
    _filter(
        opened,
        output,
        networks,
        kind="anomalies",
        rule=lambda answers: anomalous_images(keys, answers, least_confidence, leave_out),
        settings={"classes": classes, "least_confidence": least_confidence, "known": known},
        chosen=_classes(classes),
        cuts=FilterCrops(resize, crop, "centre"),
        to_split=to_split,
        sizes=(batch_size, workers, shard_size),
        heat_layer=heat_layer,
    )


def data_filter_apply(
    source: Path,
    decisions: Path,
    output: Path,
    *,
    split: str = "test",
    undecided: Literal["keep", "drop"] = "drop",
    shard_size: Count = 1000,
) -> None:
    """Write the images that a person kept on a review sheet.

    Args:
        source: folder that `data filter` wrote
        decisions: the file that the review sheet saved
        output: folder for the shards
        split: of both
        undecided: what becomes of images without a decision: keep or drop
        shard_size: images a tar
    """
    from lit_robust.data.loading.splits import Reading, open_index, table_split
    from lit_robust.data.packing.selection import write_selection
    from lit_robust.report.review import read_decisions

    opened = table_split(open_index(source, split, Reading()), split)
    keys = [opened.table.key(number) for number in range(len(opened))]
    digest = opened.protocol["shards_sha256"]
    made = read_decisions(decisions, digest, keys)
    kept = [number for number, key in enumerate(keys) if made.get(key, undecided) == "keep"]
    counts = {said: sum(one == said for one in made.values()) for said in ("keep", "drop")}
    by = {"kind": "reviewed", "of": digest, **counts, "undecided": len(keys) - len(made), "undecided_are": undecided}
    write_selection(opened, kept, output, split, by, shard_size)
    print(f"Kept {len(kept):,} of {len(keys):,} images in {output} ({len(made):,} decided, the others: {undecided}).")


def data_filter_split(
    source: Path,
    output: Path,
    *,
    split: str = "test",
    fraction: Fraction = 0.8,
    seed: Seed = 0,
    shard_size: Count = 1000,
) -> None:
    """Write a set's images as a split to train on and one to validate on, to fine-tune on natural adversarial examples.

    Args:
        source: folder of shards, such as data/imagenet-a
        output: folder for the splits train and val
        split: of the source
        fraction: of each class's images that go to train, drawn at random
        seed: of the draw
        shard_size: images a tar
    """
    from lit_robust.data.loading.splits import Reading, open_table
    from lit_robust.data.packing.selection import two_parts, write_selection

    opened = open_table(source, split, Reading())
    by = {"kind": "split", "of": opened.protocol["shards_sha256"], "fraction": fraction, "seed": seed}
    for name, numbers in zip(("train", "val"), two_parts(opened.table.label, fraction, seed), strict=True):
        write_selection(opened, numbers.tolist(), output, name, {**by, "part": name}, shard_size)
        print(f"Wrote {len(numbers):,} images to {output} ({name}).")


def data_filter_transfer(
    pool: Path,
    output: Path,
    *,
    command: str,
    networks: Networks,
    split: str = "val",
    classes: str = "all",
    resize: Count | None = 256,
    crop: Count = 224,
    crops: Literal["ten", "centre"] = "ten",
    most_confidence: Fraction = 0.15,
    per_confusion: Count = 15,
    batch_size: Count = 32,
    workers: Seed = 2,
) -> None:
    """Measure whether images that one network filtered fool the others: each filters alone, each is tested on each set.

    Take a pool that none of them trained on. results.json holds, for each pair, the accuracy on the filtered set over
    that on images of the pool of the same classes: 0 where all errors transfer, 1 where none does; and how widely each
    network's errors on a class are spread over the others, the mean over classes.

    Args:
        pool: folder of shards with labels
        output: folder for results.json and the networks' answers
        command: the command line
        networks: "{NAME: {name: torchvision/resnet50, weights: pretrained}}" and more
        split: of the pool
        classes: all of the networks'; imagenet-a or imagenet-o, those 200; or numbers, as 3,5,8
        resize: shorter side first, pixels; null for none
        crop: side of each crop, pixels
        crops: ten: corners and centre, and mirrored; or centre
        most_confidence: an image leaves where a crop gives the true class more, a fraction
        per_confusion: images of one class that are given one answer, the least confident first
        batch_size: images at a time, each with its crops
        workers: processes that decode
    """
    from dataclasses import asdict

    from lit_robust.core.results import Result, RunResults
    from lit_robust.data.filtration import FilterCrops, FilterNetwork, hard_images
    from lit_robust.data.loading.splits import Reading, open_table
    from lit_robust.metrics.shift import mean_error_entropy, transfer

    cuts, opened = FilterCrops(resize, crop, crops), open_table(pool, split, Reading())
    with ranks() as (rank, world):
        filters = [FilterNetwork(name, _built(name, given), _classes(classes)) for name, given in networks.items()]
        answers = _asked(filters, opened, output, cuts, batch_size, workers, rank, world)
    if rank > 0:
        return
    labels = opened.table.label
    protocol = {
        "crops": asdict(cuts),
        "most_confidence": most_confidence,
        "per_confusion": per_confusion,
        "pool": {"images": len(opened), "shards_sha256": opened.protocol.get("shards_sha256")},
    }
    results = []
    for one, own in zip(filters, answers, strict=True):
        left = hard_images(labels, [own], most_confidence, per_confusion)[-1].left.tolist()
        print(f"{one.name}: {len(left):,} of {len(opened):,} images are hard")
        if (spread := mean_error_entropy(labels, own.predicted)) is not None:
            own_facets = {"measure": "error_entropy", "tested": one.name}
            more, name = {**protocol, "tested": one.described}, f"error_entropy_{one.name}"
            results.append(
                Result(pool.name, name, spread.value, "of its maximum", spread.count, more, spread.interval, own_facets)
            )
        for other, theirs in zip(filters, answers, strict=True) if left else ():
            found = transfer(labels, theirs.predicted.numpy() == labels, left)
            facets = {"filter": one.name, "tested": other.name}
            more = {**protocol, "filter": one.described, "tested": other.described, "matched_top1": found.matched}
            name = f"{one.name}_fools_{other.name}"
            low, high = found.interval or (0.0, 0.0)
            ends = (low / found.matched, high / found.matched) if found.interval and found.matched else None
            for metric, value, unit, interval in (
                (f"top1_{name}", found.accuracy, "fraction", found.interval),
                (f"ratio_{name}", found.ratio, "ratio", ends),
            ):
                own_facets = {"measure": metric.split("_")[0], **facets}
                results.append(
                    Result(f"hard-of-{pool.name}", metric, value, unit, found.count, more, interval, own_facets)
                )
            print(f"  {other.name}: {found.accuracy:.3f} there, {found.matched:.3f} on the same classes")
    RunResults({"name": output.resolve().name, "command": command}, {}, results).save(output)
    print(f"Wrote {output / 'results.json'}. Next: `lit-robust report {output}` shows it.")


def _classes(words: str) -> Numbers:
    from lit_robust.reference import imagenet_subset

    if words == "all":
        return ()
    if words.startswith("imagenet-"):
        return imagenet_subset(words)
    try:
        return tuple(sorted({int(word) for word in words.strip("[]").split(",")}))
    except ValueError as error:
        raise UserError(f"classes is {words!r}: give all, imagenet-a, imagenet-o, or numbers, as 3,5,8.") from error


def _filter(
    pool: Any,
    output: Path,
    networks: Networks,
    *,
    kind: str,
    rule: Any,
    settings: Mapping[str, Any],
    chosen: Numbers,
    cuts: Any,
    to_split: str,
    sizes: tuple[int, int, int],
    heat_layer: str | None,
) -> None:
    """Ask the networks, apply the rule, and write the shards, what each stage left, and the review sheet."""
    from dataclasses import asdict

    from lit_robust.cli.review_sheet import write_review
    from lit_robust.core.files import write_text
    from lit_robust.data.filtration import FilterNetwork, stage_counts
    from lit_robust.data.packing.selection import write_selection
    from lit_robust.shards.info import read_info

    if to_split in read_info(output)[1].get("splits", {}):
        raise UserError(f"{output} has the split {to_split} already: choose another output, or remove it.")
    if not networks:
        raise UserError("No network filters: name at least one with --networks.")
    batch_size, workers, shard_size = sizes
    with ranks() as (rank, world):
        filters = [FilterNetwork(name, _built(name, given), chosen) for name, given in networks.items()]
        answers = _asked(filters, pool, output, cuts, batch_size, workers, rank, world)
    if rank > 0:
        return
    stages = rule(answers)
    made_by = {
        "kind": f"filtered, {kind}",
        "networks": [one.described for one in filters],
        "crops": asdict(cuts),
        **settings,
        "pool": {"images": len(pool), "shards_sha256": pool.protocol.get("shards_sha256")},
    }
    left = stages[-1].left.tolist()
    counts = stage_counts(stages, pool.table.label, pool.class_names)
    for count in counts:
        print(f"{count['left']:>9,} {count['stage']}")
    write_selection(pool, left, output, to_split, made_by, shard_size)
    images = [
        {
            "key": pool.table.key(number),
            "label": int(pool.table.label[number]),
            "predicted": [int(one.predicted[number]) for one in answers],
            "true_confidence": [round(float(one.confidence[number]), 6) for one in answers],
            "highest_confidence": [round(float(one.highest[number]), 6) for one in answers],
        }
        for number in left
    ]
    write_text(output / FOUND, json.dumps({**made_by, "stages": counts, "images": images}, indent=1) + "\n")
    write_review(output, to_split, pool.class_names, images, filters[0], cuts, heat_layer)
    print(f"Wrote {len(left):,} images to {output}. Next: open {output / 'review.html'}, and choose by keyboard.")


def _asked(
    filters: Sequence[Any],
    pool: Any,
    output: Path,
    cuts: Any,
    batch_size: int,
    workers: int,
    rank: int,
    world: int,
) -> list[Any]:
    """Return the answers of each network, kept in a folder below the output for the same call after a kill."""
    from lit_robust.data.filtration import ask

    files = [
        output / "answers" / f"{place}-{one.described['weights_sha256'][:16]}.safetensors"
        for place, one in enumerate(filters)
    ]
    return [
        ask(one, pool, cuts, batch_size=batch_size, num_workers=workers, file=file, rank=rank, world=world)
        for one, file in zip(filters, files, strict=True)
    ]


def _built(name: str, given: Any) -> Any:
    import torch

    from lit_robust.cli.study import network_of
    from lit_robust.models import build_classifier

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not isinstance(given, Mapping):
        raise UserError(f"The network {name} is {given!r}: give its settings, as {{name: torchvision/resnet50}}.")
    return build_classifier(network_of(given, f"networks.{name}")).eval().to(device)
