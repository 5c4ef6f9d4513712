"""Shape bias on cue-conflict images."""

from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from lit_robust.callbacks.display import shape_image, wandb_loggers
from lit_robust.callbacks.evaluation import EvaluationCallback, log_images, log_table
from lit_robust.callbacks.sample_images import Gallery, coming, to_uint8
from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.errors import UserError
from lit_robust.core.results import Example, Result
from lit_robust.metrics import ShapeBias, shape_bias
from lit_robust.metrics.shape_bias import Aggregation

COLUMNS = ("category", "shape", "texture", "other", "right without conflict", "images without conflict")


class ShapeBiasEvaluation(EvaluationCallback):
    """Shape, texture and other decisions, and the shape bias, overall and per category (Geirhos et al. 2019).

    Args:
        dataset: name of the test loader; its set must have categories.
        aggregation: how a category's probability follows from its classes': the authors' ``mean``, ``max`` or ``sum``.
        examples: how many images to keep for the report and for W&B.
    """

    needs_categories = True

    def __init__(self, dataset: str = "cue-conflict", aggregation: Aggregation = "mean", examples: int = 12) -> None:
        super().__init__(dataset)
        self.aggregation: Aggregation = aggregation
        self.number_of_examples = examples

    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Set the counts to zero.

        Raises:
            UserError: the set's images have no texture of another category.
        """
        if described.groups or "number_of_categories" in described.protocol:
            raise UserError(
                f"{self.dataset} shows one cue, not two in conflict: evaluate the shape bias on cue-conflict."
            )
        self.metric = ShapeBias(described.categories, self.aggregation).to(module.device)
        self.gallery = Gallery.among(coming(module.trainer, self.dataset), self.number_of_examples)

    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Count a batch."""
        assert batch.texture is not None
        self.metric.update(logits, batch.label, batch.texture)
        names = list(self.metric.categories)
        for place, number in self.gallery.places(batch.index):
            shape, texture = names[int(batch.label[place])], names[int(batch.texture[place])]
            decision = names[int(self.metric.decide(logits[place, None]))]
            captions = {"image": f"shape {shape}, texture {texture}: says {decision}"}
            self.gallery.kept[number] = ({"image": to_uint8(batch.image[place])}, captions)

    def compute(self) -> list[Result]:
        """Return the bias, the decision counts, the accuracy without conflict, and each category's bias.

        The count of each is the images it was measured on: those in conflict, or those without.
        """
        computed = self.metric.compute()
        self.counts = computed["counts"]
        shape, texture, other, right, same = self.counts.sum(0).tolist()
        conflict = shape + texture + other
        protocol = {"aggregation": self.aggregation, "number_of_categories": len(self.metric.categories)}
        results = [self.share("shape_bias", computed["shape_bias"], protocol, conflict, of=shape + texture)]
        for decision, decided in (("shape", shape), ("texture", texture), ("other", other)):
            facets = {"measure": "decisions", "decision": decision}
            results.append(self.result(f"{decision}_decisions", decided, "count", protocol, conflict, facets=facets))
        if same:
            results.append(self.share("accuracy_without_conflict", right / same, protocol, same))
        for name, row in zip(self.metric.categories, self.counts, strict=True):
            own_protocol = {**protocol, "shape_decisions": int(row[0]), "texture_decisions": int(row[1])}
            counted, facets = int(row[:3].sum()), {"measure": "shape_bias", "category": name}
            bias = shape_bias(row[0], row[1])
            results.append(self.share(f"shape_bias_{name}", bias, own_protocol, counted, facets, of=int(row[:2].sum())))
        return results

    def illustrate(self, trainer: Trainer) -> list[Example]:
        """Log the table of decisions, their figure and some images."""
        rows = [[name, *row.tolist()] for name, row in zip(self.metric.categories, self.counts, strict=True)]
        log_table(trainer, f"test/{self.dataset}/decisions", COLUMNS, rows)
        if wandb_loggers(trainer):
            decided = {row[0]: (row[1], row[2]) for row in rows}
            words = ["by category of the shape, and a line over all: decisions for shape or for texture"]
            log_images(trainer, f"test/{self.dataset}/shape_by_category", [shape_image(decided)], words)
        self.gallery.gather()
        files = self.gallery.save(trainer, self.dataset)
        kept = self.gallery.kept
        images = [entry[0]["image"] for entry in kept.values()]
        log_images(trainer, f"test/{self.dataset}/examples", images, [entry[1]["image"] for entry in kept.values()])
        return [
            Example(self.dataset, "cue-conflict", number, files[number], captions)
            for number, (_, captions) in kept.items()
        ]
