"""Adversarial accuracy: what is left of a network's accuracy when its images are attacked."""

import re
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any, Literal, get_args

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.strategies import Strategy
from torch import Tensor, nn

from lit_robust.attacks import PGD, Attack, AttackResult, AutoAttack, AutoAttackResult, Flags, Sweep, Verdicts
from lit_robust.attacks.attack import check_attack, check_reach
from lit_robust.attacks.norms import NORMS
from lit_robust.attacks.survivors import SurvivorAttack
from lit_robust.callbacks.display import log_curve
from lit_robust.callbacks.evaluation import EvaluationCallback, log_images
from lit_robust.callbacks.plain import check_agreement, describes, is_spread, network_of
from lit_robust.callbacks.sample_images import Gallery, coming, to_uint8
from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.errors import UserError, check_choice
from lit_robust.core.logits import SomeClasses
from lit_robust.core.precision import full_precision
from lit_robust.core.results import Example, Result
from lit_robust.core.seeds import run_seed, stream_seed
from lit_robust.metrics import RobustAccuracy
from lit_robust.metrics.base import among_classes
from lit_robust.models import Network, build_classifier, weights_digest

CLEAN = "clean"
SMALLER_EPS = "smaller eps"


class AttackTally:
    """Counts the signs that a verdict may be too good, and of AutoAttack what broke how many images.

    Its shares are of all images, so those that were broken without this attack belong into it.

    Args:
        attack: whose results are counted.
        causes: what else breaks images, in the order of the counts: ``CLEAN`` and, in a sweep, ``SMALLER_EPS``.
        device: where to count, that of the results.
    """

    def __init__(self, attack: Attack, causes: Sequence[str], device: torch.device) -> None:
        self.causes = tuple(causes)
        self.attacks = tuple(attack.attacks()) if isinstance(attack, AutoAttack) else ()
        self.broken_by = torch.zeros(len(self.causes) + len(self.attacks), dtype=torch.int64, device=device)
        self.flags = torch.zeros(len(astuple(Flags())), dtype=torch.int64, device=device)

    def add(self, result: AttackResult) -> None:
        """Count a batch that was attacked."""
        self.flags += torch.tensor(astuple(result.flags), device=self.flags.device)
        if isinstance(result, AutoAttackResult):
            # A result's codes count from clean errors, then the attacks.
            code = result.code[result.code >= 0]
            place = torch.where(code == 0, self.causes.index(CLEAN), code - 1 + len(self.causes))
            self.broken_by += torch.bincount(place, minlength=len(self.broken_by))

    def add_broken(self, cause: str, count: int) -> None:
        """Count images that were broken already and not attacked."""
        self.broken_by[self.causes.index(cause)] += count
        self.flags += torch.tensor(astuple(Flags(images=count, unattacked=count)), device=self.flags.device)

    def reduced(self, strategy: Strategy) -> tuple[dict[str, Any], list[str]]:
        """Return what belongs into a result's protocol, and its warnings, a sentence a sign; every rank calls this.

        Returns:
            The protocol's part is ``flags``, sign to images, and of AutoAttack ``broken_by``, cause or attack to
            images.
        """
        sums: list[Tensor] = [strategy.reduce(part.clone(), reduce_op="sum") for part in (self.broken_by, self.flags)]
        broken_by, numbers = (part.tolist() for part in sums)
        protocol: dict[str, Any] = {"flags": dict(zip(Flags.__dataclass_fields__, numbers, strict=True))}
        if self.attacks:
            protocol["broken_by"] = dict(zip((*self.causes, *self.attacks), broken_by, strict=True))
        return protocol, Flags(*numbers).sentences()


ThreatModel = Literal["white-box", "memory-surrogate", "gray-box", "black-box"]
# What of a memory model is attacked: the module's attribute, and its name.
PARTS = {"gray-box": ("backbone", "backbone"), "memory-surrogate": ("continuous", "whole memory")}
RULE = "clean errors and images broken at a smaller eps count as broken"


