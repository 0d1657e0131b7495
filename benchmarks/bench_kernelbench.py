"""KernelBench's level 3, problem 4: LeNet-5 with 20 classes, the forward pass of 4,096 images in float32.

Weights are drawn by torch's modules, images uniformly from 0 to 1, and nothing is recorded, as KernelBench has it.
"""

import contextlib
from collections.abc import Callable, Sequence

import torch

import kernels
from benchmarks.bench_lenet import swapped_lenet, torch_lenet
from benchmarks.case import (
    FUSED,
    GRAPH,
    OURS,
    SWAPPED,
    TORCH,
    Case,
    Step,
    Work,
    compilers,
    contenders,
    flops,
    fused_backends,
    graphed,
    label,
    on_gpu,
    size,
)  # fmt: skip
from lenet import LeNet

BATCHES = (4096,)
DTYPES = ("float32",)
CLASSES = 20


def precision(tf32: bool) -> contextlib.AbstractContextManager[None]:
    """torch's own switches, which KernelBench leaves as they are: convolutions may be TF32, matrix products not."""
    return contextlib.nullcontext()


def cases(n: int, backends: Sequence[str]) -> list[Case]:
    torch.manual_seed(0)
    models: dict[str, Callable[..., torch.nn.Module]] = {TORCH: torch_lenet, OURS: LeNet, SWAPPED: swapped_lenet}
    weights = torch_lenet(CLASSES).state_dict()
    images = torch.rand(n, 1, 32, 32)

    def model(name: str) -> torch.nn.Module:
        module = models[name](CLASSES)
        module.load_state_dict(weights)
        return module

    def forward(model: Callable[..., torch.Tensor], images: torch.Tensor = images) -> Step:
        return torch.no_grad()(lambda: model(images))

    factories: dict[str, Callable[[], Step]] = {TORCH: lambda: forward(model(TORCH))}
    for name, compiler in compilers().items():
        factories[name] = lambda compiler=compiler: forward(compiler(model(TORCH)))
    for kind in (OURS, SWAPPED):
        for backend in backends:
            factories[label(backend, kind)] = lambda kind=kind: forward(model(kind))
    for backend in fused_backends(backends, images.dtype):
        factories[label(backend, FUSED)] = lambda: forward(kernels.FusedForward(model(OURS)))
    if on_gpu():
        factories[TORCH + GRAPH] = lambda: graphed(forward(model(TORCH)))
        for backend in backends:
            factories[label(backend) + GRAPH] = lambda: graphed(forward(model(OURS)))
    moved = size((images, *weights.values())) + n * CLASSES * images.itemsize
    reference = forward(model(TORCH).double(), images.double())
    work = Work(moved, flops(forward(model(TORCH))))
    return [Case("KernelBench LeNet5", "forward", n, contenders(factories), reference, work)]
