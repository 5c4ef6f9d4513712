"""A search that ends for each image where the network first gives the answer it is after."""

from typing import NamedTuple

import torch
from torch import Tensor

from lit_robust.attacks.ascent import Ball, ascent_step
from lit_robust.attacks.attack import Model
from lit_robust.attacks.objective import Objective
from lit_robust.attacks.scoring import Score, score


class Found(NamedTuple):
    """Where a search led.

    Attributes:
        images: float32 ``[B, C, H, W]`` in [0, 1].
        score: what the network makes of them, in fp32.
        reached: bool ``[B]``, true where that is the answer the attack is after.
        steps: int64 ``[B]``, gradients computed for each image.
        vanished: int64 ``[B]``, how many of these were zero or not finite.
    """

    images: Tensor
    score: Score
    reached: Tensor
    steps: Tensor
    vanished: Tensor


def first_success(model: Model, objective: Objective, start: Tensor, ball: Ball, step_size: float, steps: int) -> Found:
    """Step up the loss, and take each image out of the work at its first iterate with the wanted answer.

    Every iterate counts, the start included. The answer of a gradient's forward pass, in the precision of the attack,
    only proposes a stop: a second one in fp32 decides, so this waits for an accelerator at each step. Images that no
    iterate breaks are returned as the last step leaves them.

    Args:
        model: float images in [0, 1] to logits, frozen by the caller.
        objective: the loss to raise and the answer wanted.
        start: float32 ``[B, C, H, W]``, where the search starts.
        ball: where it stays.
        step_size: length of a step, in [0, 1] pixel units.
        steps: number of steps at most.
    """
    count = len(start)
    result = start.clone()
    spent = torch.full((count,), steps, device=start.device)
    reached = torch.zeros(count, dtype=torch.bool, device=start.device)
    losses, answers = start.new_zeros(count), torch.zeros(count, dtype=torch.int64, device=start.device)
    vanished, probabilities = torch.zeros_like(answers), torch.zeros_like(reached)
    whole = ball
    rows, images, aim = torch.arange(count, device=start.device), start, objective

    def settle(some: Tensor, images: Tensor) -> Tensor:
        """Score iterates in fp32, write down what they are, and tell which have the wanted answer."""
        wanted, images = objective.select(some), whole.select(some).tighten(images)
        verdict = score(model, images, wanted.labels, lambda logits, _: wanted.loss(logits))
        result[some], losses[some], answers[some] = images, verdict.loss, verdict.answer
        probabilities[some] = verdict.probabilities
        over = wanted.reached(verdict.answer)
        reached[some] = over
        return over

    for step in range(steps):
        if not len(rows):
            break
        moved, here = ascent_step(model, aim.loss, images, ball, step_size)
        vanished[rows] += here.vanished
        proposed = aim.reached(here.logits.argmax(1)).nonzero()[:, 0]
        if len(proposed):
            over = settle(rows[proposed], images[proposed].detach())
            spent[rows[proposed]] = torch.where(over, step + 1, steps)
            going = torch.ones_like(rows, dtype=torch.bool)
            going[proposed] = ~over
            left = going.nonzero()[:, 0]
            rows, moved, aim, ball = rows[left], moved[left], aim.select(left), ball.select(left)
        images = moved
    if len(rows):
        settle(rows, images.detach())
    verdict = Score(answers != objective.labels, losses, answers, probabilities)
    return Found(result, verdict, reached, spent, vanished)
