import torch

from lit_robust.metrics import category_probabilities
from lit_robust.metrics.class_numbers import on_device


def test_numbers_are_copied_once() -> None:
    cpu = torch.device("cpu")
    assert on_device((2, 0), cpu) is on_device((2, 0), cpu)
    assert on_device((2, 0), cpu).tolist() == [2, 0]
    assert on_device((0, 2), cpu).tolist() == [0, 2]


def test_numbers_first_asked_for_in_inference_mode_serve_autograd() -> None:
    categories = {"one": (7, 3), "two": (5,)}
    logits = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = category_probabilities(logits, categories)
    logits.requires_grad_(True)
    found = category_probabilities(logits, categories)
    found[:, 0].sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(found.detach(), expected)
    assert logits.grad is not None
