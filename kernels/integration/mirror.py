"""How our modules fall back on the torch modules they mirror."""

import importlib
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any


def torch_attribute(torch_module: ModuleType, module: str, name: str) -> Any:
    """What torch's module has under a name that ours lacks; AttributeError where it has nothing.

    Names in double underscores are not passed on: torch's __path__ would make Python load torch's files again as ours.
    """
    if name.startswith("__"):
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    return getattr(torch_module, name)


def mirror_submodules(torch_module: ModuleType, module: str, names: Iterable[str]) -> None:
    """Makes `import module.name` give torch's submodule of that name, the very same; a .pyi tells type checkers."""
    for name in names:
        sys.modules[f"{module}.{name}"] = importlib.import_module(f"{torch_module.__name__}.{name}")
