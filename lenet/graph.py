"""The training step as one CUDA graph: recorded once, then replayed with one launch."""

import logging

import torch
from torch import Tensor

from lenet.messages import LenetError
from lenet.processes import ALONE, Processes
from lenet.run import Run
from lenet.train import Step

log = logging.getLogger(__name__)

WARM_UP = 3  # steps before the recording: they compile and load the kernels and fill the momentum buffers


def check_recordable(device: torch.device, processes: Processes, amp: str) -> None:
    """LenetError where a step cannot be recorded: on a CPU, with many processes, in float16."""
    if device.type != "cuda":
        raise LenetError(f"--cuda-graph needs a GPU, this run is on {device}")
    if processes.size > 1:
        raise LenetError(f"--cuda-graph is for one process, there are {processes.size}")
    if amp == "fp16":
        raise LenetError(
            "--cuda-graph does not go with --amp fp16, which looks at the gradients before it takes a step"
        )


class GraphedStep(Step):
    """A Step that is replayed for full batches; the smaller one that may end an epoch is taken as it would be without.

    Both compute the same, bit for bit, on the same weights and momentum buffers, so they may take turns.
    """

    def __init__(self, run: Run, processes: Processes = ALONE) -> None:
        super().__init__(run, processes)
        self.size = run.settings.batch_size
        self.full_steps = 0
        (self.group,) = run.optimizer.param_groups
        self.rate = torch.zeros((), dtype=torch.float64, device=self.loss_sum.device)

    def __call__(self, x: Tensor, target: Tensor, label: Tensor, weight: float = 1.0) -> bool:
        if len(x) < self.size:
            return super().__call__(x, target, label)
        self.full_steps += 1
        if self.full_steps <= WARM_UP:
            return super().__call__(x, target, label)
        if self.full_steps == WARM_UP + 1:
            self.record(x, target, label)
        for place, tensor in zip(self.batch, (x, target, label), strict=True):
            place.copy_(tensor)
        self.rate.fill_(self.group["lr"])
        self.graph.replay()
        return True

    def record(self, x: Tensor, target: Tensor, label: Tensor) -> None:
        """Record a step, without taking it, that reads `self.batch` and the learning rate in `self.rate`."""
        self.batch = x.clone(), target.clone(), label.clone()
        self.graph = torch.cuda.CUDAGraph()
        rate, self.group["lr"] = self.group["lr"], self.rate
        with torch.cuda.device_of(self.rate), torch.cuda.graph(self.graph):
            super().__call__(*self.batch)
        self.group["lr"] = rate
        log.debug("step recorded as a CUDA graph, for batches of %d", self.size)
