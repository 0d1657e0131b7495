"""Conversion between float dtypes: torch's bits and strides, and no thread of torch's."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.check.operations import LAYOUTS
from kernels.integration.conversion import ON_ONE_THREAD, convert, converted

LOW = (torch.float16, torch.bfloat16)
SHAPES = ((), (0, 3), (5,), (ON_ONE_THREAD + 1,), (3, 2 * ON_ONE_THREAD + 5), (70, 6, 14, 14), (1, 1, 200_000, 1))


def bits(tensor: Tensor) -> Tensor:
    """As integers, with one NaN: which one torch gives depends on whether it took a vector instruction."""
    one_nan = torch.where(tensor.isnan(), torch.nan, tensor)
    return one_nan.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def of_all_kinds(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Random bits: NaN, infinities and subnormal numbers among them; for float32 also what lies between two others."""
    count = torch.Size(shape).numel()
    if dtype.itemsize == 2:
        return torch.randint(-(2**15), 2**15, (count,), dtype=torch.int16).view(dtype).view(shape)
    numbers = torch.randint(-(2**31), 2**31, (count,), dtype=torch.int32)
    numbers[::3] &= -(2**16)
    numbers[::3] |= 2**15  # half way between two numbers of bfloat16
    numbers[1::3] = (numbers[1::3] & -(2**13) | 2**12) & ~(1 << 30) | 0x38000000  # of float16
    return numbers.view(dtype).view(shape)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("low", LOW, ids=str)
def test_bits_and_strides_are_those_of_torch(low: torch.dtype, layout: str) -> None:
    for shape in SHAPES:
        for source, target in ((low, torch.float32), (torch.float32, low)):
            tensor = LAYOUTS[layout](of_all_kinds(shape, source)) if shape and shape[0] else of_all_kinds(shape, source)
            expected = tensor.to(target)
            for result in (converted(tensor, target), convert(tensor, target)):
                assert result.dtype == target and result.stride() == expected.stride()
                assert torch.equal(bits(result), bits(expected))


@pytest.mark.parametrize("low", LOW, ids=str)
def test_every_number(low: torch.dtype) -> None:
    numbers = torch.arange(2**16).to(torch.int16).view(low)
    raised = converted(numbers, torch.float32)
    assert torch.equal(bits(raised), bits(numbers.float()))
    assert torch.equal(bits(converted(raised, low)), bits(numbers))


def test_gradients() -> None:
    tensor = torch.randn(200, 100, requires_grad=True)
    dy = torch.randn(200, 100).bfloat16()
    once = convert(tensor, torch.bfloat16)
    (dx,) = torch.autograd.grad(once, tensor, dy)
    assert torch.equal(dx, dy.float())
    (dx,) = torch.autograd.grad((convert(tensor, torch.bfloat16) ** 2).sum(), tensor, create_graph=True)
    (ddx,) = torch.autograd.grad(dx.sum(), tensor)
    assert torch.equal(ddx, torch.full_like(tensor, 2))


THREADS = """
import os, sys
import torch
import kernels.functional as F, kernels.optim
torch.set_num_threads(1)
dtype = getattr(torch, sys.argv[1])
shapes = ((100, 400), (120, 400), (120,))
x, *parameters = (torch.zeros(shape, requires_grad=True) for shape in shapes)
low = [torch.zeros(400, 120, dtype=dtype, requires_grad=True)]
optimiser, low_optimiser = kernels.optim.SGD(parameters, 0.1), kernels.optim.SGD(low, 0.1, momentum=0.9)
low[0].grad = torch.zeros_like(low[0])
dy = torch.zeros(100, 120, dtype=dtype)
low_optimiser.step()  # makes its momentum buffer
torch.set_num_threads(4)
before = len(os.listdir("/proc/self/task"))
for _ in range(2):
    for leaf in (x, *parameters):
        leaf.grad = None  # else torch adds the new gradient to the old one, on threads of its own
    with torch.autocast("cpu", dtype):
        y = F.linear(x, *parameters)
    y.backward(dy)
    optimiser.step()
    low_optimiser.step()
    F.sigmoid(low[0])
after = len(os.listdir("/proc/self/task"))
x.to(dtype)
print(after - before, len(os.listdir("/proc/self/task")) - after)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts the threads of a process on Linux")
@pytest.mark.parametrize("low", LOW, ids=str)
def test_torch_starts_no_threads(low: torch.dtype) -> None:
    """A step in low precision starts none; a single conversion of torch's own does."""
    command = [sys.executable, "-c", THREADS, str(low).removeprefix("torch.")]
    started, by_torch = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.split()
    assert started == "0"
    assert int(by_torch) > 0
