"""What a traceback or a profile calls a function that was made for one operation of many."""

from collections.abc import Callable
from typing import Any


def shown_as(name: str) -> Callable[[Any], Any]:
    """Gives the function below it a name in tracebacks and profiles, where all functions of one `def` else share one."""

    def rename(function: Any) -> Any:
        function.__code__ = function.__code__.replace(co_name=name)
        return function

    return rename
