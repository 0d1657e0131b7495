"""Runs the operations on the backends and makes a row of each result."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

import kernels.backend
from kernels.check.judge import Judge
from kernels.check.operations import OPERATIONS, CannotRun, Inputs, Operation

IMAGES = 131  # a prime number, more than a tile of images of any backend
FEW_IMAGES = 2  # where a kernel takes seconds: in Triton's interpreter, or in a simulator


class Row(NamedTuple):
    """How an operation did: `error` is its largest, in units of the tolerance; `status` is ok, FAIL or skipped."""

    operation: str
    backend: str
    dtype: str
    error: float | None
    status: str
    detail: str


def place(backend: str, device: torch.device | None) -> torch.device:
    """Where a backend's tensors go: on `device`, or else on the GPU, or else on the CPU; RuntimeError says why not."""
    if device is not None:
        kernels.backend.load(backend, device.type)
        return device
    candidates = ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",)
    for name in candidates:
        with contextlib.suppress(RuntimeError):
            kernels.backend.load(backend, name)
            return torch.device(name)
    kernels.backend.load(backend)
    raise RuntimeError(f"backend {backend!r} cannot run: it takes no tensors on {' or '.join(candidates)}")


def check(backends: Sequence[str], device: torch.device | None) -> Iterator[Row]:
    """Every operation on the backends; one row for a backend that cannot run here."""
    for backend in backends:
        try:
            where = place(backend, device)
        except RuntimeError as error:
            yield Row("all", backend, "all", None, "skipped", str(error))
            continue
        images = FEW_IMAGES if backend != "numpy" and where.type == "cpu" else IMAGES
        for name, operation in OPERATIONS.items():
            if operation.heavy and interpreted(backend):
                yield Row(name, backend, "all", None, "skipped", "takes minutes in Triton's interpreter")
                continue
            for dtype in operation.dtypes:
                yield row(name, operation, backend, dtype, where, images)
            if operation.tf32 and backend == "triton" and not interpreted(backend):  # there it is float32
                yield row(name, operation, backend, torch.float32, where, images, tf32=True)


def interpreted(backend: str) -> bool:
    """Whether Triton runs in its interpreter."""
    if backend != "triton":
        return False
    from triton import knobs

    return knobs.runtime.interpret


def row(
    name: str,
    operation: Operation,
    backend: str,
    dtype: torch.dtype,
    device: torch.device,
    images: int,
    tf32: bool = False,
) -> Row:
    """Judges the operation, then runs it again without a judge that waits for each kernel: the bits must be the same.

    In TF32 small whole numbers alone have exact products.
    """
    label = name, backend, "tf32" if tf32 else str(dtype).removeprefix("torch.")
    judge = Judge()
    try:
        with kernels.use_backend(backend), precision(tf32):
            for judge.exact in [True] if tf32 else [False, True] if operation.exact else [False]:
                with judge:
                    judged = operation.run(Inputs(dtype, device, images, judge.exact))
                again = operation.run(Inputs(dtype, device, images, judge.exact))
                if not all(torch.equal(a, b) for a, b in zip(judged, again, strict=True)):
                    judge.wrong.append("a second run, which waits for no kernel, gives other results")
    except CannotRun as reason:
        return Row(*label, None, "skipped", str(reason))
    except Exception as failure:  # of a compiler, a launch, a driver: the other rows are still worth having
        judge.wrong.append(f"{type(failure).__name__}: {' '.join(str(failure).split())}")
    return Row(*label, judge.error, "FAIL" if judge.wrong else "ok", "; ".join(judge.wrong))


@contextlib.contextmanager
def precision(tf32: bool) -> Iterator[None]:
    """Whether float32 may be multiplied as TF32, as torch's switches for convolutions and for matrices say it."""
    switches: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value