class AdversarialAccuracy(EvaluationCallback):
    """Accuracy under an attack, at one or several eps, in one pass over the data.

    An image misclassified clean counts as broken and is not attacked, nor one at an eps larger than one that broke it;
    survivors wait until they fill a batch. The attack runs in the trainer's precision, its verdicts are scored in fp32.
    Where the set is decided among some classes, as ImageNet-A among 200, attack and verdict are among these.

    Args:
        attack: the attack and its settings; its eps is the one that matters most. What counts as broken is the
            attack's, too: for `PGD` ``keep: last`` or ``keep: first``, "at the last iterate" or "at any step".
        eps: further eps to test, in the attack's unit; the step size scales where the attack's does.
        dataset: name of the test loader.
        name: tells two attacks of one norm on one set apart; part of the results' names, such as ``autoattack``.
        examples: how many pairs of clean and attacked images to keep for the report and for W&B; each at the eps
            that broke it, or at the largest.
        threat_model: ``white-box``, the attack sees the network under test, a memory model through the neighbours that
            it chose; ``memory-surrogate``, it sees the same backbone and memory with all keys taking part, which gives
            gradients where neighbours give none, and the model is tested as it is; ``gray-box``, it sees the backbone
            of a memory model, and the whole is tested; ``black-box``, it sees ``surrogate``, and what it finds is shown
            to the network under test.
        surrogate: the network a black-box attack sees, such as a pretrained ``torchvision/resnet18``.
        limit: images to attack, drawn once and for all among those of the test; null for all. The values are marked as
            partial.
    """

    def __init__(
        self,
        attack: Attack,
        eps: Sequence[float] = (),
        dataset: str = "imagenet",
        name: str = "",
        examples: int = 8,
        threat_model: ThreatModel = "white-box",
        surrogate: Network | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(dataset)
        check_attack(attack)
        if isinstance(eps, str | float | int):
            raise UserError(f"eps is {eps!r}: give a list of numbers, such as [4 / 255].")
        if limit is not None and limit < 1:
            raise UserError(f"limit is {limit}: give a number of images above 0, or null for all.")
        if any(value <= 0 for value in eps):
            raise UserError(f"eps {min(eps)} is not above 0: at 0 an attack changes nothing, top1 is that accuracy.")
        if not re.fullmatch(r"\w*", name):
            raise UserError(f"The name {name!r} of an evaluation may hold letters, digits and _ only.")
        check_choice("threat_model", threat_model, get_args(ThreatModel))
        if (surrogate is not None) != (threat_model == "black-box"):
            raise UserError(
                f"threat_model {threat_model} {'with a' if surrogate else 'without a'} surrogate: a black-box attack, "
                "and no other, needs the network it sees; set both or neither."
            )
        if threat_model != "white-box":
            check_goes_on(attack, threat_model)
        radii = [f"{value:.4g}" for value in {attack.eps, *eps}]
        if len(set(radii)) < len(radii):
            raise UserError(f"Two eps are the same to four digits, and so the names of their results: {sorted(eps)}.")
        self.attack = attack
        self.threat_model = threat_model
        self.surrogate = surrogate
        setting = "" if threat_model == "white-box" else threat_model.replace("-", "_")
        self.stem = "_".join(filter(None, ["adversarial_accuracy", setting, name, attack.norm]))
        self.facets = {
            "measure": "adversarial_accuracy",
            "series": self.stem,
            **({"attack": name} if name else {}),
            "threat_model": threat_model,
            "norm": attack.norm,
        }
        self.attacks = [attack.with_eps(value) for value in sorted({attack.eps, *eps})]
        self.number_of_examples = examples
        self.limit = limit

    @property
    def label(self) -> str:
        """What tells this evaluation's results from another's."""
        return f"{self.stem} on {self.dataset}"

    def check(self, trainer: Trainer) -> None:
        """Raise a UserError where the module is not what is to be attacked, or spread over the ranks."""
        super().check(trainer)
        if is_spread(trainer):
            raise UserError(
                "The memory's keys are spread over the ranks, which then answer together, and an attack's batches "
                "differ from rank to rank: set retrieval.sharded to false, or test on one device."
            )
        module = trainer.lightning_module
        if self.surrogate is not None:
            own = getattr(getattr(module, "network", None), "num_classes", self.surrogate.num_classes)
            if self.surrogate.num_classes != own:
                raise UserError(
                    f"The surrogate has {self.surrogate.num_classes} classes and the network under test {own}: give a "
                    "surrogate for the same classes."
                )
        elif self.threat_model != "white-box":
            part, what = PARTS[self.threat_model]
            if not hasattr(type(module), part) and part not in dict(module.named_children()):
                raise UserError(
                    f"threat_model {self.threat_model} attacks the {what} of a memory model, and "
                    f"{type(module).__name__} is a single network: use white-box."
                )

    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Set the counts to zero, and find the network that is attacked."""
        self.metric = RobustAccuracy(len(self.attacks)).to(module.device)
        self.clean_metric = RobustAccuracy().to(module.device)
        taken = coming(module.trainer, self.dataset)
        self.chosen: Tensor | None = None
        if self.limit is not None and self.limit < len(taken):
            draw = np.random.default_rng(stream_seed(0, "limit of an attack"))
            taken = np.sort(draw.choice(taken, self.limit, replace=False))
            self.chosen = torch.from_numpy(taken).to(module.device)
        self.gallery = Gallery.among(taken, self.number_of_examples)
        model = network_of(module)
        self.unseen = None if describes(module) else model
        attacked = self._attacked(module, model)
        classes, device = described.classes, module.device
        self.model = SomeClasses(model, classes, device)
        self.attacked = self.model if attacked is model else SomeClasses(attacked, classes, device)
        self.sweep: Sweep | None = None
        causes = [(CLEAN,), *[(CLEAN, SMALLER_EPS)] * (len(self.attacks) - 1)]
        self.tallies = [AttackTally(*pair, device) for pair in zip(self.attacks, causes, strict=True)]
        self.trainer = module.trainer

    def _attacked(self, module: LightningModule, model: nn.Module) -> nn.Module:
        # Lightning tests in inference mode, whose tensors an attack cannot differentiate through.
        with torch.inference_mode(False):
            if self.surrogate is not None:
                return build_classifier(self.surrogate).to(module.device).eval()
            if self.threat_model == "white-box":
                return model
            seen: nn.Module = getattr(module, PARTS[self.threat_model][0])
            return seen

    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Take in what is classified right; attack as far as batches are full."""
        if self.unseen is not None and len(batch):
            check_agreement(self.unseen, batch.image, logits)
            self.unseen = None
        if self.sweep is None:
            # Before the first clean answer, for there may be none that is right, and so nothing to attack.
            check_reach(max(attack.eps for attack in self.attacks), self.attack.norm, batch.image)
            target = None if self.attacked is self.model else self.model
            self.sweep = Sweep(self.attacks, max(1, len(batch)), self.attacked, target, random_of)
        if self.chosen is not None:
            is_chosen = torch.isin(batch.index, self.chosen)
            batch, logits = batch.select(is_chosen), logits[is_chosen]
        right = among_classes(logits, self.described.classes).argmax(1) == batch.label
        self.clean_metric.update(right[None])
        mistakes, standing = batch.select(~right), batch.select(right)
        self._count(torch.zeros_like(mistakes.label))
        for tally in self.tallies:
            tally.add_broken(CLEAN, len(mistakes))
        self._keep_mistakes(mistakes)
        with self.trainer.precision_plugin.forward_context():
            found = self.sweep.add(standing.index.tolist(), standing.image, self.model.places(standing.label))
        self._take(found)

    def compute(self) -> list[Result]:
        """Attack what still waits, and return the accuracy at each eps."""
        if self.sweep is not None:
            with self.trainer.precision_plugin.forward_context():
                found = self.sweep.finish()
            self._take(found)
        results = []
        values = self.metric.compute().reshape(-1)
        with self.metric.sync_context():
            count = int(self.metric.total)
        for attack, value, tally in zip(self.attacks, values, self.tallies, strict=True):
            counted, warnings = tally.reduced(self.trainer.strategy)
            protocol = {**self._protocol(attack), **counted}
            name = f"{self.stem}_eps_{attack.eps:.4g}"
            facets = {**self.facets, "eps": attack.eps}
            results.append(self.share(name, value, protocol, count, facets, warnings))
        return results

    def _protocol(self, attack: Attack) -> dict[str, Any]:
        protocol: dict[str, Any] = {
            "attack": attack.protocol(),
            "main_eps": self.attack.eps,
            "threat_model": self.threat_model,
            "attack_precision": str(self.trainer.precision),
            "verdict": RULE,
        }
        if self.chosen is not None:
            protocol |= {"partial": True, "full_count": self.described.protocol.get("full_count", self.described.count)}
        if self.described.classes:
            protocol["decided_among"] = len(self.described.classes)
        if self.surrogate is not None:
            digest = weights_digest(self.attacked.get_submodule("model.network"))
            protocol["surrogate"] = {"network": self.surrogate.name, "weights_sha256": digest}
        return protocol

    def _take(self, found: list[Verdicts]) -> None:
        for verdicts in found:
            check_kept(self.attacks[verdicts.strength], verdicts.clean, verdicts.result.images)
            self.tallies[verdicts.strength].add(verdicts.result)
            broken = int(verdicts.broken.sum())
            for tally in self.tallies[verdicts.strength + 1 :]:
                tally.add_broken(SMALLER_EPS, broken)
            self._count(verdicts.withstood[verdicts.final])
            labels = self.model.numbers(verdicts.labels).tolist()
            for place, number in enumerate(verdicts.numbers):
                if number in self.gallery.wanted and verdicts.final[place]:
                    self._keep(number, verdicts.clean[place], verdicts.result.images[place], labels[place])

    def _count(self, withstood: Tensor) -> None:
        strengths = torch.arange(len(self.attacks), device=withstood.device)
        self.metric.update(strengths[:, None] < withstood)

    def _keep_mistakes(self, batch: Batch) -> None:
        """Show a sample that was never attacked as it is."""
        for place, number in self.gallery.places(batch.index):
            self._keep(number, batch.image[place], batch.image[place], int(batch.label[place]))

    def _keep(self, number: int, clean: Tensor, attacked: Tensor, label: int) -> None:
        with torch.no_grad(), full_precision(clean.device.type):
            answers = self.model.numbers(self.model(torch.stack([clean, attacked])).argmax(1)).tolist()
        images = {"clean": to_uint8(clean), "adversarial": to_uint8(attacked)}
        words = [self.described.class_name(answer) for answer in (label, *answers)]
        self.gallery.kept[number] = (images, dict(zip(("label", *images), words, strict=True)))

    def illustrate(self, trainer: Trainer) -> list[Example]:
        """Log accuracy against eps, and pairs of clean and attacked images with what the network says of each."""
        curve = [(0.0, float(self.clean_metric.compute()))]  # Every rank takes part in the sum.
        curve += [(attack.eps, result.value) for attack, result in zip(self.attacks, self.results, strict=True)]
        log_curve(trainer, f"test/{self.dataset}/{self.stem}_by_eps", ("eps", "accuracy"), curve)
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
            Example(self.dataset, "adversarial", number, files[number], captions, self.stem)
            for number, (_, captions) in kept.items()
        ]


