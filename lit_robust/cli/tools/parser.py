"""The parser of a tool."""

from jsonargparse import ArgumentParser


def parser_of(name: str, description: str) -> ArgumentParser:
    """Return a parser for ``lit-robust NAME``, which raises instead of ending the process.

    Args:
        name: one or two words.
        description: what the tool does, for ``--help``.
    """
    return ArgumentParser(prog=f"lit-robust {name}", description=description, exit_on_error=False, allow_abbrev=False)
