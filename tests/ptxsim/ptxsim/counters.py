"""What a launch executed: instructions, arithmetic, memory traffic.

All counts are exact for the launch that ran (they depend on the data where control flow does).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .parser import Instruction

INSTRUCTION_CLASSES = (
    "fma",
    "float",
    "integer",
    "move",
    "convert",
    "special",
    "load",
    "store",
    "atomic",
    "tensor",
    "matrix-load",
    "async-copy",
    "shuffle",
    "barrier",
    "branch",
    "predicate",
    "other",
)

_CLASS_OF_OPCODE = {
    "ld": "load",
    "ldu": "load",
    "st": "store",
    "atom": "atomic",
    "red": "atomic",
    "mma": "tensor",
    "wgmma": "tensor",
    "tcgen05": "tensor",
    "ldmatrix": "matrix-load",
    "stmatrix": "matrix-load",
    "cp": "async-copy",
    "shfl": "shuffle",
    "vote": "shuffle",
    "match": "shuffle",
    "redux": "shuffle",
    "activemask": "shuffle",
    "elect": "shuffle",
    "movmatrix": "shuffle",
    "bar": "barrier",
    "barrier": "barrier",
    "bra": "branch",
    "ret": "branch",
    "exit": "branch",
    "call": "branch",
    "setp": "predicate",
    "mov": "move",
    "cvta": "move",
    "selp": "move",
    "prmt": "move",
    "cvt": "convert",
}
_SPECIAL = {"sqrt", "rsqrt", "rcp", "ex2", "lg2", "sin", "cos", "tanh", "div"}
_FLOAT_TYPES = {"f16", "bf16", "f16x2", "bf16x2", "f32", "f32x2", "f64"}
_INTEGER = {
    "add",
    "sub",
    "mul",
    "mad",
    "fma",
    "min",
    "max",
    "abs",
    "neg",
    "and",
    "or",
    "xor",
    "not",
    "shl",
    "shr",
    "lop3",
    "shf",
    "popc",
    "clz",
    "brev",
    "bfind",
    "bfe",
    "bfi",
    "rem",
    "div",
    "dp4a",
    "sad",
    "mul24",
    "bmsk",
    "addc",
    "subc",
    "cnot",
}


def instruction_class(i: Instruction) -> str:
    kind = i.modifiers[-1] if i.modifiers else ""
    if kind == "pred":
        return "predicate"
    if i.opcode in _CLASS_OF_OPCODE:
        return _CLASS_OF_OPCODE[i.opcode]
    if kind in _FLOAT_TYPES:
        if i.opcode in ("fma", "mad"):
            return "fma"
        return "special" if i.opcode in _SPECIAL else "float"
    return "integer" if i.opcode in _INTEGER else "other"


def scalar_flops(i: Instruction) -> tuple[str, int] | None:
    """(type, operations per lane) of a floating-point instruction outside the tensor cores."""
    kind = i.modifiers[-1] if i.modifiers else ""
    if kind not in _FLOAT_TYPES or i.opcode not in ("fma", "mad", "add", "sub", "mul"):
        return None
    if "f32" in i.modifiers:  # the sum is one, whatever the operands are
        kind = "f32"
    operations = 2 if i.opcode in ("fma", "mad") else 1
    if kind.endswith("x2"):
        return kind[:-2], 2 * operations
    return kind, operations


def tensor_type(i: Instruction) -> str:
    """Type of the operands of a tensor core instruction."""
    if i.opcode == "tcgen05":  # bf16 is f16 to it
        return next(m for m in i.modifiers if m.startswith("kind::")).removeprefix("kind::")
    return i.modifiers[-3 if i.opcode == "mma" else -2]


@dataclass
class ArgumentTraffic:
    """Distinct memory of one argument that a launch touched, however often."""

    name: str
    bytes_read: int
    bytes_written: int
    sectors_read: int  # 32-byte sectors
    sectors_written: int


@dataclass
class LineCounters:
    """The counters of one source line."""

    warp_instructions: int = 0
    global_requests: int = 0
    global_sectors: int = 0
    shared_requests: int = 0
    shared_wavefronts: int = 0


@dataclass
class Counters:
    warp_instructions: int = 0
    thread_instructions: int = 0  # active lanes summed
    by_class: dict[str, int] = field(default_factory=dict)
    flops: dict[str, int] = field(default_factory=dict)  # FMA pipe, by type
    tensor_flops: dict[str, int] = field(default_factory=dict)  # tensor cores, by operand type
    global_load_requests: int = 0
    global_load_sectors: int = 0
    global_store_requests: int = 0
    global_store_sectors: int = 0
    atomic_requests: int = 0
    atomic_sectors: int = 0
    shared_requests: int = 0
    shared_wavefronts: int = 0
    barriers: int = 0  # warp arrivals
    divergent_branches: int = 0
    phases: int = 0  # of the blocks, between the grid barriers that they poll at
    longest_path: int = 0  # warp instructions: of each phase those of the block that issued most, added up
    arguments: list[ArgumentTraffic] = field(default_factory=list)
    lines: dict[str, LineCounters] = field(default_factory=dict)

    # Compulsory traffic: what a perfect cache would still have to move.
    @property
    def bytes_read(self) -> int:
        return sum(a.bytes_read for a in self.arguments)

    @property
    def bytes_written(self) -> int:
        return sum(a.bytes_written for a in self.arguments)

    @property
    def sectors_read(self) -> int:
        return sum(a.sectors_read for a in self.arguments)

    @property
    def sectors_written(self) -> int:
        return sum(a.sectors_written for a in self.arguments)

    @property
    def total_flops(self) -> int:
        return sum(self.flops.values())

    @property
    def total_tensor_flops(self) -> int:
        return sum(self.tensor_flops.values())

    @property
    def load_sectors_per_request(self) -> float:
        return self.global_load_sectors / self.global_load_requests if self.global_load_requests else 0.0

    @property
    def store_sectors_per_request(self) -> float:
        return self.global_store_sectors / self.global_store_requests if self.global_store_requests else 0.0

    @property
    def bank_conflicts(self) -> int:
        """Shared-memory wavefronts beyond one per request (wide accesses need more than one anyway)."""
        return self.shared_wavefronts - self.shared_requests

    @classmethod
    def from_profile(
        cls,
        instructions: list[Instruction],
        profile: np.ndarray,
        arguments: list[ArgumentTraffic],
        phases: int,
        longest_path: int,
    ) -> Counters:
        """The counters of a launch: `profile` has a row of PROFILE_FIELDS for each instruction that was issued."""
        c = cls(arguments=arguments, phases=phases, longest_path=longest_path)
        for i, row in zip(instructions, profile.tolist(), strict=True):
            issued, executed, lanes, divergent, requests, sectors, shared, wavefronts, tensor = row
            kind = instruction_class(i)
            c.warp_instructions += issued
            c.thread_instructions += lanes
            c.by_class[kind] = c.by_class.get(kind, 0) + issued
            c.divergent_branches += divergent
            c.shared_requests += shared
            c.shared_wavefronts += wavefronts
            if kind == "atomic":
                c.atomic_requests += requests + shared
                c.atomic_sectors += sectors
            elif kind == "store":
                c.global_store_requests += requests
                c.global_store_sectors += sectors
            else:
                c.global_load_requests += requests
                c.global_load_sectors += sectors
            if kind == "barrier":
                c.barriers += executed
            if scalar := scalar_flops(i):
                c.flops[scalar[0]] = c.flops.get(scalar[0], 0) + scalar[1] * lanes
            if tensor:
                c.tensor_flops[tensor_type(i)] = c.tensor_flops.get(tensor_type(i), 0) + tensor
            line = c.lines.setdefault(str(i.source) if i.source else "?", LineCounters())
            line.warp_instructions += issued
            line.global_requests += requests
            line.global_sectors += sectors
            line.shared_requests += shared
            line.shared_wavefronts += wavefronts
        return c

    def summary(self) -> str:
        """A short table for people."""
        classes = ", ".join(f"{name} {self.by_class[name]}" for name in INSTRUCTION_CLASSES if self.by_class.get(name))
        flops = {**self.flops, **{f"tensor {k}": v for k, v in self.tensor_flops.items()}}
        rows = [
            ("warp instructions", f"{self.warp_instructions} ({classes})"),
            ("flops", ", ".join(f"{k} {v}" for k, v in flops.items()) or "0"),
            ("global loads", f"{self.global_load_requests} requests, {self.load_sectors_per_request:.2f} sectors each"),
            (
                "global stores",
                f"{self.global_store_requests} requests, {self.store_sectors_per_request:.2f} sectors each",
            ),
            ("distinct bytes", f"{self.bytes_read} read, {self.bytes_written} written"),
            ("shared memory", f"{self.shared_requests} requests, {self.shared_wavefronts} wavefronts"),
            ("longest path through blocks", f"{self.longest_path} instructions in {self.phases} phases"),
            ("atomics, barriers, divergence", f"{self.atomic_requests}, {self.barriers}, {self.divergent_branches}"),
        ]
        return "\n".join(f"{name:32s}{value}" for name, value in rows)
