"""Ctrl-C, which ends a run between two steps."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lenet.processes import Processes

ONE_PRESS = 1.0  # seconds in which a process may be told twice of one Ctrl-C: by the terminal and by torchrun


class Stop:
    """Whether the run is to end: `agreed` is what all processes knew when they last called `agree`."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.pressed: float | None = None
        self.agreed = False

    def press(self, *_: object) -> None:
        """Asks for the end; asked again, interrupts at once."""
        now = time.monotonic()
        if self.pressed is None:
            self.pressed = now
        elif self.processes.size == 1 or now - self.pressed > ONE_PRESS:
            raise KeyboardInterrupt

    def agree(self) -> bool:
        """Whether any process was asked; all call it after the same step, and get the same answer."""
        self.agreed = self.processes.any(self.pressed is not None)
        return self.agreed


@contextmanager
def ctrl_c(processes: Processes) -> Iterator[Stop]:
    """What the first Ctrl-C asks to stop; the second interrupts at once."""
    stop = Stop(processes)
    before = signal.signal(signal.SIGINT, stop.press)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
