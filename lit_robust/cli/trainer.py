"""fit, validate, test and predict: LightningCLI with the run's folder as the place for everything."""

import logging
import os
import shlex
import signal
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.strategies import ParallelStrategy
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from lit_robust import callbacks, data, modules
from lit_robust.callbacks.checkpoints import (
    FILE,
    SaveOnSignal,
    check_folder,
    keeps_its_state,
    resuming,
    write_whole_checkpoints,
)
from lit_robust.callbacks.predictions import PREDICTIONS
from lit_robust.callbacks.results_file import check_replaced
from lit_robust.cli.evaluations import with_evaluations
from lit_robust.cli.mistakes import explain, refuse_flat_settings
from lit_robust.cli.options import StrictParser, read_words
from lit_robust.cli.precision import RobustTrainer
from lit_robust.cli.recipes import with_recipes
from lit_robust.cli.trainer_help import changed
from lit_robust.cli.weights import check_weights
from lit_robust.core.errors import UserError
from lit_robust.core.files import held_alone, write_text
from lit_robust.core.results import FILE_NAME
from lit_robust.data import RobustDataModule
from lit_robust.modules import ClassifierModule
from lit_robust.modules.base import SynchronisedNorms
from lit_robust.report import compare, load_runs, terminal, write_report

__all__ = ["RobustCLI", "callbacks", "data", "modules", "run_trainer"]


LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches")


class TrainerParser(StrictParser, LightningArgumentParser):
    """Lightning's parser, which takes no abbreviated option."""


class KeepConfig(SaveConfigCallback):
    """Writes the whole configuration into the run's folder, and hands it to the loggers as nested values."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write ``config-<command>.yaml``, on rank 0."""
        text = self.parser.dump(self.config, skip_none=False, format="yaml")
        command = trainer.state.fn.value if trainer.state.fn else stage
        write_text(Path(trainer.default_root_dir) / f"config-{command}.yaml", text)
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(text))
            if isinstance(logger, WandbLogger):
                run = logger.experiment
                print(f"W&B logs to {run.url}." if run.url else f"W&B logs offline: wandb leet {Path(run.dir).parent}")


