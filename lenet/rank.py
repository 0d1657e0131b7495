"""Which of several processes this one is, without importing torch."""

import os


def rank() -> str | None:
    """The rank of this process where several were started together, as the environment tells."""
    return os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else None
