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


def by_kernel(rows: list[Built]) -> pd.DataFrame:
    """A row a kernel, precision and target: how many variants, the most of what they take, how many use tensor cores."""
    variants = pd.DataFrame(rows).assign(variants=1)
    return _summary(variants.assign(spilling=variants["spilled"] > 0), ["backend", "target", "precision", "kernel"])


def by_target(kernels: pd.DataFrame) -> pd.DataFrame:
    """A row a backend and target, over all kernels and precisions."""
    return _summary(kernels, ["backend", "target"])


def _summary(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    counted = dict.fromkeys(("variants", "spilling", "tensor_cores"), "sum")
    most = dict.fromkeys(("registers", "spilled", "shared", "shared_limit"), "max")
    summary = table.groupby(keys, sort=False).agg(counted | most).reset_index()
    return summary[[*keys, "variants", "registers", "spilled", "spilling", "shared", "shared_limit", "tensor_cores"]]
