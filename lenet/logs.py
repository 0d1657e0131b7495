"""What `lenet` is doing, through the standard library's logging, on stderr."""

import logging
import sys

from lenet.rank import rank


def log_to_stderr(level: str) -> None:
    """Show the messages of the loggers "lenet.*" from `level` on, "debug" to "error", with the rank of many processes."""
    which = "" if rank() is None else f" [rank {rank()}]"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s{which} %(name)s: %(message)s"))
    logger = logging.getLogger("lenet")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
