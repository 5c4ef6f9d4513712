"""Damage anywhere in a results file: one sentence, or the values that were written, and a report of them."""

import json
import math
import random
from pathlib import Path

import pytest

from lit_robust.core.errors import UserError
from lit_robust.core.results import Example, Result, RunResults
from lit_robust.report import compare, load_runs, terminal, write_report
from lit_robust.report.dashboard import plan

ATTACK = {"name": "PGD", "norm": "l2", "eps": 0.5, "step_size": 0.1, "steps": 3}
FACETS = {"measure": "adversarial_accuracy", "series": "adversarial_accuracy_l2", "norm": "l2", "eps": 0.5}
CELLS = {"cells": ["fog/1"], "images_a_cell": 9}
DECISIONS = {"shape_decisions": 3, "texture_decisions": 1}
RESULTS = [
    Result("imagenet", "top1", 0.75, "fraction", 9, {"resize": 256}, (0.7, 0.8), {}, ("it never moved",)),
    Result("imagenet", "adversarial_accuracy_l2_eps_0.5", 0.25, "fraction", 9, {"attack": ATTACK}, None, FACETS),
    Result("imagenet-c", "ce_fog", 0.5, "fraction", 9, CELLS, None, {"measure": "ce", "corruption": "fog"}),
    Result("imagenet-c", "top1_fog_1", 0.5, "fraction", 9, CELLS, None,
           {"measure": "top1", "corruption": "fog", "severity": 1}),
    Result("imagenet-o", "aupr", 0.3, "fraction", 9, {"precision_recall": [[0.5, 1.0], [1.0, 0.5]]}),
    Result("cue-conflict", "shape_bias", 0.75, "fraction", 9, {"aggregation": "mean"}),
    Result("cue-conflict", "shape_bias_cat", math.nan, "fraction", 9, DECISIONS, None,
           {"measure": "shape_bias", "category": "cat"}),
]  # fmt: skip
EXAMPLES = [Example("imagenet", "adversarial", 7, {"clean": "a.png"}, {"label": "cat", "clean": "dog"})]
MODEL = {"module": "CacheModule", "network": "n", "theta": 20.0, "k": 5, "weights_sha256": "ab"}
STRANGE = [
    None, True, -1, 10**25, 1e308, -0.0, "", "=1+1", "a\nb\x1b[2J", "\ud800", "$\\frac{", "<b>&", "x" * 5000, [], {},
    [[]], [None], {"a": {"b": []}}, [[1.0, 2.0, 3.0]], "l2", 3,
]  # fmt: skip


def places(node, path=()):
    """Yield where each part of parsed JSON stands."""
    parts = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, part in parts:
        yield (*path, name)
        yield from places(part, (*path, name))


def bytes_changed(text: bytes, draw: random.Random) -> bytes:
    place, length = draw.randrange(len(text)), draw.choice((1, 1, 2, 50))
    return draw.choice(
        [
            text[:place],
            text[:place] + text[place + length :],
            text[:place] + bytes([text[place] ^ 1 << draw.randrange(8)]) + text[place + 1 :],
            text[:place] + text[place : place + length] + text[place:],
        ]
    )


def part_changed(content: dict, draw: random.Random) -> bytes:
    """Put something strange in a place of a file that tells no digest, or take a part away."""
    content = json.loads(json.dumps({name: part for name, part in content.items() if name != "sha256"}))
    *path, last = draw.choice(list(places(content)))
    node = content
    for name in path:
        node = node[name]
    if draw.random() < 0.2:
        del node[last]
    elif isinstance(node, dict) and draw.random() < 0.1:
        node[draw.choice(("\ud800", "=x", "a\nb"))] = node.pop(last)
    else:
        node[last] = draw.choice(STRANGE)
    return json.dumps(content).encode()


@pytest.mark.parametrize("kind", ["bytes", "part"])
def test_damage_is_a_sentence_or_the_same_values(kind, tmp_path, fuzz_attempts, fuzz_table):
    run = tmp_path / "run"
    file = RunResults({"name": "run", "seed": 3}, MODEL, RESULTS, EXAMPLES).save(run)
    whole, draw = file.read_bytes(), random.Random(5)
    for number in range(fuzz_attempts):
        damaged = bytes_changed(whole, draw) if kind == "bytes" else part_changed(json.loads(whole), draw)
        file.write_bytes(damaged)
        try:
            reported(run, tmp_path, with_page=number % 20 == 0)
        except UserError:
            fuzz_table[kind, "refused"] += 1
            continue
        except Exception as error:
            raise AssertionError(damaged) from error
        if kind == "bytes":
            # repr, as an undefined value is not equal to itself.
            assert repr(RunResults.load(run).results) == repr(RESULTS), damaged
        fuzz_table[kind, "read"] += 1


def reported(run: Path, folder: Path, with_page: bool) -> None:
    for suffix in (".md", ".tex", ".csv", *([".html"] if with_page else [])):
        write_report([run], folder / f"report{suffix}")
    runs = load_runs([run])
    shown = terminal(compare({one.label: one.found for one in runs}))
    assert all(line.isprintable() for line in shown.split("\n"))
    plan([one.found for one in runs])
    rows = (folder / "report.csv").read_text("utf-8")
    assert not any(cell[:1] in ("=", "@") for line in rows.split("\n") for cell in line.split(","))