def check_goes_on(attack: Attack, threat_model: ThreatModel) -> None:
    """Refuse an attack that ends where the network it sees errs, when another network is the one under test.

    Raises:
        UserError: `AutoAttack` or a part of it, or `PGD` that keeps the first image to break the network.
    """
    if isinstance(attack, SurvivorAttack) or (isinstance(attack, PGD) and attack.keep == "first"):
        raise UserError(
            f"In a {threat_model} attack {type(attack).__name__} would end where the network it sees errs, which may "
            "be at once, and not the one under test: use PGD with keep last or best."
        )


def check_kept(attack: Attack, clean: Tensor, attacked: Tensor) -> None:
    """Refuse what an attack moved out of its ball, as one does that takes its eps in another norm.

    Args:
        attack: of the user's own, perhaps.
        clean: ``[B, C, H, W]``.
        attacked: likewise.

    Raises:
        UserError: an image is farther off than eps and a hundredth of it.
    """
    if not len(clean):
        return
    farthest = float(NORMS[attack.norm].length(attacked.float() - clean.float()).max())
    if farthest > 1.01 * attack.eps:
        raise UserError(
            f"{type(attack).__name__} moves images by up to {farthest:.3g} in {attack.norm}, beyond its eps of "
            f"{attack.eps:.3g}: let it keep to its norm and eps, or set the norm that it takes eps in."
        )


def random_of(number: int) -> torch.Generator:
    """Return the source of a sample's random draws in a test's attacks."""
    # One a sample, so that a start does not depend on batch size, rank, or who else survived; and the CPU's, which
    # draws the same numbers for every device.
    return torch.Generator().manual_seed(stream_seed(run_seed(), "attack start, test", number))
