"""A standard and a robust network together: what each weight gives on validation images, and which is best."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_robust.analysis.inversion import in_batches
from lit_robust.analysis.outcome import Outcome
from lit_robust.core.results import Result
from lit_robust.metrics.intervals import Estimate, share_of
from lit_robust.models.fusion import WEIGHTS, best_weight, fused, more_confident


def fusion_study(
    standard: nn.Module,
    robust: nn.Module,
    images: Tensor,
    labels: Tensor,
    batch: int,
    dataset: str,
    protocol: Mapping[str, Any],
) -> Outcome:
    """Return the accuracy at each weight and by confidence, how often the robust network decides, and the best weight.

    Args:
        standard: images in [0, 1] to logits.
        robust: likewise.
        images: float32 ``[N, C, H, W]`` in [0, 1], for validation: no test may use them.
        labels: int64 ``[N]``.
        batch: images at once.
        dataset: name of the set.
        protocol: which networks and images these are.
    """
    ours, theirs = (F.log_softmax(in_batches(one, images, batch), 1) for one in (standard, robust))
    right = {weight: fused(ours, theirs, weight).argmax(1) == labels for weight in WEIGHTS}
    decided = more_confident(ours, theirs)
    measured: list[tuple[str, dict[str, float | str], Estimate]] = [
        ("fused_top1", {"weight": weight}, share_of(truths)) for weight, truths in right.items()
    ]
    chosen = torch.where(decided[:, None], theirs, ours).argmax(1) == labels
    measured += [
        ("fused_top1", {"rule": "confidence"}, share_of(chosen)),
        ("robust_decides", {"rule": "confidence"}, share_of(decided)),
    ]
    results = [
        Result(
            dataset=dataset,
            metric=f"{measure}_{next(iter(facets.values()))}",
            value=found.value,
            unit="fraction",
            count=found.count,
            protocol=protocol,
            interval=found.interval,
            facets={"measure": measure, **facets},
        )
        for measure, facets, found in measured
    ]
    best = best_weight({weight: int(truths.sum()) for weight, truths in right.items()})
    results.append(
        Result(
            dataset=dataset,
            metric="best_fusion_weight",
            value=best,
            unit="weight",
            count=len(labels),
            protocol=protocol,
            facets={"measure": "best_fusion_weight"},
            warnings=("It was chosen on these images: test on others.",),
        )
    )
    return Outcome(results)
