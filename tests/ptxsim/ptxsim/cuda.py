"""CUDA C++ kernels with the call interface of CuPy's RawModule and RawKernel.

A module that says `cupy.RawModule(...)` can be tested without a GPU by replacing that one name:

    monkeypatch.setattr(cupy, "RawModule", ptxsim.cuda.RawModule)

Source is compiled to PTX by NVRTC (through CuPy's or cuda-bindings' wrapper; neither needs a driver)
or, failing that, by nvcc.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from . import buffers as memory
from . import limits
from .errors import CompileError, LaunchError
from .launch import Kernel, LaunchOptions, LaunchRecord, Module, launch
from .native import cache_directory
from .session import Device, activate, current_device

DEFAULT_ARCH = 80


# ---------------------------------------------------------------- compilers


def _nvrtc_cupy(source: str, name: str, options: list[str], expressions: tuple[str, ...]):
    from cupy_backends.cuda.libs import nvrtc

    program = nvrtc.createProgram(source, name, (), ())
    try:
        for expression in expressions:
            nvrtc.addNameExpression(program, expression)
        try:
            nvrtc.compileProgram(program, tuple(options))
        except nvrtc.NVRTCError:
            raise CompileError(nvrtc.getProgramLog(program)) from None
        ptx = nvrtc.getPTX(program)
        lowered = {e: nvrtc.getLoweredName(program, e) for e in expressions}
    finally:
        nvrtc.destroyProgram(program)
    return ptx, lowered


def _nvrtc_bindings(source: str, name: str, options: list[str], expressions: tuple[str, ...]):
    from cuda.bindings import nvrtc

    def check(result):
        error, *values = result
        if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompileError(f"NVRTC: {error}")
        return values[0] if values else None

    program = check(nvrtc.nvrtcCreateProgram(source.encode(), name.encode(), 0, [], []))
    for expression in expressions:
        check(nvrtc.nvrtcAddNameExpression(program, expression.encode()))
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = b" " * check(nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, log)
        raise CompileError(log.decode())
    ptx = b" " * check(nvrtc.nvrtcGetPTXSize(program))
    check(nvrtc.nvrtcGetPTX(program, ptx))
    return ptx, {e: check(nvrtc.nvrtcGetLoweredName(program, e.encode())) for e in expressions}


def _nvcc(source: str, name: str, options: list[str], expressions: tuple[str, ...]):
    if expressions:
        raise CompileError("name_expressions need NVRTC; only nvcc was found")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (Path(name).stem + ".cu")
        path.write_text(f'#line 1 "{name}"\n{source}')  # messages and -lineinfo name the caller's file
        output = Path(folder) / "kernel.ptx"
        options = [o.replace("--gpu-architecture=compute_", "-arch=sm_") for o in options]
        result = subprocess.run(
            ["nvcc", "-ptx", *options, str(path), "-o", str(output)], capture_output=True, text=True
        )
        if result.returncode:
            raise CompileError(result.stderr)
        return output.read_text(), {}


def _toolkit_of_nvcc() -> str | None:
    """Root of the toolkit that nvcc belongs to; nvcc itself says, which also works for wrapper scripts."""
    if not shutil.which("nvcc"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.cu"
        empty.touch()
        output = subprocess.run(["nvcc", "--dryrun", "-ptx", str(empty)], capture_output=True, text=True).stderr
    m = re.search(r"^#\$ TOP=(.*)$", output, re.M)
    return m[1].strip() if m else None


@functools.lru_cache(maxsize=1)
def _include_folders() -> list[str]:
    """CUDA headers: an installed toolkit, or those of the pip packages."""
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), _toolkit_of_nvcc()]
    with contextlib.suppress(Exception):
        import cupy._environment

        roots.append(cupy._environment.get_cuda_path())
    with contextlib.suppress(ImportError):
        import nvidia

        roots += [str(child) for base in nvidia.__path__ for child in Path(base).iterdir()]
    folders = []
    for root in filter(None, roots):
        for folder in (Path(root) / "include", Path(root) / "include" / "cccl"):
            if (folder / "cuda_fp16.h").exists() or folder.name == "cccl" and folder.exists():
                folders.append(str(folder))
    return list(dict.fromkeys(folders))


@functools.lru_cache(maxsize=1)
def _nvrtc_version() -> tuple[int, int] | None:
    with contextlib.suppress(Exception):
        from cupy_backends.cuda.libs import nvrtc

        return nvrtc.getVersion()
    return None


def _kept(key: tuple[object, ...], compile: Callable[[], tuple[str, dict[str, str]]]) -> tuple[str, dict[str, str]]:
    """What `compile` returns, from the cache folder if any process asked CuPy's NVRTC for the same before."""
    if not (version := _nvrtc_version()):
        return compile()
    path = cache_directory() / f"ptx-{hashlib.sha256(repr((version, *key)).encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError):
        ptx, lowered = json.loads(path.read_text())
        return ptx, lowered
    compiled = compile()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
            json.dump(compiled, file)
        os.replace(file.name, path)
    return compiled


