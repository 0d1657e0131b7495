"""What the compile matrix knows of a compiled kernel, and its summaries."""

import math
import re
from typing import NamedTuple

import pandas as pd

KIB = 1024
# A block's shared memory, in bytes, by architecture. CuPy's launchers do not ask for more than every GPU gives unasked.
SHARED_LIMITS = {"75": 64, "80": 163, "86": 99, "89": 99, "90": 227, "100": 227, "120": 99, "gfx942": 64, "gfx1100": 64}
SHARED_LIMIT_UNASKED = 48 * KIB
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?(\w+)[^;]*?(?:0x([0-9a-f]+))?\s*;", re.MULTILINE)
ASSEMBLY = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);", re.MULTILINE)
# By the shapes that NVIDIA's assembly names: multiply-adds of a warp, a fourth of a product of four warps.
HMMA = {"1688": 16 * 8 * 8, "16816": 16 * 8 * 16, "1684": 16 * 8 * 4}
MMA = re.compile(r"HGMMA\.(\d+)x(\d+)x(\d+)|HMMA\.(\d+)")
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
    spills_in_loops: int
    shared: int
    shared_limit: int
    tensor_cores: bool

    @property
    def fits(self) -> bool:
        """Whether a block gets its shared memory and, on NVIDIA's GPUs, no loop waits for a register that went to memory.

        To have one block more on a multiprocessor, ptxas may keep a value that a loop does not need, a column's number
        say, in memory while the loop runs.
        """
        return self.shared <= self.shared_limit and (not self.spills_in_loops or self.target.startswith("gfx"))


def spills_in_loops(sass: str) -> int:
    """How many instructions within loops store or load a spilled register, in the assembly that cuobjdump prints."""
    loops = _loops(sass)
    return sum(
        name in ("STL", "LDL") and any(first <= int(at, 16) <= last for first, last in loops)
        for at, name, _ in INSTRUCTION.findall(sass)
    )


def tensor_core_loops(sass: str) -> list[tuple[int, int, int]]:
    """(instructions, of them products, multiply-adds of a warp) of one pass of each innermost loop with products."""
    loops = _loops(sass)
    counted = []
    for first, last in loops:
        if any((first, last) != (a, b) and first <= a and b <= last for a, b in loops):
            continue
        body = [line for at, line in ASSEMBLY.findall(sass) if first <= int(at, 16) <= last]
        products = [_multiply_adds(match) for line in body if (match := MMA.search(line))]
        if products:
            counted.append((len(body), len(products), sum(products)))
    return counted


def _loops(sass: str) -> list[tuple[int, int]]:
    """The first and the last address of each loop."""
    return [
        (int(target, 16), int(at, 16))
        for at, name, target in INSTRUCTION.findall(sass)
        if name == "BRA" and target and int(target, 16) < int(at, 16)
    ]


def _multiply_adds(product: re.Match[str]) -> int:
    *of_four_warps, of_one = product.groups()
    return HMMA[of_one] if of_one else math.prod(map(int, of_four_warps)) // 4


def by_kernel(rows: list[Built]) -> pd.DataFrame:
    """A row a kernel, precision and target: how many variants, the most of what they take, how many use tensor cores."""
    variants = pd.DataFrame(rows).assign(variants=1)
    return _summary(variants.assign(spilling=variants["spilled"] > 0), ["backend", "target", "precision", "kernel"])


def by_target(kernels: pd.DataFrame) -> pd.DataFrame:
    """A row a backend and target, over all kernels and precisions."""
    return _summary(kernels, ["backend", "target"])


def _summary(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    counted = dict.fromkeys(("variants", "spilling", "tensor_cores"), "sum")
    most = dict.fromkeys(("registers", "spilled", "spills_in_loops", "shared", "shared_limit"), "max")
    summary = table.groupby(keys, sort=False).agg(counted | most).reset_index()
    figures = ("registers", "spilled", "spilling", "spills_in_loops", "shared", "shared_limit", "tensor_cores")
    return summary[[*keys, "variants", *figures]]
