"""Builds the C++ executor once per machine and wraps its C interface with ctypes.

The shared library lives in a user cache folder (PTXSIM_CACHE, else XDG_CACHE_HOME/ptxsim, else
~/.cache/ptxsim) under a name that hashes the sources, the flags and the CPU, so an update or another
machine sharing the home directory gets its own build. A file lock lets parallel workers build once.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from .errors import BuildError

SOURCES = (
    "executor.cpp",
    "machine.hpp",
    "history.hpp",
    "polling.hpp",
    "memory.hpp",
    "arithmetic.hpp",
    "numeric.hpp",
    "warp_operations.hpp",
    "mma.hpp",
    "shared_matrix.hpp",
    "wgmma.hpp",
    "mbarrier.hpp",
    "tensor_memory.hpp",
)
FLAGS = (
    "-O3",
    "-march=native",
    "-std=gnu++20",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-shared",
    "-fPIC",
)
MAX_OPERANDS = 16
NO_OPERAND = 0xFFFFFFFF

u8, u32, i32, u64, i64 = ctypes.c_uint8, ctypes.c_uint32, ctypes.c_int32, ctypes.c_uint64, ctypes.c_int64


class EncodedInstruction(ctypes.Structure):
    _fields_ = [
        ("handler", i32),
        ("guard", i32),
        ("target", i32),
        ("operand", u32 * MAX_OPERANDS),
        ("width", u8 * MAX_OPERANDS),
        ("flags", u8),
        ("space", u8),
        ("count", u8),
        ("element_size", u8),
        ("kind", u8),
        ("wgmma", u8),
        ("reserved", u8 * 2),
        ("offset", i64),
        ("offset2", i64),
        ("immediate", i64),
    ]


class SegmentDescription(ctypes.Structure):
    _fields_ = [
        ("slot", u64),
        ("device_begin", u64),
        ("host_begin", u64),
        ("size", u64),
        ("granule_shift", u32),
        ("read_only", u32),
    ]


class Options(ctypes.Structure):
    _fields_ = [
        ("detect_races", u32),
        ("quantum", u32),
        ("shuffle", u32),
        ("resident_blocks", u32),
        ("check_uninitialised", u32),
        ("allow_early_exit", u32),
        ("count_memory", u32),
        ("most_resident_blocks", u32),
        ("seed", u64),
        ("instruction_limit", u64),
    ]


class LaunchDescription(ctypes.Structure):
    _fields_ = [
        ("grid", u32 * 3),
        ("block", u32 * 3),
        ("dynamic_shared", u32),
        ("param_bytes", u32),
        ("workspace", u64),
        ("options", Options),
    ]


class FaultDescription(ctypes.Structure):
    _fields_ = [
        ("kind", u32),
        ("pc", u32),
        ("block", u32 * 3),
        ("thread", u32),
        ("size", u32),
        ("is_write", u32),
        ("segment", i32),
        ("reserved", u32),
        ("address", u64),
    ]


class RaceDescription(ctypes.Structure):
    _fields_ = [
        ("location", i32),
        ("kind", u32),
        ("first_pc", u32),
        ("second_pc", u32),
        ("first_block", u32),
        ("first_warp", u32),
        ("second_block", u32),
        ("second_warp", u32),
        ("count", u64),
        ("offset", u64),
    ]


class SegmentTraffic(ctypes.Structure):
    _fields_ = [("bytes_read", u64), ("bytes_written", u64), ("sectors_read", u64), ("sectors_written", u64)]


PROFILE_FIELDS = (
    "issued",
    "executed",
    "lanes",
    "divergent",
    "global_requests",
    "global_sectors",
    "shared_requests",
    "shared_wavefronts",
    "tensor_flops",
)


def cache_directory() -> Path:
    if os.environ.get("PTXSIM_CACHE"):
        return Path(os.environ["PTXSIM_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ptxsim"


def _cpu_identity() -> str:
    """Distinguishes CPUs for which -march=native gives different code."""
    try:
        info = Path("/proc/cpuinfo").read_text()
        return platform.machine() + "".join(
            sorted({line for line in info.splitlines() if line.startswith(("flags", "Features", "model name"))})
        )
    except OSError:
        return platform.machine() + platform.processor()


def build() -> Path:
    """Path of the shared library, compiled first if no build for these sources exists."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((folder / name).read_bytes())
    digest.update(" ".join(FLAGS).encode() + _cpu_identity().encode())
    cache = cache_directory()
    library = cache / f"executor-{digest.hexdigest()[:20]}.so"
    if library.exists():
        return library
    if not compiler:
        raise BuildError(
            "ptxsim needs a C++20 compiler to build its executor, and found no g++ on PATH. "
            "Install it (for example: apt-get install g++) or set CXX."
        )
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "build.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if library.exists():  # another process built it while we waited
            return library
        handle, temporary = tempfile.mkstemp(suffix=".so", dir=cache)
        os.close(handle)
        command = [compiler, *FLAGS, str(folder / "executor.cpp"), "-o", temporary]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            os.unlink(temporary)
            raise BuildError(f"building the ptxsim executor failed:\n{' '.join(command)}\n{result.stderr[-4000:]}")
        os.replace(temporary, library)
    return library


@functools.lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The loaded executor, with its functions typed."""
    lib = ctypes.CDLL(str(build()))
    pointer = ctypes.c_void_p
    lib.ptxsim_handler_name.restype = ctypes.c_char_p
    lib.ptxsim_program_create.restype = pointer
    lib.ptxsim_program_create.argtypes = [*[pointer, u32] * 5, u32, u32]
    lib.ptxsim_program_destroy.argtypes = [pointer]
    lib.ptxsim_launch.restype = pointer
    lib.ptxsim_launch.argtypes = [pointer, pointer, pointer, pointer, u32, pointer]
    lib.ptxsim_fault_message.restype = ctypes.c_char_p
    lib.ptxsim_fault_message.argtypes = [pointer]
    lib.ptxsim_profile.argtypes = [pointer, pointer]
    lib.ptxsim_traffic.argtypes = [pointer, pointer]
    lib.ptxsim_phases.restype = u32
    lib.ptxsim_phases.argtypes = [pointer]
    lib.ptxsim_longest_path.restype = u64
    lib.ptxsim_longest_path.argtypes = [pointer]
    lib.ptxsim_races.restype = u32
    lib.ptxsim_races.argtypes = [pointer, pointer, u32]
    lib.ptxsim_launch_destroy.argtypes = [pointer]
    sizes = (u32 * 16)()
    count = lib.ptxsim_struct_sizes(sizes)
    expected = [
        ctypes.sizeof(EncodedInstruction),
        8 * len(PROFILE_FIELDS),
        ctypes.sizeof(SegmentDescription),
        ctypes.sizeof(LaunchDescription),
        ctypes.sizeof(FaultDescription),
        ctypes.sizeof(RaceDescription),
        ctypes.sizeof(SegmentTraffic),
    ]
    assert list(sizes[:count]) == expected, "structures of native.py and executor.cpp differ"
    return lib


@functools.lru_cache(maxsize=1)
def handlers() -> dict[str, int]:
    """Executor handler indices by name."""
    lib = library()
    return {lib.ptxsim_handler_name(k).decode(): k for k in range(lib.ptxsim_handler_count())}