@functools.lru_cache(maxsize=256)
def compile_to_ptx(
    source: str,
    name: str = "kernel.cu",
    options: tuple[str, ...] = (),
    expressions: tuple[str, ...] = (),
    arch: int = DEFAULT_ARCH,
) -> tuple[str, dict[str, str]]:
    """PTX of CUDA C++ source, and the lowered names of its name expressions."""
    kept = [o for o in options if not re.match(r"(-arch|--gpu-architecture|-gencode|--generate-code)\b", o)]
    full = [f"--gpu-architecture=compute_{arch}", "-lineinfo", *kept]
    if not any(re.match(r"(-std|--std)", o) for o in kept):
        full.append("-std=c++17")
    full += [f"-I{folder}" for folder in _include_folders()]
    return _kept((source, name, full, expressions), lambda: _compile(source, name, full, expressions))


def _compile(source: str, name: str, full: list[str], expressions: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    problems = []
    for compiler in (_nvrtc_cupy, _nvrtc_bindings, _nvcc):
        if compiler is _nvcc and not shutil.which("nvcc"):
            problems.append("nvcc: not on PATH")
            continue
        try:
            ptx, lowered = compiler(source, name, full, expressions)
        except CompileError:
            raise
        except Exception as error:  # the wrapper or the NVRTC library is missing
            problems.append(f"{compiler.__name__.strip('_')}: {type(error).__name__}: {error}")
            continue
        text = ptx.decode() if isinstance(ptx, bytes) else ptx
        # Compilers make the file name absolute; source given as a string has no real file.
        text = text.rstrip("\0").replace(f'"{os.path.join(os.getcwd(), name)}"', f'"{name}"')
        return text, {e: n.decode() if isinstance(n, bytes) else n for e, n in lowered.items()}
    raise CompileError(
        "no CUDA C++ compiler found (pip install nvidia-cuda-nvrtc and cupy or cuda-bindings, "
        "or install nvcc):\n  " + "\n  ".join(problems)
    )


# ---------------------------------------------------------------- argument conversion


def _parameter_names(source: str, name: str) -> list[str] | None:
    """Names of a kernel's parameters, read from its source for use in messages."""
    m = re.search(
        rf"__global__[^;{{(]*?(?:__launch_bounds__\s*\([^)]*\)\s*)?[^;{{(]*\b{re.escape(name)}\s*\(([^)]*)\)", source
    )
    if not m:
        return None
    parameters = re.sub(r"/\*.*?\*/|//[^\n]*", "", m[1], flags=re.S).split(",")
    names = [re.findall(r"[A-Za-z_]\w*", p.split("=")[0]) for p in parameters]
    return [n[-1] if n else f"argument {k}" for k, n in enumerate(names)]


def _convert(parameter, value, name: str):
    """Applies CuPy's rules: int -> int64, float -> float64, numpy scalars as they are.

    The GPU reads as many bytes as the parameter has, so an integer of another size works when its
    value fits, while a float of another size would be garbage and is refused.
    """
    if value is None:
        raise LaunchError(f"argument '{name}': CuPy 13 passes no null pointer for None; pass 0")
    if memory.is_tensor(value) or isinstance(value, (bytes, bytearray)):
        return value
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    is_float_parameter = parameter.type in ("f16", "f32", "f64")
    if isinstance(value, float) and not isinstance(value, np.floating):
        value = np.float64(value)
    if isinstance(value, np.floating):
        if value.itemsize != parameter.size or (parameter.type[0] in "us" and parameter.size > 2):
            raise LaunchError(
                f"argument '{name}': a {value.dtype} (Python floats are float64) was passed for a "
                f"parameter of PTX type {parameter.type}; convert it, e.g. numpy.float32(x)"
            )
        return value
    if isinstance(value, (int, np.integer)):
        size = value.itemsize if isinstance(value, np.integer) else 8
        if is_float_parameter:
            raise LaunchError(f"argument '{name}': an integer was passed for a parameter of PTX type {parameter.type}")
        if size < parameter.size:
            raise LaunchError(
                f"argument '{name}': a {value.dtype} was passed for a parameter of {parameter.size} bytes"
            )
        return int(value)
    return value


# ---------------------------------------------------------------- CuPy's interface


class RawKernelFunction:
    """A kernel, called as kernel(grid, block, args, shared_mem=0, stream=None).

    enable_cooperative_groups, of the kernel, its module or the call, makes the launch cooperative.
    """

    def __init__(self, module: RawModule, kernel: Kernel, name: str, cooperative: bool = False):
        self.module, self.kernel, self.name = module, kernel, name
        self._names = _parameter_names(module.code, name.split("<")[0].split("::")[-1]) if module.code else None
        self._dynamic_limit: int | None = None
        self.enable_cooperative_groups = cooperative
        self.launches: list[LaunchRecord] = []

    @property
    def shared_size_bytes(self) -> int:
        return self.kernel.program.static_shared

    @property
    def max_threads_per_block(self) -> int:
        bounds = self.kernel.function.maximum_threads
        return int(np.prod(bounds)) if bounds else 1024

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        if self._dynamic_limit is None:
            return limits.STATIC_SHARED - self.shared_size_bytes
        return self._dynamic_limit

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, value: int) -> None:
        limits.check_shared(self.name, self.module.module.arch, self.shared_size_bytes, 0, int(value))
        self._dynamic_limit = int(value)

    @property
    def attributes(self) -> dict[str, int]:
        return {
            "max_threads_per_block": self.max_threads_per_block,
            "shared_size_bytes": self.shared_size_bytes,
            "max_dynamic_shared_size_bytes": self.max_dynamic_shared_size_bytes,
        }

    def compile(self, log_stream=None) -> None:
        """Present for compatibility: the kernel is already compiled."""

    def __call__(
        self, grid, block, args, *, shared_mem: int = 0, stream=None, enable_cooperative_groups: bool = False
    ) -> None:
        parameters = self.kernel.parameters
        args = list(args)
        names = self._names if self._names and len(self._names) == len(parameters) else None
        if len(args) == len(parameters):
            args = [
                _convert(p, a, names[k] if names else f"argument {k}")
                for k, (p, a) in enumerate(zip(parameters, args, strict=False))
            ]
        device = current_device()
        record = launch(
            self.kernel,
            grid,
            block,
            args,
            shared=int(shared_mem),
            max_dynamic_shared_size_bytes=self._dynamic_limit,
            cooperative=enable_cooperative_groups or self.enable_cooperative_groups,
            argument_names=names,
            options=device.options if device else None,
        )
        self.launches.append(record)
        if device:
            device.launches.append(record)


