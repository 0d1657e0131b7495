"""Sizes where 32 bits end. Nothing here is large but addresses: memory that nobody writes takes no room."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
interpreted = pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="runs single programs in the interpreter")
compiled = pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="Triton interprets; run pytest --compiled")

LENGTH = 2**31 - 1  # elements, the most that 32 bits count


@contextlib.contextmanager
def program(number: int) -> Iterator[None]:
    """A block in which the first program of a launch is this one, and memory is not copied back to where it is."""
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    grid, place = builder.set_grid_dim, builder.set_grid_idx
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "set_grid_dim", lambda x, y, z: grid(x + number, y, z))
        patch.setattr(builder, "set_grid_idx", lambda x, y, z: place(x + number, y, z))
        patch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
        yield


@interpreted
def test_the_last_program_of_a_map_stays_inside() -> None:
    from kernels.triton.activations import relu, relu_grad
    from kernels.triton.elementwise import BLOCK, map1_kernel, map2_kernel

    x, y = torch.empty(LENGTH + 1, dtype=torch.uint8), torch.empty(LENGTH + 1, dtype=torch.uint8)
    x[-BLOCK:], y[-BLOCK:] = 7, 0
    with program(LENGTH // BLOCK):
        map1_kernel[(1,)](x, y, LENGTH, (), (1,), (1,), relu, BLOCK)
        assert (y[-BLOCK:-1] == 7).all() and y[-1] == 0
        y[-BLOCK:] = 0
        map2_kernel[(1,)](x, x, y, LENGTH, (), (1,), (1,), (1,), relu_grad, BLOCK)
        assert (y[-BLOCK:-1] == 7).all() and y[-1] == 0


@interpreted
def test_the_last_split_of_a_loss_is_summed() -> None:
    from kernels.triton.mse_loss import BLOCK, mse_loss_kernel

    length = 8 * BLOCK
    splits = LENGTH // length + 1
    input, target = torch.empty(LENGTH, dtype=torch.uint8), torch.zeros((), dtype=torch.uint8)
    first = (splits - 1) * length
    input[first:] = 0
    input[[first, LENGTH - 1]] = torch.tensor([2, 3], dtype=torch.uint8)
    loss = torch.empty(splits)
    with program(splits - 1):
        mse_loss_kernel[(1,)](input, target, loss, LENGTH, length, 1, (), (1,), (0,), BLOCK)
    assert loss[-1] == 2**2 + 3**2


@interpreted
@pytest.mark.parametrize("axis", (2, 3))
@pytest.mark.parametrize(("dtype", "maps"), ((torch.uint8, 1), (torch.float16, 16)), ids=("direct sums", "products"))
def test_pixels_may_lie_far_apart(dtype: torch.dtype, maps: int, axis: int) -> None:
    """2^31 elements from the first row of an image to its last: offsets that were cut off would lie inside, too."""
    from kernels.triton import conv2d_forward, conv2d_input_grad, conv2d_weight_grad

    strides = [1 << 32, 1, 4 * maps, 4 * maps]
    strides[axis], strides[5 - axis] = 2**30, maps
    far = torch.empty(2**32 + 16 * maps, dtype=dtype).as_strided((1, maps, 3, 3), strides, 2**31)
    near = torch.randint(4, (1, maps, 3, 3)).to(dtype)
    far.copy_(near)
    weight, geometry = torch.randint(4, (maps, maps, 2, 2)).to(dtype), ((1, 1), (0, 0), (1, 1), 1)
    dy = torch.randint(3, (1, maps, 2, 2)).to(dtype)

    def results(x: torch.Tensor) -> list[Any]:
        return [
            conv2d_forward(x, weight, None, *geometry),
            *conv2d_weight_grad(dy, x, (2, 2), True, *geometry),
            conv2d_input_grad(x, weight, (4, 4), *geometry),
        ]

    with program(0):
        for result, expected in zip(results(far), results(near), strict=True):
            assert torch.equal(result, expected)


@compiled
def test_a_grid_is_long_in_its_first_dimension_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.compile import triton as compiler
    from kernels.triton import linear_forward

    grids: list[tuple[int, ...]] = []
    monkeypatch.setattr(compiler._Driver, "launcher_cls", lambda *_: lambda *arguments: grids.append(arguments[:3]))
    with compiler.compiling_for("80"):
        linear_forward(torch.empty(1, 1), torch.empty(64 << 16, 1), None, None)
    assert len(grids) == 1 and grids[0][0] >= 1 << 16 and max(grids[0][1:]) == 1
