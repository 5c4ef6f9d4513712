"""What a memory says of itself: which network's features it holds, of which images, and how they were made smaller."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lit_robust.errors import UserError
from lit_robust.files import write_text

SCHEMA = 1
FILE_NAME = "manifest.json"
KeyType = Literal["float32", "float16"]


@dataclass(frozen=True)
class Manifest:
    """A memory's description; ``manifest.json`` in its folder.

    Attributes:
        backbone: name, number of classes, sha256 of the weights and channel normalisation of the network.
        layer: whose output the keys are, by its name in the network.
        transform: what is done to the output: ``none``, or ``softmax`` over its channels.
        images: which images, and how they were resized, cropped and decoded.
        count: how many keys.
        dimensions: of a key.
        num_classes: how many classes the labels are of.
        key_type: of the stored numbers.
        compression: what was done to the keys since they came from the network, in order.
        keys_sha256: of the stored keys, over the digests of their pieces; empty while the memory is being built.
        labels_sha256: of the labels.
        version: of lit_robust.
    """

    backbone: Mapping[str, Any]
    layer: str
    transform: str
    images: Mapping[str, Any]
    count: int
    dimensions: int
    num_classes: int
    key_type: KeyType
    version: str
    compression: tuple[Mapping[str, Any], ...] = ()
    keys_sha256: str = ""
    labels_sha256: str = ""
    schema: int = field(default=SCHEMA)

    def save(self, folder: Path) -> None:
        """Write ``manifest.json`` into ``folder``, all of it or nothing."""
        write_text(folder / FILE_NAME, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read the manifest of the memory in ``folder``.

        Raises:
            UserError: there is none, or it is not one of this version's.
        """
        file = folder / FILE_NAME
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA:
                raise UserError(f"{file} has schema {content['schema']!r}, not {SCHEMA}: build the memory again.")
            return cls(**{**content, "compression": tuple(content["compression"])})
        except FileNotFoundError:
            raise UserError(
                f"There is no memory in {folder}: build one with `lit-robust fit` and a CacheModule, or check the path."
            ) from None
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}): make it readable.") from error
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file} is no memory's manifest ({error}): build the memory again.") from error

    def check(self, folder: Path, backbone: Mapping[str, Any], layer: str, transform: str, num_classes: int) -> None:
        """Raise a UserError unless the memory is of this backbone, layer and class count.

        Args:
            folder: of the memory, for the sentence.
            backbone: as `Manifest.backbone`.
            layer: as `Manifest.layer`.
            transform: as `Manifest.transform`.
            num_classes: of the network's own classes.
        """
        if self.num_classes != num_classes:
            raise UserError(
                f"The memory {folder} is of {self.num_classes} classes, and the network of {num_classes}: use the "
                "memory that was built with this network, or build one."
            )
        for what, theirs, ours in (("layer", self.layer, layer), ("transform", self.transform, transform)):
            if theirs != ours:
                raise UserError(
                    f"The memory {folder} holds keys of {what} {theirs!r}, not {ours!r}: set {what} to {theirs}, or "
                    "build another memory."
                )
        for what, theirs in self.backbone.items():
            if theirs != backbone.get(what):
                raise UserError(
                    f"The memory {folder} is of another backbone, its {what.replace('_', ' ')} is {shown(theirs)} and "
                    f"not {shown(backbone.get(what))}: give the network it was built with, or build another memory."
                )


def shown(value: Any) -> str:
    """Return a value for a sentence; of a digest its first digits."""
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)
