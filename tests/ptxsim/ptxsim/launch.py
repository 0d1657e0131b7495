"""Loads PTX modules and runs kernels on CPU tensors."""

from __future__ import annotations

import ctypes
import functools
import math
import re
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import buffers as memory
from . import limits, native
from .counters import ArgumentTraffic, Counters
from .errors import DeviceFault, LaunchError, Race, RaceFound, SourceLine
from .lowering import Program, lower, lower_globals
from .parser import Function, Parameter, parse

# Order mirrors FaultKind in machine.hpp.
FAULT_KINDS = [
    "none",
    "out-of-bounds",
    "misaligned",
    "null-access",
    "uninitialised-shared",
    "divergent-barrier",
    "deadlock",
    "read-only",
    "invalid-warp-operation",
    "trap",
    "runaway",
    "pending-copy",
    "pending-wgmma",
    "invalid-mbarrier",
    "invalid-tensor-memory",
]
RACE_KINDS = ["write-write", "read-after-write", "write-after-read", "missing-proxy-fence"]
SHARED_SEGMENT, TENSOR_SEGMENT = -2, -3


@dataclass
class LaunchOptions:
    """How a launch is executed.

    races: False, True (raise RaceFound) or "report" (only list races in the record).
    seeds: number of random schedules to try in race mode, starting at `seed`; every run but the last
        starts from the same tensor contents and its results are dropped.
    check_uninitialised: fault on reads of shared memory that nothing has written.
    allow_early_exit: accept __syncthreads() after some threads have returned (works on hardware, but
        CUDA calls it undefined).
    instruction_limit: warp instructions after which a launch counts as endless.
    multiprocessors: of the GPU; None takes the model that limits.py names for the architecture.
    """

    races: bool | str = False
    seed: int = 0
    seeds: int = 1
    check_uninitialised: bool = True
    allow_early_exit: bool = False
    count_memory: bool = True
    instruction_limit: int = 4_000_000_000
    multiprocessors: int | None = None


@dataclass
class LaunchRecord:
    """What a launch did."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    count: Callable[[], Counters] = field(repr=False)
    races: list[Race] = field(default_factory=list)
    schedule_dependent: list[str] = field(default_factory=list)  # arguments that differed between seeds
    seconds: float = 0.0

    @functools.cached_property
    def counters(self) -> Counters:
        """Added up when somebody asks for them, which takes longer than many a launch."""
        return self.count()

    @property
    def num_warps(self) -> int:
        return -(-self.block[0] * self.block[1] * self.block[2] // 32)


class Kernel:
    """One kernel of a module; lowered when first used."""

    def __init__(self, module: Module, function: Function):
        self.module, self.function = module, function
        self._program: Program | None = None

    @property
    def name(self) -> str:
        return self.function.name

    @property
    def parameters(self) -> list[Parameter]:
        return self.function.parameters

    @property
    def program(self) -> Program:
        if self._program is None:
            self._program = lower(self.module.parsed, self.function, self.module.globals)
        return self._program


class Module:
    """A PTX module. `kernels` maps entry names to Kernel objects, `globals` holds its variables."""

    def __init__(self, ptx: str):
        self.parsed = parse(ptx)
        self.globals = lower_globals(self.parsed)
        self.kernels = {name: Kernel(self, f) for name, f in self.parsed.functions.items() if f.is_kernel}

    @property
    def arch(self) -> int:
        m = re.search(r"(\d+)", self.parsed.target)
        return int(m[1]) if m else 80


# ---------------------------------------------------------------- arguments


def pack_scalar(parameter: Parameter, value, name: str) -> bytes:
    """Bytes of a scalar argument. numpy scalars must have the parameter's size; Python numbers are
    converted to its type."""
    size = parameter.size
    if isinstance(value, (bytes, bytearray)):
        raw = bytes(value)
    elif isinstance(value, np.generic) or isinstance(value, np.ndarray):
        raw = value.tobytes()
    elif isinstance(value, bool):
        raw = int(value).to_bytes(size, "little")
    elif isinstance(value, int):
        if parameter.type in ("f32", "f64"):
            raw = struct.pack("<f" if size == 4 else "<d", value)
        elif -(1 << (8 * size - 1)) <= value < 1 << (8 * size):
            raw = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        else:
            raise LaunchError(f"argument '{name}': {value} does not fit in {size} bytes")
    elif isinstance(value, float):
        raw = struct.pack({2: "<e", 4: "<f", 8: "<d"}[size], value)
    elif isinstance(value, ctypes._SimpleCData) or isinstance(value, ctypes.Structure):
        raw = bytes(value)
    else:
        raise LaunchError(f"argument '{name}' has unsupported type {type(value).__name__}")
    if len(raw) != size:
        raise LaunchError(
            f"argument '{name}' has {len(raw)} bytes ({type(value).__name__}), "
            f"but the kernel's parameter has {size} (PTX type {parameter.type})"
        )
    return raw


@functools.cache
def _lowest_address() -> int:
    """Where memory begins that may hold tensors: the heap is below 2**32 where Python lies at a fixed address, as Debian's."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    return min([1 << 32, *(int(line.split("-")[0], 16) for line in lines if line.endswith("[heap]"))])