class RobustCLI(LightningCLI):
    """LightningCLI whose loggers and checkpoints live in the run's folder, ``trainer.default_root_dir``.

    Attributes:
        command: what was typed.
        held: the lock of the run's folder, for as long as the command runs.
    """

    command: str
    held = ExitStack()

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Build the parser of the command that was typed alone; give ``test`` a quick look and a page."""
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        if "test" not in self.subcommands():
            return
        self._parser("test").add_argument(
            "--limit",
            type=PositiveInt | None,
            default=None,
            help="images of each test set for a quick look, drawn once and for all; its results are marked as partial",
        )
        self._parser("test").add_argument(
            "--report", action="store_true", help="write the page report.html into the run's folder at the end"
        )

    def before_fit(self) -> None:
        """Find mistakes, and say what is trained: Lightning's table of modules says "0 FLOPs" of each."""
        self._check()
        if self.trainer.is_global_zero:
            count = sum(parameter.numel() for parameter in self.model.parameters())
            print(f"{type(self.model).__name__}: {self.model.network.name}, {count:,} parameters.")
            epochs = self.trainer.max_epochs or 1
            passes = "one epoch" if epochs == 1 else f"{epochs} epochs"
            amount = f"{passes} of {self.steps:,} steps" if epochs > 0 else f"{self.steps:,} steps an epoch"
            print(f"{amount if self.steps else 'One pass'}, into the run's folder {self.trainer.default_root_dir}.")

    def before_validate(self) -> None:
        """Find mistakes."""
        self._check()

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the command that was typed: the parsers of the other three would take as long again to build, each."""
        known = LightningCLI.subcommands()
        typed = RobustCLI.command.split()[1]
        return {typed: known[typed]}

    def before_predict(self) -> None:
        """Do not gather all probabilities in memory: the prediction file is written batch by batch."""
        self._check()
        self.config_init["predict"]["return_predictions"] = False

    def before_test(self) -> None:
        """Silence Lightning's table, which repeats every value for every loader; tell what a test must be to go on."""
        self.config_init["test"]["verbose"] = False
        # Of the best value of a training, which no test asks for.
        warnings.filterwarnings("ignore", message="The dirpath has changed from")
        self.datamodule.limit = self.config["test"].limit
        settings = self._parser("test").dump(self.config["test"].clone().update(False, "report"), skip_none=False)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, callbacks.Resumption):
                callback.settings = settings
        self._check()

    def _check(self) -> None:
        """Find what does not fit the data before a logger starts, which would leave a run behind; Lightning does so."""
        command, trainer, data = self.config.subcommand, self.trainer, self.datamodule
        trainer.state.fn = TrainerFn(command)
        trainer.datamodule, data.trainer, self.model.trainer = data, trainer, trainer  # type: ignore[attr-defined]
        trainer.strategy.connect(self.model)  # The data ask the module in training what it reads.
        self.steps = 0
        data.setup(command)
        self.model.check(command)
        if command == "fit" and not keeps_its_state(self.model):
            self.steps = len(data.train_dataloader())
        if command == "test":
            missing = data.missing_sets
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, callbacks.SampleRestriction) or (
                    isinstance(callback, callbacks.EvaluationCallback) and not callback.lacks(missing)
                ):
                    callback.check(trainer)

    def after_fit(self) -> None:
        """Print where the checkpoints are, the best value, and the command that tests."""
        savers = [saver for saver in self.trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint)]
        savers.sort(key=lambda saver: saver.monitor is not None)  # The best of one that watches no value is the last.
        written = [path for saver in savers for path in (saver.last_model_path, saver.best_model_path) if path]
        if not self.trainer.is_global_zero or not written or keeps_its_state(self.model):
            return
        for saver in savers:
            if saver.monitor is not None and saver.best_model_score is not None:
                print(f"The best {saver.monitor} is {float(saver.best_model_score):.4g}, of {saver.best_model_path}.")
        if not any(saver.monitor and saver.best_model_path == written[0] for saver in savers):
            print(f"The last checkpoint is {written[0]}.")
        tests = self.command.replace(" fit", " test", 1)
        print(f"The training is in {self.trainer.default_root_dir}. To test it: {resuming(tests, Path(written[0]))}")

    def after_predict(self) -> None:
        """Print where the predictions are."""
        if self.trainer.is_global_zero:
            print(f"Predictions are in {Path(self.trainer.default_root_dir) / PREDICTIONS}, a line an image.")

    def after_test(self) -> None:
        """Print the results, where they are, and the page, or the command that makes it."""
        folder = Path(self.trainer.default_root_dir)
        if self.trainer.is_global_zero:
            runs = {run.label: run.found for run in load_runs([folder])}
            page = folder / "report.html"
            way = shlex.join(["lit-robust", "report", str(folder), "-o", str(page)])
            made = write_report([folder], page) if self.config["test"].report else way
            print(f"\n{terminal(compare(runs))}\n\nResults are in {folder / FILE_NAME}. As a page: {made}")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the command line, and refuse what cannot work before anything heavy is done."""
        try:
            args = with_evaluations(parser, self.command.split()[1], args) if isinstance(args, list) else args
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            called = self.command.split()[1]
            known = [*self._parser(called)._option_string_actions, *changed(called)]
            raise UserError(explain(error, [name[2:] for name in known if name.startswith("--")])) from error
        command = self.config.subcommand
        options = self.config[command]
        refuse_flat_settings(command, options)
        self.single_batches = [limit for limit in LIMITS if _asks_for_one(limit, args)]
        if options.trainer.default_root_dir is None:
            raise UserError("trainer.default_root_dir is null: name the run's folder.")
        if isinstance(options.seed_everything, int) and options.seed_everything < 0:
            raise UserError(f"seed_everything is {options.seed_everything}: give 0 or more.")
        if str(options.trainer.precision) in ("16-true", "bf16-true"):
            raise UserError(f"precision {options.trainer.precision} computes everything in 16 bits: use bf16-mixed.")
        if options.trainer.limit_test_batches == 0:
            raise UserError("trainer.limit_test_batches is 0, so nothing would be measured: give a share above 0.")
        check_weights(command, options)

    def _parse_ckpt_path(self) -> None:
        """Let a resumed training keep the settings it is given; Lightning would take the checkpoint's in silence.

        What a test, validation or prediction knows of the network's training is the checkpoint's.
        """
        if self.config.subcommand != "fit":
            super()._parse_ckpt_path()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer, with limits of 1 as whole numbers, and batch norms that stay whole where synchronised.

        To Lightning 1.0 is everything and 1 one batch, and the parser makes 1.0 of a 1.

        Raises:
            UserError: batch norms are to be synchronised between processes on CPUs.
        """
        options = self.config_init[self.config.subcommand].trainer
        if options.sync_batchnorm:
            given = options.plugins if isinstance(options.plugins, list) else filter(None, [options.plugins])
            kwargs |= {"sync_batchnorm": False, "plugins": [*given, SynchronisedNorms()]}
        trainer = super().instantiate_trainer(**kwargs, **dict.fromkeys(self.single_batches, 1))
        on_cpus = isinstance(trainer.strategy, ParallelStrategy) and trainer.strategy.root_device.type == "cpu"
        if options.sync_batchnorm and on_cpus:
            raise UserError(
                "trainer.sync_batchnorm is true, which torch can do between GPUs alone: set it to false on CPUs."
            )
        if not trainer.loggers:
            # It refuses a trainer that has nowhere to log to, which `--trainer.logger false` asks for.
            kept = [callback for callback in trainer.callbacks if not isinstance(callback, LearningRateMonitor)]  # type: ignore[attr-defined]
            trainer.callbacks = kept  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                # Lightning hands on a setting that W&B has no more, and that W&B tells each user off for. The name is
                # private: no public one keeps it from W&B. A test fails when it moves.
                logger._wandb_init.pop("anonymous", None)
        write_whole_checkpoints(trainer)
        if "://" not in options.default_root_dir and trainer.is_global_zero:
            self.held.enter_context(
                held_alone(
                    Path(options.default_root_dir) / ".lock",
                    f"Another command works in {options.default_root_dir}: wait for it, or give this one a folder of "
                    "its own, by --trainer.default_root_dir.",
                )
            )
        if self.config.subcommand == "fit":
            savers = [callback for callback in trainer.callbacks if isinstance(callback, SaveOnSignal)]  # type: ignore[attr-defined]
            if not savers:
                savers = [SaveOnSignal(("SIGTERM", "SIGINT"))]
                trainer.callbacks.insert(0, *savers)  # type: ignore[attr-defined]
            for saver in savers:
                saver.command = saver.command or self.command
        return trainer

    def before_instantiate_classes(self) -> None:
        """Put relative folders of loggers and of checkpoint callbacks inside the run's folder."""
        options = self.config[self.config.subcommand]
        checkpoint, network = options.get("ckpt_path"), options.model.get("init_args", {}).get("network")
        if checkpoint is not None and network is not None and network.weights is not None:
            # The checkpoint holds all weights, and says how its images are normalised; the file that training started
            # from may be gone by now. `last` may name no checkpoint yet: then training starts from the weights, where
            # they are still there.
            is_gone = "/" in network.weights and not Path(network.weights).exists()
            if Path(checkpoint).is_file():
                network.weights = checkpoint
            elif is_gone:
                network.weights = None
        trainer = options.trainer
        root = Path(trainer.default_root_dir)
        folders = {root / FILE.parent}
        for entry in [*_listed(trainer.logger), *_listed(trainer.callbacks)]:
            arguments = entry.get("init_args", {})
            for key in ("save_dir", "dirpath"):
                if arguments.get(key) is not None:
                    arguments[key] = str(root / arguments[key])
                    folders |= {Path(arguments[key])} if key == "dirpath" else set()
            if trainer.fast_dev_run and arguments.get("save_last"):
                arguments["save_last"] = False  # Lightning would save one at the end, against its own word.
        one_batch = "limit_test_batches" in self.single_batches
        cut = one_batch or trainer.fast_dev_run or trainer.limit_test_batches not in (None, 1.0)
        if self.config.subcommand == "test" and (checkpoint is None or Path(checkpoint).is_file()):
            name, weights = (
                (network.name, network.weights) if network is not None and not checkpoint else (None, checkpoint)
            )
            check_replaced(root, name, weights, partial=bool(options.limit or cut))
        if self.config.subcommand == "fit" and not trainer.fast_dev_run:
            check_folder(root, sorted(folders), checkpoint)


