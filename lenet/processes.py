"""Training with many processes, as torchrun starts them: who this one is, what they do together, and how they stop."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lenet.messages import LenetError, rank
from lenet.model import LeNet

TIMEOUT = 300  # seconds that a process waits for another
ONE_PRESS = 1.0  # seconds in which a process may be told twice of one Ctrl-C: by the terminal and by torchrun
T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process's `rank` of `size`, and of those on its machine, `local_rank`; the default is a process on its own."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes files."""
        return self.rank == 0

    def part(self, batch: Tensor) -> Tensor:
        """This process's part of a batch: a view, empty where there are fewer rows than processes."""
        return batch.tensor_split(self.size)[self.rank]

    def total(self, tensor: Tensor) -> Tensor:
        """`tensor`, summed over the processes in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        return bool(self.total(torch.tensor(int(here)))) if self.size > 1 else here

    def of_first(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process."""
        made = [make() if self.first else None]
        if self.size > 1:
            dist.broadcast_object_list(made, device=torch.device("cpu"))
        return made[0]  # type: ignore[return-value]

    def in_turn(self, make: Callable[[], T]) -> T:
        """What `make` gives, called on every machine by one process before the others: it may fill a cache for them."""
        if self.local_rank > 0:
            self.any(True)
        made = make()
        if self.local_rank == 0:
            self.any(True)
        return made

    def parallel(self, model: LeNet) -> torch.nn.Module:
        """`model`, with gradients that are means over the processes."""
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        if device.type == "cpu":
            return DistributedDataParallel(model)
        torch.cuda.set_device(device)  # where NCCL works
        return DistributedDataParallel(model, device_ids=[device])

    def device(self, name: str | None) -> str | None:
        """The device for `--device name`: of many processes each takes the GPU with its local rank."""
        if self.size == 1 or not torch.cuda.is_available() or not (name or "cuda").startswith("cuda"):
            return name
        if name not in (None, "cuda"):
            raise LenetError(f"--device {name}: {self.size} processes take a GPU each; say --device cuda")
        return f"cuda:{self.local_rank}"


ALONE = Processes()


@contextmanager
def joined(device: str | None) -> Iterator[Processes]:
    """A block in which the processes that torchrun started for `device` work together; else this one on its own.

    LenetError: they do not find each other, or one of them ends or falls silent before it should.
    """
    if rank() is None:
        yield ALONE
        return
    gpu = torch.cuda.is_available() and (device or "cuda").startswith("cuda")
    backend = "cpu:gloo,cuda:nccl" if gpu and dist.is_nccl_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT))
    except (RuntimeError, ValueError) as error:
        raise LenetError(
            f"the {os.environ['WORLD_SIZE']} processes have not found each other: {reason(error)}"
        ) from error
    clean = False
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", 0)))
        clean = True
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise LenetError(f"another process has ended or does not answer ({reason(error)})") from error
    finally:
        if clean or backend == "gloo":  # NCCL would wait for a process that is gone
            dist.destroy_process_group()


def reason(error: Exception) -> str:
    """The first sentence of an error of torch.distributed, without the place in its source."""
    return (
        str(error).partition("] ")[2].partition(". ")[0]
        if str(error).startswith("[")
        else str(error).partition("\n")[0]
    )


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