def _looks_like_address(parameter: Parameter, value) -> bool:
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    of_pointer = parameter.size == 8 and parameter.type in ("u64", "b64", "s64")
    return is_integer and of_pointer and int(value) >= _lowest_address()


class _Arguments:
    """The parameter block of a launch and the memory segments behind it."""

    def __init__(self, kernel: Kernel, values, names: list[str] | None, globals_, cooperative: bool):
        parameters = kernel.parameters
        if len(values) != len(parameters):
            raise LaunchError(f"kernel '{kernel.name}' takes {len(parameters)} arguments, got {len(values)}")
        names = list(names or [])
        names += [f"argument {k}" for k in range(len(names), len(parameters))]
        found: dict[int, memory.HostBuffer] = {}
        for k, (parameter, value) in enumerate(zip(parameters, values, strict=False)):
            if memory.is_tensor(value) and parameter.type != "aggregate":
                if parameter.size != 8:
                    raise LaunchError(f"argument '{names[k]}' is a tensor, but the kernel expects a {parameter.type}")
                found[k] = memory.describe(value, names[k])
            elif _looks_like_address(parameter, value):
                buffer = memory.find(int(value), names[k])
                if buffer:
                    found[k] = buffer
        taken = list(found.values())
        known = {b.storage_address for b in taken}
        for tensor in memory.registered():  # reachable through pointers stored in memory
            buffer = memory.describe(tensor, "registered tensor")
            if buffer.storage_address not in known:
                taken.append(buffer)
        # What the driver gives a cooperative launch for its grid barrier.
        workspace = memory.describe(np.zeros(16, np.uint32), "grid barrier") if cooperative else None
        self.segments = memory.build_segments(taken + [workspace] if workspace else taken, globals_)
        self.workspace = memory.device_address(self.segments, workspace.address) if workspace else 0
        self.block = np.zeros(max(kernel.function.parameter_bytes, 8), np.uint8)
        for k, (parameter, value) in enumerate(zip(parameters, values, strict=False)):
            if value is None:
                raw = bytes(parameter.size)
            elif k in found:
                host = int(value) if isinstance(value, (int, np.integer)) else found[k].address
                # An empty tensor has no memory: any access through its pointer is a fault.
                raw = (memory.device_address(self.segments, host) or 0).to_bytes(8, "little")
            else:
                raw = pack_scalar(parameter, value, names[k])
            self.block[parameter.offset : parameter.offset + parameter.size] = np.frombuffer(raw, np.uint8)


# ---------------------------------------------------------------- launching


def _triple(value) -> tuple[int, int, int]:
    values = tuple(int(v) for v in (value if isinstance(value, (tuple, list)) else (value,)))
    return (*values, 1, 1, 1)[:3]


def _check_block(kernel: Kernel, block) -> None:
    """Refuses a block other than the kernel was compiled for."""
    required, maximum = kernel.function.required_threads, kernel.function.maximum_threads
    if required and _triple(required) != block:
        raise LaunchError(f"kernel '{kernel.name}' was compiled for blocks of {required}, launched with {block}")
    if maximum and math.prod(block) > math.prod(maximum):
        raise LaunchError(f"kernel '{kernel.name}': {math.prod(block)} threads exceed its launch bounds {maximum}")


