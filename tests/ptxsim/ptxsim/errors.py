"""Exceptions raised by ptxsim."""

from __future__ import annotations

from dataclasses import dataclass


class PtxsimError(Exception):
    """Base class of everything ptxsim raises on purpose."""


class UnsupportedPTX(PtxsimError, NotImplementedError):
    """The PTX uses something the executor does not implement."""

    def __init__(self, what: str, ptx_line: int | None = None, source: SourceLine | None = None):
        place = f" (PTX line {ptx_line})" if ptx_line else ""
        if source:
            place += f" from {source}"
        super().__init__(f"unsupported PTX: {what}{place}")
        self.what, self.ptx_line, self.source = what, ptx_line, source


class LaunchError(PtxsimError, ValueError):
    """A launch that the CUDA driver or CuPy would refuse, or would silently get wrong."""


class CompileError(PtxsimError):
    """NVRTC or nvcc rejected the source; the message is the compiler's log."""


class BuildError(PtxsimError):
    """The executor could not be built (usually: no g++)."""


@dataclass(frozen=True)
class SourceLine:
    """A line of the kernel's own source, from -lineinfo or Triton's .loc."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class DeviceFault(PtxsimError):
    """A kernel did something that is an error on a GPU.

    Attributes: kind (one of launch.FAULT_KINDS), kernel, block (x, y, z), thread (x, y, z),
    source (SourceLine or None), instruction (PTX text), argument (name of the tensor concerned or
    None), offset (bytes relative to the start of that argument or None).
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        kernel: str,
        block=None,
        thread=None,
        source=None,
        instruction: str = "",
        argument: str | None = None,
        offset: int | None = None,
    ):
        super().__init__(message)
        self.kind, self.kernel, self.block, self.thread = kind, kernel, block, thread
        self.source, self.instruction, self.argument, self.offset = source, instruction, argument, offset


@dataclass(frozen=True)
class Race:
    """Two unordered accesses to the same memory, at least one a write."""

    kind: str  # one of launch.RACE_KINDS
    location: str  # "shared memory" or the argument's name
    offset: int  # byte offset of the first example
    first: SourceLine | None
    second: SourceLine | None
    first_instruction: str
    second_instruction: str
    first_block: int  # linear block index
    first_warp: int
    second_block: int
    second_warp: int
    count: int

    def __str__(self) -> str:
        if self.first_block == self.second_block:
            who = f"warps {self.first_warp} and {self.second_warp} of block {self.first_block}"
        else:
            who = f"blocks {self.first_block} and {self.second_block}"
        return (
            f"{self.kind} race on {self.location} at byte {self.offset} between {who}: "
            f"{self.first or '?'} [{self.first_instruction}] and "
            f"{self.second or '?'} [{self.second_instruction}] ({self.count} times)"
        )


class RaceFound(DeviceFault):
    """Raised after a launch with races=True in which data races were seen; see .races."""

    def __init__(self, kernel: str, races: list[Race]):
        lines = "\n  ".join(str(race) for race in races)
        super().__init__(
            f"{len(races)} data race(s) in kernel '{kernel}':\n  {lines}",
            kind="race",
            kernel=kernel,
            source=races[0].second,
            instruction=races[0].second_instruction,
        )
        self.races = races
