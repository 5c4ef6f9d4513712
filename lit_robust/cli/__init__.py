"""The command ``lit-robust``."""

from lit_robust.cli.main import TRAINER_COMMANDS, main

__all__ = ["TRAINER_COMMANDS", "main"]
