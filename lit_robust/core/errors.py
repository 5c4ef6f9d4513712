"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """A mistake a user can mend: one sentence that names the value and the fix.

    The command line prints the sentence alone, without a traceback, and exits with code 2.
    """


class DataError(UserError):
    """Shards or labels on disk that are not what they must be: names the file and the place in it."""
