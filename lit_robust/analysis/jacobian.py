"""How strongly a network's answer changes with the image: the Frobenius norm of its Jacobian at test images.

Orhan (2018), after Novak et al. (2018), on which Orhan & Lake 2019 build: does a memory make it smaller?
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from lit_robust.analysis.outcome import Outcome
from lit_robust.attacks.attack import Model, check_range, frozen
from lit_robust.attacks.norms import Generators, draw_normal
from lit_robust.core.errors import UserError, check_choice, check_count
from lit_robust.core.logits import logits_of
from lit_robust.core.precision import full_precision
from lit_robust.core.results import Result
from lit_robust.core.seeds import stream_seed
from lit_robust.metrics.intervals import mean_of

Of = Literal["probabilities", "logits"]


class Estimated(NamedTuple):
    """Squared norms from random projections.

    Attributes:
        square: float64 ``[B]``, unbiased estimates of the squared norm.
        error: float64 ``[B]``, their standard errors.
    """

    square: Tensor
    error: Tensor


def jacobian_norm(model: Model, images: Tensor, of: Of = "probabilities") -> Tensor:
    """Return the exact norm for each image, float64 ``[B]``: one backward pass a class.

    Args:
        model: float images in [0, 1] to logits; a cache model's are log-probabilities. It is left as it was.
        images: float32 ``[B, C, H, W]`` in [0, 1]; the derivative is by pixels of this scale.
        of: ``probabilities``, after the softmax, or ``logits``.

    Raises:
        UserError: images are not in [0, 1], or the answer has no gradient to them.
    """
    with torch.inference_mode(False), torch.enable_grad():
        images, answers = _answers(model, images, of)
        square = torch.zeros(len(images), dtype=torch.float64, device=images.device)
        for number in range(answers.shape[1]):
            square += _squared(answers[:, number].sum(), images)
    return square.sqrt()


def estimated_jacobian_norm(
    model: Model, images: Tensor, probes: int, generator: Generators, of: Of = "probabilities"
) -> Estimated:
    """Return unbiased estimates of the squared norm: the mean of ``||J^T v||^2`` over normal ``v``.

    A backward pass a probe, where the exact norm takes one a class.

    Args:
        model: as for ``jacobian_norm``, as the next, and so are the errors.
        images: float32 ``[B, C, H, W]`` in [0, 1].
        probes: how many; 2 or more, for the standard error.
        generator: of the probes: one for the batch, or one an image.
        of: ``probabilities``, after the softmax, or ``logits``.
    """
    check_count("probes", probes, 2)
    with torch.inference_mode(False), torch.enable_grad():
        images, answers = _answers(model, images, of)
        squares = [
            _squared((answers * draw_normal(answers.shape, generator, images.device)).sum(), images)
            for _ in range(probes)
        ]
    found = torch.stack(squares)
    return Estimated(found.mean(0), found.std(0) / probes**0.5)


def _answers(model: Model, images: Tensor, of: Of) -> tuple[Tensor, Tensor]:
    """Return images that ask for gradients, and what the network makes of them, in fp32 and eval mode."""
    check_choice("of", of, ("probabilities", "logits"))
    check_range(images)
    images = images.detach().clone().requires_grad_(True)
    with frozen(model), full_precision(images.device.type):
        logits = logits_of(model(images)).float()
    if not logits.requires_grad:
        raise UserError(
            "The model's logits carry no gradient to the images: remove no_grad, inference_mode or detach from its "
            "forward."
        )
    return images, logits.softmax(1) if of == "probabilities" else logits


def _squared(value: Tensor, images: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(value, images, retain_graph=True)
    return gradient.double().square().flatten(1).sum(1)


def seeds_of(numbers: Sequence[int], seed: int) -> list[torch.Generator]:
    """Return a generator for each image's probes, by the image's number."""
    return [torch.Generator().manual_seed(stream_seed(seed, "jacobian probes", number)) for number in numbers]


def jacobian_study(
    model: Model,
    images: Tensor,
    of: Of,
    probes: int | None,
    batch: int,
    seed: int,
    dataset: str,
    protocol: Mapping[str, Any],
    device: torch.device,
) -> Outcome:
    """Measure the norm at every image.

    Args:
        model: images to logits, on the device.
        images: float32 ``[N, C, H, W]`` in [0, 1].
        of: ``probabilities`` or ``logits``.
        probes: of an estimate; None for the exact norm.
        batch: images at once.
        seed: of the probes.
        dataset: name of the set.
        protocol: which network and images these are.
        device: where to compute.
    """
    parts = []
    for numbers in tqdm(torch.split(torch.arange(len(images)), batch), "jacobian", leave=False):
        some = images[numbers].to(device)
        if probes is None:
            parts.append(jacobian_norm(model, some, of).cpu())
        else:
            sources = seeds_of(numbers.tolist(), seed)
            parts.append(estimated_jacobian_norm(model, some, probes, sources, of).square.cpu())
    values = torch.cat(parts)
    # Of an estimate the square alone is unbiased; its interval holds the probes' scatter, too.
    name = "jacobian_norm" if probes is None else "jacobian_squared_norm"
    found, flat = mean_of(values), int((values == 0).sum())
    result = Result(
        dataset=dataset,
        metric=f"{name}_of_{of}",
        value=found.value,
        unit="per pixel value",
        count=found.count,
        protocol={**protocol, "of": of, "probes": probes or "exact"},
        interval=found.interval,
        facets={"measure": name, "of": of},
        warnings=(f"It is exactly 0 at {flat} of {len(values)} images.",) if flat else (),
    )
    return Outcome([result], {name: values})
