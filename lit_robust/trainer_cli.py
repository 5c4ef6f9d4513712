"""fit, validate, test and predict: LightningCLI with the run's folder as the place for everything."""

import logging
import os
import sys
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback

from lit_robust import callbacks, data, modules
from lit_robust.data import RobustDataModule
from lit_robust.errors import UserError
from lit_robust.files import write_text
from lit_robust.modules import ClassifierModule
from lit_robust.report import compare, load_runs, terminal
from lit_robust.results import FILE_NAME

__all__ = ["RobustCLI", "callbacks", "data", "modules", "run_trainer"]


class KeepConfig(SaveConfigCallback):
    """Writes the whole configuration into the run's folder, and hands it to the loggers as nested values."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write ``config-<command>.yaml``, on rank 0."""
        text = self.parser.dump(self.config, skip_none=False, format="yaml")
        command = trainer.state.fn.value if trainer.state.fn else stage
        write_text(Path(trainer.default_root_dir) / f"config-{command}.yaml", text)
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(text))


class RobustCLI(LightningCLI):
    """LightningCLI whose loggers and checkpoints live in the run's folder, ``trainer.default_root_dir``."""

    def before_test(self) -> None:
        """Silence Lightning's table, which repeats every value for every loader."""
        self.config_init["test"]["verbose"] = False

    def after_test(self) -> None:
        """Print the results, and where they are."""
        folder = Path(self.trainer.default_root_dir)
        if self.trainer.is_global_zero:
            runs = {run.label: run.found for run in load_runs([folder])}
            print(f"\n{terminal(compare(runs))}\n\nResults are in {folder / FILE_NAME}")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the command line, and refuse a checkpoint that is none before anything heavy is done."""
        super().parse_arguments(parser, args)
        checkpoint = self.config[self.config.subcommand].get("ckpt_path")
        if checkpoint not in (None, "best", "last", "hpc") and not zipfile.is_zipfile(checkpoint):
            what = "is no checkpoint, or not whole" if Path(checkpoint).is_file() else "does not exist"
            raise UserError(f"The checkpoint {checkpoint} {what}: give a file that `lit-robust fit` wrote.")

    def before_instantiate_classes(self) -> None:
        """Put relative folders of loggers and of checkpoint callbacks inside the run's folder."""
        trainer = self.config[self.config.subcommand].trainer
        root = Path(trainer.default_root_dir)
        for entry in [*_listed(trainer.logger), *_listed(trainer.callbacks)]:
            arguments = entry.get("init_args", {})
            for key in ("save_dir", "dirpath"):
                if arguments.get(key) is not None:
                    arguments[key] = str(root / arguments[key])


def _listed(value: Any) -> list[Namespace]:
    entries = value if isinstance(value, list) else [value]
    return [entry for entry in entries if isinstance(entry, Namespace)]


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip: For seamless" not in record.getMessage()


def run_trainer(words: Sequence[str], command: str) -> None:
    """Run one of Lightning's commands.

    Args:
        words: the command and its options.
        command: the whole command line, kept with the results.
    """
    # Lightning 2.6.6 calls three names that jsonargparse 4.49 deprecates (Lightning issue 21900): theirs to mend.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    # The words are handed on explicitly, so that a test or the demo may call in the same process.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended to run from within Python")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.. is deprecated")
    raises = {"exit_on_error": False, "allow_abbrev": False}
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(_is_no_advertisement)
    try:
        RobustCLI(
            ClassifierModule,
            RobustDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=KeepConfig,
            save_config_kwargs={"save_to_log_dir": False, "overwrite": True},
            trainer_defaults={
                "default_root_dir": "runs/unnamed",
                "callbacks": [callbacks.ResultsFile(command), callbacks.PredictionFile()],
            },
            parser_kwargs={**raises, **{name: dict(raises) for name in ("fit", "validate", "test", "predict")}},
            args=list(words),
        )
    finally:
        # Lightning leaves an open W&B run open; a second command in this process would write into it.
        if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
            sys.modules["wandb"].finish()
