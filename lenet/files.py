"""Files that are never half-written."""

import os
from pathlib import Path


def write_file(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, then rename: a reader finds the old file or the new one, whole."""
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(content)
    os.replace(beside, path)
