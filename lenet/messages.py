"""What a user is told: errors he can mend, and the log."""

import logging
import os
import sys


class LenetError(Exception):
    """Bad input; its text is the one line the command line prints before it exits with status 2."""


def rank() -> str | None:
    """The rank of this process where several were started together, as the environment tells without torch."""
    return os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else None


def print_error(message: str) -> None:
    """Say on stderr, in one line, what a user can mend, and in which process where there are many."""
    which = "" if rank() is None else f" (rank {rank()})"
    print(f"lenet: error{which}:", " ".join(message.split()), file=sys.stderr)


def log_to_stderr(level: str) -> None:
    """Show the messages of the loggers "lenet.*" from `level` on, "debug" to "error", with the rank of many processes."""
    which = "" if rank() is None else f" [rank {rank()}]"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s{which} %(name)s: %(message)s"))
    logger = logging.getLogger("lenet")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
