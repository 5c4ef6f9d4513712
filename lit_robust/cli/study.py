"""What every ``lit-robust analyze`` command begins and ends with: the network, and the folder of what was found."""

import csv
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lit_robust.analysis.outcome import Outcome
from lit_robust.callbacks.results_file import check_replaced, hardware, versions
from lit_robust.cli.options import made
from lit_robust.core.errors import UserError
from lit_robust.core.files import file_sha256
from lit_robust.core.results import RunResults
from lit_robust.core.seeds import run_seed, stream_seed
from lit_robust.models import Classifier, Network, build_classifier, weights_digest
from lit_robust.models.foreign.checkpoint import names_file
from lit_robust.modules.base import read_hyperparameters

RANDOM = "the network has random weights"


def network_of(settings: Mapping[str, Any], option: str = "network") -> Network:
    """Return the network that a command's options mean; what they leave out is what our own checkpoint says.

    Args:
        settings: of ``Network``, by name.
        option: of the command, for messages.

    Raises:
        UserError: a setting does not fit, or the checkpoint is not whole.
    """
    weights = settings.get("weights")
    said: Mapping[str, Any] = {}
    if isinstance(weights, str) and weights.endswith(".ckpt") and names_file(weights):
        try:
            said = read_hyperparameters(Path(weights)).get("network", {})
        except UserError as error:
            if "name" not in settings:
                raise UserError(f"{error} Or name its network with --{option}.name.") from error
    kept = {name: said[name] for name in ("name", "num_classes", "mean", "std") if said.get(name) is not None}
    if ":" in str(kept.get("name")) and settings.get("name") != kept["name"]:
        # A file must not say what of the user's own code is called.
        raise UserError(f"{weights} is of {kept['name']}: give it as --{option}.name, and what it is called with.")
    return made(Network, option, {**kept, **settings})


@dataclass
class Study:
    """One call of ``lit-robust analyze``.

    Attributes:
        name: of the study.
        output: its folder.
        command: the command line.
        network: what is studied.

    Raises:
        UserError: the folder holds the results of another study, or of another network.
    """

    name: str
    output: Path
    command: str
    network: Network
    _clock: float = field(default_factory=time.monotonic)
    _started: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        check_replaced(self.output, self.network.name, self.network.weights, self.name)

    @property
    def device(self) -> torch.device:
        """The GPU where there is one."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def build(self) -> Classifier:
        """Return the network, to be studied: in evaluation mode, on the device."""
        self.random = self.network.weights is None and ":" not in self.network.name
        if self.random:
            print(f"warning: {RANDOM}: give --network.weights.", file=sys.stderr)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(stream_seed(run_seed(), "weights"))  # So that random ones are the same in each process.
            self.classifier = build_classifier(self.network).eval().to(self.device)
        for parameter in self.classifier.parameters():
            parameter.requires_grad_(False)
        self.weights_sha256 = weights_digest(self.classifier.network)
        return self.classifier

    def finish(self, outcome: Outcome) -> None:
        """Write what was found, and say where it is and what comes next."""
        examples = outcome.save(self.output, self.name)
        weights = self.network.weights
        run = {
            "name": self.output.resolve().name,
            "command": self.command,
            "study": self.name,
            "checkpoint_sha256": file_sha256(Path(weights)) if weights and names_file(weights) else None,
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._clock, 1),
            "scored_in": "fp32",
            "hardware": hardware(self.device),
            "versions": versions(),
        }
        model = {
            "network": self.network.name,
            "num_classes": self.network.num_classes,
            "weights": weights,
            "weights_sha256": self.weights_sha256,
            "normalisation": {
                "mean": self.classifier.mean.flatten().tolist(),
                "std": self.classifier.std.flatten().tolist(),
            },
            "parameters": sum(parameter.numel() for parameter in self.classifier.parameters()),
        }
        random = (RANDOM,) if self.random else ()
        results = [replace(one, warnings=(*one.warnings, *random)) for one in outcome.results]
        RunResults(run, model, results, examples).save(self.output)
        written = sorted(one.name for one in self.output.iterdir() if not one.name.startswith("."))
        print(f"Wrote {', '.join(written)} to {self.output}. Next: `lit-robust report {self.output}` shows them.")


def unit_labels(folder: Path) -> dict[tuple[str, int], tuple[str, str, float]]:
    """Return what a dissection calls each unit: layer and unit to concept, category and IoU.

    Raises:
        UserError: the folder is not that of a dissection.
    """
    file = folder / "units.csv"
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        return {
            (row["layer"], int(row["unit"])): (row["concept"], row["category"], float(row["iou"] or 0)) for row in rows
        }
    except (OSError, KeyError, ValueError, UnicodeError) as error:
        raise UserError(f"{file} is not of a dissection: name a folder of `lit-robust analyze dissection`.") from error
