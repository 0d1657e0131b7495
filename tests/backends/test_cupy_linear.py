"""Large linear layers in half precision in CUDA C++: tiles of 128, whose operands are copied while others are multiplied."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from judge import LINEAR, LINEAR_RELU, check
from torch import Tensor

pytest.importorskip("cupy")

from devices import running  # noqa: E402

import kernels  # noqa: E402
from benchmarks.counts.counters import simulator  # noqa: E402
from kernels.cupy import linear  # noqa: E402
from kernels.cupy.launch import has_tensor_cores  # noqa: E402
from kernels.sizes import cdiv  # noqa: E402

HALVES = torch.float16, torch.bfloat16


@pytest.fixture(scope="module", autouse=True)
def cupy() -> Iterator[None]:
    with running("cupy"), kernels.use_backend("cupy"):
        if not has_tensor_cores(torch.empty(0, dtype=torch.float16)):
            pytest.skip("tiles of 128 are for tensor cores that take float16 and bfloat16: from sm_80 on")
        yield


@pytest.fixture
def tiles_of_128() -> Iterator[None]:
    """Also for products that are too small for them, wherever operands can be copied; so that little is simulated."""

    def tiles(m: int, n: int, *_: int, copied: bool, **__: int) -> tuple[int, int, int]:
        assert copied
        return 128, 1, cdiv(m, 128) * cdiv(n, 128)

    with mock.patch.object(linear, "tiles", tiles):
        yield


def rows(number: int, length: int, dtype: torch.dtype, spare: int = 0) -> Tensor:
    """A matrix whose rows are `spare` values apart, each NaN."""
    memory = torch.full((number, length + spare), torch.nan, dtype=dtype)
    return memory[:, :length].copy_(torch.randn(number, length)).requires_grad_()


@pytest.mark.usefixtures("tiles_of_128")
@given(
    batch=st.integers(1, 300),
    inputs=st.integers(1, 33),
    outputs=st.integers(1, 33),
    spare=st.sampled_from((0, 8)),
    bias=st.booleans(),
    dtype=st.sampled_from(HALVES),
    operation=st.sampled_from((LINEAR, LINEAR_RELU)),
)
@example(batch=300, inputs=17, outputs=9, spare=8, bias=True, dtype=torch.bfloat16, operation=LINEAR_RELU)
@settings(max_examples=10)
def test_every_size(
    batch: int, inputs: int, outputs: int, spare: int, bias: bool, dtype: torch.dtype, operation: Any
) -> None:
    """Rows of whole eights, no other size a whole number of tiles or chunks; from 256 on the batch is split."""
    x, weight = rows(batch, 8 * inputs, dtype, spare), rows(8 * outputs, 8 * inputs, dtype, spare)
    check(operation, x, weight, rows(1, 8 * outputs, dtype)[0] if bias else None)


@pytest.mark.usefixtures("tiles_of_128")
@pytest.mark.parametrize("needed", range(1, 8))
def test_gradients_that_are_needed(needed: int) -> None:
    """Each set of input, weight and bias, of a layer with as many inputs as a tile has columns: the bias's are in another one."""
    leaves = [rows(130, 128, torch.float16), rows(136, 128, torch.float16), rows(1, 136, torch.float16)[0].detach()]
    check(LINEAR, *(leaf.detach().requires_grad_(bool(needed >> i & 1)) for i, leaf in enumerate(leaves)))


@pytest.mark.usefixtures("tiles_of_128")
def test_nan_and_infinity_stay_in_their_rows() -> None:
    """Also where they lie beside the end of a sum, of a tile or of the batch."""
    x, weight = torch.randn(129, 40), torch.randn(136, 40)
    x[127, 39], x[128, 0], weight[128, 39], weight[5, 32] = torch.inf, torch.nan, -torch.inf, torch.nan
    check(LINEAR, *(each.half().requires_grad_() for each in (x, weight, torch.randn(136))))


@pytest.mark.usefixtures("tiles_of_128")
@pytest.mark.parametrize("product", (linear.linear_forward, linear.linear_input_grad, linear.linear_weight_grad))
def test_what_a_chunk_costs(product: Any) -> None:
    """Of 64 tensor core instructions of each warp, for 64 x 64 sums of 32 terms; no two threads meet in a bank."""

    def counters(depth: int) -> Any:
        deep, high = (torch.randn(size, device="cpu").half() for size in ((128, depth), (depth, 128)))
        operands = {"forward": (deep, deep), "input_grad": (deep, high), "weight_grad": (high, high)}
        rest = (None, None) if product is linear.linear_forward else ()
        with simulator("cupy") as device, mock.patch.object(linear, "split", lambda batch, _: (batch, 1)):
            product(*operands[product.__name__.removeprefix("linear_")], *rest)
        return device.launches[-1].counters

    few, many = counters(1024), counters(2048)
    instructions, wavefronts, sectors = (
        (getattr(many, name) - getattr(few, name)) / 32
        for name in ("warp_instructions", "shared_wavefronts", "global_load_sectors")
    )
    copied = 2 * 128 * 32 * 2  # bytes
    assert 128 * 128 * 32 / instructions >= 700
    assert wavefronts == 4 * 16 * 4 + copied / 128  # 16 fragments of each warp, 4 wavefronts for each; and the copies
    assert sectors == copied / 32
