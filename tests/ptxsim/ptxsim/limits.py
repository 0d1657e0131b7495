"""What each GPU architecture allows a launch: the driver refuses the rest.

Where GPUs of one architecture differ, the figures are those of the model named here; LaunchOptions can
override its number of multiprocessors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import LaunchError

MOST_THREADS_PER_BLOCK = 1024
MOST_GRID = (2**31 - 1, 65535, 65535)
MOST_BLOCK = (1024, 1024, 64)
REGISTERS = 65536  # of a multiprocessor, and the most of a block
STATIC_SHARED = 48 * 1024  # most shared memory of a block that does not ask for more


@dataclass(frozen=True)
class Architecture:
    """Limits of one compute capability; shared memory in bytes."""

    model: str
    multiprocessors: int
    threads: int  # resident on a multiprocessor
    blocks: int  # resident on a multiprocessor
    shared: int  # of a multiprocessor
    shared_of_block: int  # most for one block, static and dynamic, when it asks for it
    shared_reserved: int = 1024  # taken by the system for every resident block


def _architecture(model, multiprocessors, threads, blocks, shared, of_block, reserved=1024) -> Architecture:
    return Architecture(model, multiprocessors, threads, blocks, shared * 1024, of_block * 1024, reserved)


ARCHITECTURES = {
    75: _architecture("T4", 40, 1024, 16, 64, 64, 0),
    80: _architecture("A100", 108, 2048, 32, 164, 163),
    86: _architecture("A10", 72, 1536, 16, 100, 99),
    87: _architecture("Orin", 16, 1536, 16, 164, 163),
    89: _architecture("RTX 4090", 128, 1536, 24, 100, 99),
    90: _architecture("H100", 132, 2048, 32, 228, 227),
    100: _architecture("B200", 148, 2048, 32, 228, 227),
    120: _architecture("RTX 5090", 170, 1536, 24, 100, 99),
}


def architecture(arch: int) -> Architecture:
    """The limits of an architecture; of the latest one before it where it is not listed."""
    return ARCHITECTURES[max((known for known in ARCHITECTURES if known <= arch), default=min(ARCHITECTURES))]


def resident_blocks(
    arch: int, threads: int, shared: int, registers: int = 0, multiprocessors: int | None = None
) -> int:
    """Blocks that the GPU holds at a time: with `shared` bytes each, and `registers` per thread (0: unknown)."""
    a = architecture(arch)
    warps = math.ceil(threads / 32)
    per_multiprocessor = min(
        a.blocks,
        a.threads // (32 * warps),
        a.shared // (128 * math.ceil((shared + a.shared_reserved) / 128)) if shared + a.shared_reserved else a.blocks,
        # Registers are given to warps in units of 256.
        REGISTERS // (256 * math.ceil(32 * registers / 256)) // warps if registers else a.blocks,
    )
    return per_multiprocessor * (multiprocessors or a.multiprocessors)


def check_geometry(name: str, grid, block) -> None:
    """Refuses a grid or block that no GPU can launch."""
    if min(grid) < 1 or min(block) < 1:
        raise LaunchError(f"kernel '{name}': empty grid {grid} or block {block}")
    if math.prod(block) > MOST_THREADS_PER_BLOCK or any(n > most for n, most in zip(block, MOST_BLOCK, strict=True)):
        raise LaunchError(f"kernel '{name}': block {block} exceeds {MOST_BLOCK} or {MOST_THREADS_PER_BLOCK} threads")
    if any(n > most for n, most in zip(grid, MOST_GRID, strict=True)):
        raise LaunchError(f"kernel '{name}': grid {grid} exceeds {MOST_GRID}")


def check_shared(name: str, arch: int, static: int, dynamic: int, allowed: int | None) -> None:
    """Refuses more shared memory than the kernel asked for, or than the architecture has.

    allowed: the kernel's MAX_DYNAMIC_SHARED_SIZE_BYTES; None if it was not set.
    """
    most = architecture(arch).shared_of_block
    if static > STATIC_SHARED:
        raise LaunchError(f"kernel '{name}': {static} bytes of static shared memory exceed {STATIC_SHARED}")
    if static + (allowed or 0) > most:
        raise LaunchError(
            f"kernel '{name}': {static} bytes of static and {allowed} of dynamic shared memory exceed the {most} "
            f"of sm_{arch}"
        )
    allowed = STATIC_SHARED - static if allowed is None else allowed
    if dynamic > allowed:
        raise LaunchError(
            f"kernel '{name}': {dynamic} bytes of dynamic shared memory exceed max_dynamic_shared_size_bytes = "
            f"{allowed}; set it first (sm_{arch} allows {most - static})"
        )
