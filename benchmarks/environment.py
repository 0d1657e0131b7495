"""Where the numbers come from."""

import datetime
import os
import platform
import time
from pathlib import Path

import threadpoolctl
import torch

from kernels.check.versions import versions


def environment(device: str) -> dict[str, str | int]:
    """Machine, libraries and threads of this run."""
    blas = [info for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"]
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "blas": "; ".join(f"{info['internal_api']} {info['version']}, {info['num_threads']} threads" for info in blas),
    } | versions(torch.device(device))


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def others_seconds() -> float:
    """Processor time that other processes, and other virtual machines, have used since the start; NaN if unknown."""
    try:
        line = Path("/proc/stat").read_text().splitlines()[0]
    except OSError:
        return float("nan")
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, line.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()