class RawModule:
    """Stands in for cupy.RawModule. `path` may name CUDA C++ or PTX."""

    def __init__(
        self,
        code: str | None = None,
        *,
        path: str | None = None,
        options=(),
        backend: str = "nvrtc",
        name_expressions=None,
        arch: int | None = None,
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        jitify: bool = False,
    ):
        if (code is None) == (path is None):
            raise TypeError("exactly one of code and path must be given")
        device = current_device()
        self.arch = arch or (device.arch if device else DEFAULT_ARCH)
        self.file_path, self.options = path, tuple(options)
        self.enable_cooperative_groups = enable_cooperative_groups
        self.name_expressions = tuple(name_expressions or ())
        self.code = Path(path).read_text() if path else code
        self._lowered: dict[str, str] = {}
        if (path and str(path).endswith(".ptx")) or re.match(r"\s*(//[^\n]*\n\s*)*\.version", self.code):
            ptx, self.code = self.code, ""
        else:
            ptx, self._lowered = compile_to_ptx(
                self.code, str(path or "kernel.cu"), self.options, self.name_expressions, self.arch
            )
        self.ptx = ptx
        self.module = Module(ptx)
        self._functions: dict[str, RawKernelFunction] = {}

    def compile(self, log_stream=None) -> None:
        """Present for compatibility: the module is already compiled."""

    def get_function(self, name: str) -> RawKernelFunction:
        if name not in self._functions:
            lowered = self._lowered.get(name, name)
            if lowered not in self.module.kernels:
                raise LaunchError(
                    f"no kernel '{name}'; the module has {sorted(self.module.kernels)} "
                    '(C++ names need extern "C" or name_expressions)'
                )
            self._functions[name] = RawKernelFunction(
                self, self.module.kernels[lowered], name, self.enable_cooperative_groups
            )
        return self._functions[name]

    def get_global(self, name: str) -> np.ndarray:
        """Bytes of a __device__ or __constant__ variable, writable in place."""
        return self.module.globals[self._lowered.get(name, name)].data


class RawKernel(RawKernelFunction):
    """Stands in for cupy.RawKernel."""

    def __init__(
        self,
        code: str,
        name: str,
        options=(),
        backend: str = "nvrtc",
        *,
        arch: int | None = None,
        enable_cooperative_groups: bool = False,
        **ignored,
    ):
        expressions = () if re.search(r'extern\s*"C"', code) and "<" not in name else (name,)
        module = RawModule(code=code, options=options, name_expressions=expressions, arch=arch)
        function = module.get_function(name)
        super().__init__(module, function.kernel, name, enable_cooperative_groups)


@contextlib.contextmanager
def cuda_device(arch: int = DEFAULT_ARCH, **options):
    """Context in which RawModule launches use these LaunchOptions and are recorded in device.launches."""
    with activate(Device(arch, LaunchOptions(**options))) as device:
        yield device
