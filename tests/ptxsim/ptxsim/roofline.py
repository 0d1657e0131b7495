"""A lower bound on the time a launch would take on a named GPU.

The bound is the slowest of several pipes, each assumed to run at its published peak with perfect
overlap, plus a fixed launch overhead. Real kernels are slower, often by a factor of two or more:
latency, occupancy, dependencies and cache misses are not modelled. Use it to compare versions of a
kernel and to see which pipe limits it, not to predict times. DRAM traffic assumes an ideal cache
within a launch and an empty one before it, so data kept in L2 between launches makes the DRAM term
too high. None of this was validated against hardware.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .launch import LaunchRecord
from .limits import ARCHITECTURES

SECTOR_BYTES = 32


@dataclass(frozen=True)
class GPU:
    """Published peaks; rates per second. l2_bandwidth is a rough figure."""

    name: str
    multiprocessors: int
    clock: float  # boost, Hz
    fma_flops: dict[str, float]  # outside the tensor cores, by type
    tensor_flops: dict[str, float]  # dense, by operand type
    dram_bandwidth: float
    l2_bandwidth: float
    launch_overhead: float = 2.5e-6


_MULTIPROCESSORS = {a.model: a.multiprocessors for a in ARCHITECTURES.values()}


def _gpu(name, ghz, f32, f16, f64, tensor, dram, l2) -> GPU:
    tera = 1e12
    return GPU(
        name,
        _MULTIPROCESSORS[name],
        ghz * 1e9,
        {"f32": f32 * tera, "f16": f16 * tera, "bf16": f16 * tera, "f64": f64 * tera},
        {k: v * tera for k, v in tensor.items()},
        dram * 1e9,
        l2 * 1e9,
    )


def _tensor(f16, tf32, int8, f64) -> dict[str, float]:
    return {"f16": f16, "bf16": f16, "tf32": tf32, "s8": int8, "u8": int8, "f64": f64}


GPUS = {
    "T4": _gpu("T4", 1.59, 8.1, 16.2, 0.25, _tensor(65, 8.1, 130, 0.25), 320, 1270),
    "A100": _gpu("A100", 1.41, 19.5, 78, 9.7, _tensor(312, 156, 624, 19.5), 1555, 4800),
    "H100": _gpu("H100", 1.83, 66.9, 133.8, 33.5, _tensor(989, 494, 1979, 66.9), 3350, 5700),
    "RTX 4090": _gpu("RTX 4090", 2.52, 82.6, 82.6, 1.29, _tensor(165, 82.6, 660, 1.29), 1008, 5000),
}


@dataclass
class Bound:
    """Seconds per pipe of one or more launches."""

    gpu: str
    seconds: float = 0.0
    pipes: dict[str, float] = field(default_factory=dict)  # summed over launches
    launches: int = 0
    overhead: float = 0.0

    @property
    def limiter(self) -> str:
        """The pipe with the largest share, or 'launch overhead'."""
        return max({**self.pipes, "launch overhead": self.overhead}.items(), key=lambda item: item[1])[0]

    def __str__(self) -> str:
        pipes = ", ".join(f"{name} {t * 1e6:.2f}" for name, t in sorted(self.pipes.items(), key=lambda p: -p[1]) if t)
        return (
            f"at least {self.seconds * 1e6:.2f} us on {self.gpu} ({self.launches} launches, limited by "
            f"{self.limiter}; pipes in us: {pipes})"
        )


def pipe_times(record: LaunchRecord, gpu: GPU) -> dict[str, float]:
    """Seconds that each pipe needs at least for one launch."""
    c = record.counters
    blocks = record.grid[0] * record.grid[1] * record.grid[2]
    share = min(blocks, gpu.multiprocessors) / gpu.multiprocessors  # idle multiprocessors do not help
    sm_cycles = gpu.clock * gpu.multiprocessors * share  # multiprocessor cycles per second
    global_sectors = c.global_load_sectors + c.global_store_sectors + c.atomic_sectors
    return {
        "fma": sum(n / gpu.fma_flops[kind] for kind, n in c.flops.items()) / share,
        "tensor": sum(n / gpu.tensor_flops[kind] for kind, n in c.tensor_flops.items()) / share,
        "special": c.by_class.get("special", 0) * 2 / sm_cycles,  # 16 lanes per cycle
        "issue": c.warp_instructions / (4 * sm_cycles),  # 4 schedulers
        "shared": c.shared_wavefronts / sm_cycles,  # 128 bytes per cycle
        "dram": (c.sectors_read + c.sectors_written) * SECTOR_BYTES / gpu.dram_bandwidth,
        "l2": global_sectors * SECTOR_BYTES / gpu.l2_bandwidth,
    }


def bound(records: LaunchRecord | list[LaunchRecord], gpu: str | GPU = "A100") -> Bound:
    """The bound of one launch, or the sum over a list of launches."""
    model = GPUS[gpu] if isinstance(gpu, str) else gpu
    result = Bound(model.name)
    for record in [records] if isinstance(records, LaunchRecord) else records:
        times = pipe_times(record, model)
        result.launches += 1
        result.overhead += model.launch_overhead
        result.seconds += model.launch_overhead + max(times.values())
        for name, seconds in times.items():
            result.pipes[name] = result.pipes.get(name, 0.0) + seconds
    return result
