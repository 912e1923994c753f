"""The one exception for problems a user can cause and mend."""


class Es2Error(Exception):
    """Says in one line what was wrong, where, and what to do.

    The command line prints the line and exits with 2. Any other exception is a bug in es2 and keeps
    its traceback.
    """
