"""Files that are never half-written, and folders that hold nothing yet."""

import os
from itertools import chain, count
from pathlib import Path


def write_file(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, then rename: a reader finds the old file or the new one, whole.

    Processes that write the same file at the same time do not meet: the last to rename wins.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    beside.write_bytes(content)
    os.replace(beside, path)


def unused(folder: Path, file: str) -> Path:
    """`folder`, or where it holds `file` the first of `folder`-2, -3 and so on that does not."""
    others = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(place for place in chain([folder], others) if not (place / file).exists())
