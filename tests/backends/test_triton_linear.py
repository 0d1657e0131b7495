"""Large linear layers in Triton: every tile computes what torch does, in code with few instructions for a multiply-add."""

import os
from functools import partial

import pytest
import torch
from devices import running
from hypothesis import given, settings
from hypothesis import strategies as st
from judge import LINEAR, LINEAR_RELU, check

import kernels
import kernels.functional as F

pytest.importorskip("triton")
compiled = pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="Triton interprets; run pytest --compiled")


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    (
        ((70, 520, 528), torch.float16),
        ((70, 520, 528), torch.float32),
        ((70, 520, 2056), torch.float32),
        ((70, 2056, 520), torch.float16),
        ((600, 2056, 128), torch.float16),
        ((600, 2056, 128), torch.float32),
    ),
    ids=str,
)
def test_every_tile_of_large_layers(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    """No size is a whole number of tiles or of chunks; 600 rows are split."""
    n, i, o = sizes
    inputs = [torch.randn(size).to(dtype).requires_grad_() for size in ((n, i), (o, i), (o,))]
    with running("triton"), kernels.use_backend("triton"):
        check(LINEAR_RELU, *inputs)


def test_rows_that_are_no_whole_vectors_take_other_tiles() -> None:
    inputs = [torch.randn(size, requires_grad=True) for size in ((5, 519), (521, 519), (521,))]
    with running("triton"), kernels.use_backend("triton"):
        check(LINEAR, *inputs)
        check(LINEAR, inputs[0][:, :512], inputs[1][:, 7:], inputs[2])


@compiled
@pytest.mark.parametrize(
    ("target", "precision", "least"), (("80", "float16", 500), ("90", "float16", 900), ("90", "tf32", 150))
)
def test_large_layers_take_few_instructions(target: str, precision: str, least: int) -> None:
    """Multiply-adds of a warp for each instruction that it issues, in the loops of forward, weight and input gradient."""
    from benchmarks.compile.built import tensor_core_loops
    from benchmarks.compile.triton import PRECISIONS, assembly, compiling_for, jit_functions
    from kernels.check.run import precision as switches
    from kernels.triton import linear_backward, linear_forward

    x, weight = torch.empty(64, 1024, dtype=PRECISIONS[precision]), torch.empty(1024, 1024, dtype=PRECISIONS[precision])
    with compiling_for(target) as device, switches(precision == "tf32"):
        y = linear_forward(x, weight, weight[0], "relu")
        linear_backward(y, y, x, weight, (True, True, True), "relu")
        functions = [f for f in jit_functions() if f.__name__.startswith("linear")]
        built = [kernel for f in functions for kernel in f.device_caches[device][0].values()]
    loops = [loop for kernel in built for loop in tensor_core_loops(assembly(kernel))]
    assert len(built) == 2 and len(loops) == 3
    assert min(multiply_adds / instructions for instructions, _, multiply_adds in loops) >= least
    assert all(("wgmma.mma_async" in kernel.asm["ptx"]) == (target == "90") for kernel in built)
    # chunks are on their way while others are multiplied: asynchronous copies, with room for more than one
    assert all(kernel.metadata.shared >= 2 * (64 + 128) * 128 for kernel in built)


@compiled
@settings(max_examples=4)
@given(
    st.sampled_from(("75", "80", "86", "90", "120")), st.sampled_from(("float16", "tf32", "float32")),
    st.sampled_from((300, 512, 784, 1000, 2048)), st.sampled_from((500, 512, 1024, 2056)), st.integers(0, 1),
)  # fmt: skip
def test_no_loop_of_large_layers_has_spills(target: str, precision: str, i: int, o: int, offset: int) -> None:
    """Whatever shape a user brings, also where an input does not begin at a whole vector."""
    from benchmarks.compile.triton import PRECISIONS, build

    def layer(n: int) -> None:
        x, weight, bias = (
            torch.empty(rows * columns + offset, dtype=PRECISIONS[precision])[offset:]
            .view(rows, columns)
            .requires_grad_()
            for rows, columns in ((n, i), (o, i), (1, o))
        )
        y = F.linear_relu(x, weight, bias[0])
        torch.autograd.grad(y, (x, weight, bias), torch.empty_like(y))

    rows = build(target, precision, [partial(layer, 64)])
    assert [row for row in rows if not row.fits] == []
