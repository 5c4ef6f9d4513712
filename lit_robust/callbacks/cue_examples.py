"""The same few images as they are and in each derived set, side by side, with what the network says of each."""

from collections.abc import Callable, Sequence

import numpy as np
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from lit_robust.callbacks.evaluation import EvaluationCallback, log_images
from lit_robust.callbacks.plain import PlainData, data_of
from lit_robust.callbacks.restriction import image_name, sample_keys
from lit_robust.callbacks.sample_images import Gallery, coming, to_uint8
from lit_robust.core.batch import Batch, EvaluationSet
from lit_robust.core.errors import UserError
from lit_robust.core.results import Example, Result
from lit_robust.metrics.base import among_classes

KIND = "one cue less"


class CueExamples(EvaluationCallback):
    """Keeps images and their derived ones for the report, as Chen, Agarwal & Nguyen 2020 show them (Figures 1 and A5).

    Images are found in other sets by the last part of their names. Those that every set has are chosen from, evenly
    over the set.

    Args:
        sets: names of the test loaders of derived images, in the order in which they are shown; those that the data
            left out are left out here.
        dataset: name of the test loader of the images as they are.
        examples: how many images.
    """

    needs_categories = False

    def __init__(self, sets: Sequence[str], dataset: str = "imagenet", examples: int = 7) -> None:
        super().__init__(dataset)
        self.derived = tuple(sets)
        self.number_of_examples = examples

    @property
    def sets(self) -> tuple[str, ...]:
        """The images' set, and the derived ones."""
        return (self.dataset, *self.derived)

    def prepare(self, module: LightningModule, described: EvaluationSet) -> None:
        """Choose the images.

        Raises:
            UserError: the data do not name their images, or no image is in all sets.
        """
        data = data_of(module.trainer)
        if isinstance(data, PlainData):
            raise UserError(
                f"{self.label} finds images by their names, which a plain loader does not tell: test with a data "
                "module of lit_robust.data."
            )
        known = {name: self._numbers(module.trainer, sample_keys(data, name), name) for name in self.described_sets}
        common = set.intersection(*(set(numbers) for numbers in known.values()))
        if not common:
            raise UserError(f"No image of {self.dataset} is in each of {', '.join(known)}: show other sets.")
        own = known[self.dataset]
        numbers = np.array(sorted(own[name] for name in common), dtype=np.int64)
        chosen = Gallery.among(numbers, self.number_of_examples).wanted
        names = {name: number for name, number in own.items() if number in chosen and name in common}
        # A derived image's number in its set, to the image's own.
        self.own = {of: {numbers[name]: own for name, own in names.items()} for of, numbers in known.items()}
        self.galleries = {of: Gallery(frozenset(numbers)) for of, numbers in self.own.items()}

    def _numbers(self, trainer: Trainer, key: Callable[[int], str], dataset: str) -> dict[str, int]:
        return {image_name(key(number)): number for number in coming(trainer, dataset).tolist()}

    def update(self, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Keep nothing; see `update_from`."""

    def update_from(self, dataset: str, module: LightningModule, batch: Batch, logits: Tensor) -> None:
        """Keep the chosen ones among a set's images."""
        gallery, described = self.galleries[dataset], self.described_sets[dataset]
        for place, number in gallery.places(batch.index):
            answer = int(among_classes(logits[place, None], described.classes).argmax())
            words = {"label": described.class_name(int(batch.label[place])), dataset: described.class_name(answer)}
            gallery.kept[number] = ({dataset: to_uint8(batch.image[place])}, words)

    def compute(self) -> list[Result]:
        """Return nothing: the sets' accuracies are other evaluations'."""
        return []

    def illustrate(self, trainer: Trainer) -> list[Example]:
        """Write the images, and show them to the loggers."""
        images: dict[int, dict[str, str]] = {}
        words: dict[int, dict[str, str]] = {}
        for name, gallery in self.galleries.items():
            gallery.gather()
            files = gallery.save(trainer, f"cues-{name}")
            for number, (_, said) in gallery.kept.items():
                own = self.own[name][number]
                images.setdefault(own, {})[name] = files[number][name]
                words.setdefault(own, {}).update(said)
            shown = [pixels[name] for pixels, _ in gallery.kept.values()]
            captions = [f"is {said['label']}, says {said[name]}" for _, said in gallery.kept.values()]
            log_images(trainer, f"test/{name}/one_cue_less", shown, captions)
        return [Example(self.dataset, KIND, number, images[number], words[number]) for number in sorted(images)]