def _asks_for_one(limit: str, args: ArgsType) -> bool:
    """Tell whether the last word, or recipe, that sets a limit of batches sets the whole number 1."""
    words = [str(word) for word in args] if isinstance(args, list) else []
    found = False
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        value = value if "=" in word else words[place + 1] if place + 1 < len(words) else ""
        if name == f"--trainer.{limit}":
            found = value == "1"
        elif name in ("-c", "--config") and Path(value).is_file():
            content = yaml.safe_load(Path(value).read_text())
            trainer = content.get("trainer") if isinstance(content, dict) else None
            if isinstance(trainer, dict) and limit in trainer:
                found = trainer[limit] == 1 and isinstance(trainer[limit], int)
    return found


def _listed(value: Any) -> list[Namespace]:
    entries = value if isinstance(value, list) else [value]
    return [entry for entry in entries if isinstance(entry, Namespace)]


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(("Tip: For seamless", "💡 Tip", "TPU available"))


def run_trainer(words: Sequence[str], command: str) -> None:
    """Run one of Lightning's commands.

    Args:
        words: the command and its options.
        command: the whole command line, kept with the results.
    """
    # Lightning 2.6.6 calls three names that jsonargparse 4.49 deprecates (Lightning issue 21900): theirs to fix.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    # The words are handed on explicitly, so that a test or the demo may call in the same process.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended to run from within Python")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.. is deprecated")
    # Its line for Python is not this command's; slurm/README.md has that.
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    read_words()
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # For classes of the user's own, as `python -m` does.
    # A line of a library's source under each warning says nothing to who runs a command.
    warnings.formatwarning = lambda message, category, filename, lineno, line=None: f"warning: {message}\n"
    # It says where to look in six lines at the beginning and thirty at the end; one is printed here.
    os.environ.setdefault("WANDB_SILENT", "true")
    data.load_all()
    if any(word.partition("=")[0] == "--trainer.callbacks" for word in words) and {"-c", "--config"} & set(words):
        warnings.warn("--trainer.callbacks replaces all of the recipe's; --trainer.callbacks+= adds one.", stacklevel=1)
    raises = {"exit_on_error": False}
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(_is_no_advertisement)
    RobustCLI.command = command
    try:
        RobustCLI(
            ClassifierModule,
            RobustDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_class=RobustTrainer,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            parser_class=TrainerParser,
            save_config_callback=KeepConfig,
            save_config_kwargs={"save_to_log_dir": False, "overwrite": True},
            trainer_defaults={
                "default_root_dir": "runs/unnamed",
                "enable_model_summary": False,
                "callbacks": [
                    callbacks.ResultsFile(command),
                    callbacks.PredictionFile(),
                    callbacks.SampleImages(),
                    callbacks.Resumption(),
                    callbacks.Throughput(),
                    callbacks.Announcement(),
                ],
            },
            parser_kwargs={**raises, words[0]: dict(raises)},
            args=with_recipes(words),
        )
    except SIGTERMException as ended:
        ended.code = 128 + signal.SIGTERM  # Lightning's own is 0, as of what is finished.
        if not getattr(ended, "__notes__", None):
            ended.add_note("interrupted; nothing is kept." if rank_zero_only.rank == 0 else "")  # type: ignore[attr-defined]
        raise
    finally:
        RobustCLI.held.close()
        # Lightning leaves an open W&B run open; a second command in this process would write into it.
        if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
            error = sys.exc_info()[1]
            sys.modules["wandb"].finish(exit_code=0 if error is None else getattr(error, "code", None) or 1)
