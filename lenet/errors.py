"""The error a user can mend."""


class LenetError(Exception):
    """Bad input; its text is the one line the command line prints before it exits with status 2."""
