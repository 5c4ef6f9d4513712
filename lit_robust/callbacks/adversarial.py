"""Adversarial accuracy: what is left of a network's accuracy when its images are attacked."""

import re
from collections.abc import Sequence

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from lit_robust.attacks import Attack
from lit_robust.batch import Batch, EvaluationSet
from lit_robust.callbacks.evaluation import EvaluationCallback, log_images
from lit_robust.callbacks.gallery import Gallery, to_uint8
from lit_robust.errors import UserError
from lit_robust.metrics import RobustAccuracy
from lit_robust.precision import full_precision
from lit_robust.results import Example, Result
from lit_robust.seeds import run_seed, stream_seed


class AdversarialAccuracy(EvaluationCallback):
    """White-box accuracy under an attack, at one or several eps.

    An image misclassified clean counts as broken and is not attacked, and one broken at a smaller eps is not
    attacked at a larger one, whose ball holds the smaller one. Verdicts are scored in fp32.

    Args:
        attack: the attack and its settings; its eps is the one that matters most.
        eps: further eps to test, in the attack's unit, each with the attack's step size scaled in proportion.
        dataset: name of the test loader.
        name: tells two attacks of one norm on one set apart; part of the results' names, such as ``autoattack``.
        examples: how many pairs of clean and attacked images to keep for the report and for W&B; attacked at the
            attack's own eps.
    """

    def __init__(
        self, attack: Attack, eps: Sequence[float] = (), dataset: str = "imagenet", name: str = "", examples: int = 8
    ) -> None:
        super().__init__(dataset)
        if any(value <= 0 for value in eps):
            raise UserError(f"eps {min(eps)} is not above 0: at 0 an attack changes nothing, top1 is that accuracy.")
        if not re.fullmatch(r"\w*", name):
            raise UserError(f"The name {name!r} of an evaluation may hold letters, digits and _ only.")
        self.attack = attack
        self.stem = "_".join(filter(None, ["adversarial_accuracy", name, attack.norm]))
        self.attacks = [attack.with_eps(value) for value in sorted({attack.eps, *eps})]
        self.number_of_examples = examples

    @property
    def label(self) -> str:
        """What tells this evaluation's results from another's."""
        return f"{self.stem} on {self.dataset}"

    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Set the counts to zero."""
        self.metric = RobustAccuracy(len(self.attacks)).to(module.device)
        self.gallery = Gallery.spread(described.count, self.number_of_examples)

    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Attack what is still classified right, from the smallest eps to the largest."""
        model = module.get_submodule("model")
        survives = logits.argmax(1) == batch.label
        verdicts = []
        for attack in self.attacks:
            standing = batch.select(survives)
            if len(standing):
                found = attack(model, standing.image, standing.label, generator=self._generators(standing))
                survives = survives.index_put((survives.nonzero()[:, 0],), ~found.success)
            verdicts.append(survives)
        self.metric.update(torch.stack(verdicts))
        self._keep_examples(module, batch, logits)

    def _generators(self, batch: Batch) -> list[torch.Generator]:
        # One a sample, so that a start does not depend on batch size, rank, or who else survived; and the CPU's, which
        # draws the same numbers for every device.
        seed = run_seed()
        return [
            torch.Generator().manual_seed(stream_seed(seed, "attack start, test", number))
            for number in batch.index.tolist()
        ]

    def _keep_examples(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        places = self.gallery.places(batch.index)
        if not places:
            return
        mask = torch.zeros(len(batch), dtype=torch.bool, device=batch.image.device)
        mask[[place for place, _ in places]] = True
        chosen = batch.select(mask)
        model = module.get_submodule("model")
        found = self.attack(model, chosen.image, chosen.label, generator=self._generators(chosen))
        with torch.no_grad(), full_precision(batch.image.device.type):
            answers = model(found.images).argmax(1)
        for row, number in enumerate(chosen.index.tolist()):
            images = {"clean": to_uint8(chosen.image[row]), "adversarial": to_uint8(found.images[row])}
            captions = {
                "label": self.described.class_name(int(chosen.label[row])),
                "clean": self.described.class_name(int(logits[mask][row].argmax())),
                "adversarial": self.described.class_name(int(answers[row])),
            }
            self.gallery.kept[number] = (images, captions)

    def compute(self) -> list[Result]:
        """Return the accuracy at each eps."""
        rule = "broken at the attack's result; clean errors and images broken at a smaller eps count as broken"
        return [
            self.result(
                f"{self.stem}_eps_{attack.eps:.4g}",
                value,
                "fraction",
                {"attack": attack.protocol(), "threat_model": "white-box", "verdict": rule},
            )
            for attack, value in zip(self.attacks, self.metric.compute().reshape(-1), strict=True)
        ]

    def illustrate(self, trainer: Trainer) -> list[Example]:
        """Log pairs of clean and attacked images with what the network says of each."""
        self.gallery.gather()
        kept = self.gallery.kept
        key = f"test/{self.dataset}/{self.stem}_examples"
        images = [entry[0][role] for entry in kept.values() for role in ("clean", "adversarial")]
        words = [
            f"{role}: is {entry[1]['label']}, says {entry[1][role]}"
            for entry in kept.values()
            for role in ("clean", "adversarial")
        ]
        log_images(trainer, key, images, words)
        files = self.gallery.save(trainer, f"{self.dataset}-{self.stem}")
        return [
            Example(self.dataset, "adversarial", number, files[number], captions)
            for number, (_, captions) in kept.items()
        ]