def launch(
    kernel: Kernel,
    grid,
    block,
    args,
    *,
    shared: int = 0,
    max_dynamic_shared_size_bytes: int | None = None,
    registers: int = 0,
    cooperative: bool = False,
    options: LaunchOptions | None = None,
    argument_names: list[str] | None = None,
    **overrides,
) -> LaunchRecord:
    """Runs a kernel and returns a LaunchRecord.

    grid and block are ints or tuples. args: torch CPU tensors, numpy arrays, integer addresses, None
    (null), scalars. shared: bytes of dynamic shared memory; max_dynamic_shared_size_bytes: the kernel's
    attribute of that name, without which static and dynamic memory together end at 48 KB. registers:
    per thread, 0 if unknown. cooperative: all blocks are to run at the same time. Keyword overrides
    are fields of LaunchOptions, for example races=True.
    """
    options = LaunchOptions(**{**(options or LaunchOptions()).__dict__, **overrides})
    grid, block = _triple(grid), _triple(block)
    limits.check_geometry(kernel.name, grid, block)
    _check_block(kernel, block)
    arch, static = kernel.module.arch, kernel.program.static_shared
    limits.check_shared(kernel.name, arch, static, shared, max_dynamic_shared_size_bytes)
    registers = registers or kernel.function.most_registers
    most_resident = limits.resident_blocks(arch, math.prod(block), static + shared, registers, options.multiprocessors)
    if not most_resident:
        raise LaunchError(
            f"kernel '{kernel.name}': a block of {block} with {registers} registers a thread does not fit"
        )
    if cooperative and math.prod(grid) > most_resident:
        raise LaunchError(
            f"kernel '{kernel.name}': too large for a cooperative launch: {math.prod(grid)} blocks, and the GPU "
            f"(sm_{arch}, by default {limits.architecture(arch).model}) holds {most_resident} at a time"
        )
    arguments = _Arguments(kernel, list(args), argument_names, kernel.program.globals, cooperative)
    start = time.perf_counter()
    seeds = options.seeds if options.races else 1
    writable = [s for s in arguments.segments if not s.read_only]
    contents = [ctypes.string_at(s.host_begin, s.size) for s in writable] if seeds > 1 else []
    races: dict[tuple, Race] = {}
    first_results: list[bytes] = []
    dependent: list[str] = []
    for run in range(seeds):
        if run:
            for segment, saved in zip(writable, contents, strict=False):
                ctypes.memmove(segment.host_begin, saved, segment.size)
        count, found = _run(kernel, grid, block, shared, arguments, options, options.seed + run, most_resident)
        for race in found:
            races.setdefault((race.location, race.first, race.second, race.kind), race)
        if seeds > 1:
            results = [ctypes.string_at(s.host_begin, s.size) for s in writable]
            first_results = first_results or results
            dependent += [
                n for s, a, b in zip(writable, first_results, results, strict=False) if a != b for n in s.names
            ]
    record = LaunchRecord(
        kernel.name,
        grid,
        block,
        kernel.program.static_shared + shared,
        count,
        list(races.values()),
        list(dict.fromkeys(dependent)),
        time.perf_counter() - start,
    )
    if races and options.races is True:
        raise RaceFound(kernel.name, record.races)
    return record


