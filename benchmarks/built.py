"""What the compile matrix knows of a compiled kernel, and its summaries."""

import re
from typing import NamedTuple

import pandas as pd

KIB = 1024
# A block's shared memory, in bytes, by architecture. CuPy's launchers do not ask for more than every GPU gives unasked.
SHARED_LIMITS = {"75": 64, "80": 163, "86": 99, "89": 99, "90": 227, "100": 227, "120": 99, "gfx942": 64, "gfx1100": 64}
SHARED_LIMIT_UNASKED = 48 * KIB
TENSOR_CORES = re.compile(r"\b(mma\.sync|wmma\.mma|wgmma\.mma_async|tcgen05\.mma|v_mfma|v_wmma)")


class Built(NamedTuple):
    """A compiled kernel: what a thread and a block of it take, and whether it uses tensor cores."""

    backend: str
    target: str
    precision: str
    kernel: str
    warps: int
    registers: int
    spilled: int
    shared: int
    shared_limit: int
    tensor_cores: bool

    @property
    def fits(self) -> bool:
        """Whether a block gets its shared memory and, on NVIDIA's GPUs, no register went to memory."""
        return self.shared <= self.shared_limit and (not self.spilled or self.target.startswith("gfx"))


def worst(rows: list[Built]) -> pd.DataFrame:
    """A row a kernel, precision and target: how many variants, the most of what they take, how many use tensor cores."""
    keys = ["backend", "target", "precision", "kernel"]
    return _summary(pd.DataFrame(rows).groupby(keys, sort=False))


def by_target(rows: list[Built]) -> pd.DataFrame:
    """A row a backend and target, over all kernels and precisions."""
    return _summary(pd.DataFrame(rows).groupby(["backend", "target"], sort=False))


def _summary(groups: "pd.api.typing.DataFrameGroupBy") -> pd.DataFrame:
    return groups.agg(
        variants=("kernel", "size"),
        registers=("registers", "max"),
        spilled=("spilled", "max"),
        spilling=("spilled", lambda spilled: (spilled > 0).sum()),
        shared=("shared", "max"),
        shared_limit=("shared_limit", "first"),
        tensor_cores=("tensor_cores", "sum"),
    ).reset_index()
