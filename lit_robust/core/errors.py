"""The one exception that means "the user can mend this", and how names from files are written into sentences."""


class UserError(Exception):
    """A mistake a user can mend: one sentence that names the value and the fix.

    The command line prints the sentence alone, without a traceback, and exits with code 2.
    """


class DataError(UserError):
    """Shards or labels on disk that are not what they must be: names the file and the place in it."""


def printable(text: str) -> str:
    r"""Return a text for a terminal, log or table: on one line, every unprintable character as its escape.

    Names in shards, folders and results files are others' words: a newline, a terminal's control sequence, a mark that
    turns the direction of writing or a lone surrogate may stand in them.

    Example:
        >>> printable("n01/cat\x1b[2J\nEND")
        'n01/cat\\x1b[2J\\nEND'
    """
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
