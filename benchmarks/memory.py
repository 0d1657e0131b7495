"""Peak memory of training steps, each contender in a fresh process: `python -m benchmarks.memory CONTENDER BATCH`."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from benchmarks.bench_lenet import NETWORKS, batch_of, training
from benchmarks.case import OURS, SWAPPED, TORCH

BATCHES = (4096,)
STEPS = 5
CONTENDERS = (TORCH, OURS, SWAPPED)


def measure(batches: Sequence[int], device: str) -> pd.DataFrame:
    """What the steps add to the peak of a process that has its model and data, in MB."""
    rows = []
    for batch in batches:
        for contender in CONTENDERS:
            command = [sys.executable, "-m", "benchmarks.memory", contender, str(batch), device]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows.append({"batch": batch, "contender": contender, "peak_mb": float(output)})
    return pd.DataFrame(rows)


def peak(device: str) -> float:
    """The most memory this process has used so far, in MB: on a GPU, of torch's allocations there. Linux only.

    Not getrusage's ru_maxrss, in which a child starts from its parent's peak.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].removesuffix("kB")) * 1024 / 1e6


def main(contender: str, batch: int, device: str) -> None:
    with torch.device(device):
        network = NETWORKS[contender]()
        step, one_image = training(network, *batch_of(batch)), training(network, *batch_of(1))
    one_image()  # loads the code and starts the threads
    before = peak(device)
    for _ in range(STEPS):
        step()
    print(peak(device) - before)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
