"""How our modules fall back on the torch modules they mirror."""

from types import ModuleType
from typing import Any


def torch_attribute(torch_module: ModuleType, module: str, name: str) -> Any:
    """What torch's module has under a name that ours lacks; AttributeError where it has nothing.

    Names in double underscores are not passed on: torch's __path__ would make Python load torch's files again as ours.
    """
    if name.startswith("__"):
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    return getattr(torch_module, name)
