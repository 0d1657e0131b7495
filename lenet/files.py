"""Files that are never half-written."""

import os
from pathlib import Path


def write_file(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, then rename: a reader finds the old file or the new one, whole.

    Processes that write the same file at the same time do not meet: the last to rename wins.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    beside.write_bytes(content)
    os.replace(beside, path)
