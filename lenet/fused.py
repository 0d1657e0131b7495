"""Training steps by kernels.FusedStep, several a call, where that applies."""

import logging
import time

import kernels
from lenet.processes import ALONE, Processes
from lenet.run import Run
from lenet.train import Batches, Step

log = logging.getLogger(__name__)

CALL = 0.1  # seconds that a call should take, so that the progress bar moves and Ctrl-C is heard


class FusedSteps(Step):
    """As many steps a call as take a tenth of a second; weights and figures do not depend on how many they are."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.fused = kernels.FusedStep(run.model, run.settings.loss.replace("-", "_"), optimizer=run.optimizer)
        self.steps = 1

    def take(self, run: Run, batches: Batches) -> int:
        first = run.steps_done
        last = min(first + self.steps, len(batches.together))
        images, targets, _ = batches.part(first, last)
        start = time.perf_counter()
        losses = self.fused.run(images, targets, run.settings.batch_size, scheduler=run.scheduler).tolist()
        self.steps = max(1, min(8 * self.steps, int(CALL * len(losses) / (time.perf_counter() - start))))
        loss_sum = self.loss_sum.item()
        for loss, images_of_step in zip(losses, batches.together[first:last], strict=True):
            loss_sum += loss * images_of_step  # one by one: where a call ends must not change a bit
        self.loss_sum.fill_(loss_sum)
        self.correct += self.fused.correct.sum()
        return len(losses)


def best_step(run: Run, processes: Processes = ALONE) -> Step:
    """A fused step for one process in float32 where the backend has one, else one operation after the other."""
    why = f"there are {processes.size} processes" if processes.size > 1 else f"--amp {run.settings.amp}"
    if processes.size == 1 and run.settings.amp == "off":
        try:
            step = FusedSteps(run)
        except (RuntimeError, ValueError) as error:  # no backend for it; hooks of all modules
            why = str(error)
        else:
            log.info("fused steps: forward, loss, backward and update are one call")
            return step
    log.info("steps of one operation after the other: %s", why)
    return Step(run, processes)