def _run(kernel: Kernel, grid, block, shared: int, arguments: _Arguments, options, seed: int, most_resident: int):
    """One execution; returns what counts it and its races, or raises DeviceFault."""
    lib = native.library()
    description = native.LaunchDescription()
    description.grid[:], description.block[:] = grid, block
    description.dynamic_shared, description.param_bytes = shared, kernel.function.parameter_bytes
    description.workspace = arguments.workspace
    o = description.options
    o.most_resident_blocks = most_resident
    o.detect_races = bool(options.races)
    o.quantum, o.shuffle, o.resident_blocks = (15, 1, 4) if options.races else (0, 0, 1)
    o.check_uninitialised, o.allow_early_exit = options.check_uninitialised, options.allow_early_exit
    o.count_memory, o.seed, o.instruction_limit = options.count_memory, seed, options.instruction_limit
    fault = native.FaultDescription()
    segments = memory.encode(arguments.segments)
    handle = lib.ptxsim_launch(
        kernel.program.handle,
        ctypes.byref(description),
        arguments.block.ctypes.data,
        ctypes.cast(segments, ctypes.c_void_p),
        len(arguments.segments),
        ctypes.byref(fault),
    )
    try:
        if fault.kind:
            raise _device_fault(kernel, block, arguments.segments, fault, lib.ptxsim_fault_message(handle).decode())
        instructions = kernel.program.instructions
        profile = np.zeros((len(instructions), len(native.PROFILE_FIELDS)), np.uint64)
        lib.ptxsim_profile(handle, profile.ctypes.data)
        traffic = (native.SegmentTraffic * max(len(arguments.segments), 1))()
        lib.ptxsim_traffic(handle, ctypes.cast(traffic, ctypes.c_void_p))
        capacity = 1000
        races = (native.RaceDescription * capacity)()
        found = min(lib.ptxsim_races(handle, ctypes.cast(races, ctypes.c_void_p), capacity), capacity)
        issued = np.flatnonzero(profile[:, native.PROFILE_FIELDS.index("issued")])
        count = functools.partial(
            Counters.from_profile,
            [instructions[pc] for pc in issued],
            profile[issued],
            [
                ArgumentTraffic("/".join(s.names), t.bytes_read, t.bytes_written, t.sectors_read, t.sectors_written)
                for s, t in zip(arguments.segments, traffic, strict=False)
                if t.bytes_read or t.bytes_written
            ],
            lib.ptxsim_phases(handle),
            lib.ptxsim_longest_path(handle),
        )
        return count, [_race(kernel, arguments.segments, races[k]) for k in range(found)]
    finally:
        lib.ptxsim_launch_destroy(handle)


# ---------------------------------------------------------------- reports


def _place(instruction) -> tuple[SourceLine | None, str]:
    """Source line for messages: the caller's line first when a library function was inlined."""
    source = instruction.source
    text = str(source) if source else f"PTX line {instruction.ptx_line}"
    if instruction.inlined_at:
        text += f" (inlined at {instruction.inlined_at})"
    return source, text


def _device_fault(kernel, block, segments, fault, message: str) -> DeviceFault:
    instruction = kernel.program.instructions[fault.pc]
    source, place = _place(instruction)
    t = fault.thread
    thread = (t % block[0], t // block[0] % block[1], t // block[0] // block[1])
    argument = offset = None
    detail = ""
    access = f"{'write' if fault.is_write else 'read'} of {fault.size} bytes"
    if fault.segment >= 0:
        segment = segments[fault.segment]
        address = (
            fault.address - segment.device_begin
            if fault.address >= segment.device_begin - (1 << 40)
            else fault.address - segment.host_begin
        )
        argument, offset, size = segment.describe_offset(address)
        if offset < 0:
            where = f"{-offset} bytes before the start of"
        elif offset + fault.size > size:
            where = f"{offset + fault.size - size} bytes past the end of"
        else:
            where = f"at byte {offset} of"
        detail = f": {access} {where} '{argument}' ({size} bytes)"
    elif fault.segment == SHARED_SEGMENT:
        argument, offset = "shared memory", fault.address
        detail = f": {access} at byte {fault.address} of shared memory"
    elif fault.size:
        detail = f": {access} at address {fault.address:#x}"
        if FAULT_KINDS[fault.kind] == "out-of-bounds" and fault.address < 1 << 48:
            detail += " (a host address? pass the tensor itself, or ptxsim.register() it)"
    text = (
        f"{message}{detail}; kernel '{kernel.name}', block {tuple(fault.block)}, thread {thread}, at {place}, "
        f"PTX: {instruction.text}"
    )
    return DeviceFault(
        text,
        kind=FAULT_KINDS[fault.kind],
        kernel=kernel.name,
        block=tuple(fault.block),
        thread=thread,
        source=source,
        instruction=instruction.text,
        argument=argument,
        offset=offset,
    )


def _race(kernel, segments, race) -> Race:
    first, second = (kernel.program.instructions[pc] for pc in (race.first_pc, race.second_pc))
    if race.location >= 0:
        location, offset, _ = segments[race.location].describe_offset(race.offset)
        location = f"argument '{location}'"
    else:
        location, offset = "tensor memory" if race.location == TENSOR_SEGMENT else "shared memory", race.offset
    return Race(
        RACE_KINDS[race.kind],
        location,
        offset,
        first.source,
        second.source,
        first.text,
        second.text,
        race.first_block,
        race.first_warp,
        race.second_block,
        race.second_warp,
        race.count,
    )
