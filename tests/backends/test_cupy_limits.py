"""Whatever shapes a user brings, CuPy's launchers stay within what every GPU takes from sm_75 on without being asked."""

import math
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

cupy = pytest.importorskip("cupy")

import kernels.cupy as K  # noqa: E402
from kernels.cupy import launch  # noqa: E402
from kernels.sizes import output_size  # noqa: E402

SHARED_BYTES = 48 << 10
MOST_BLOCKS = (1 << 31) - 1, 65_535, 65_535
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Launch(NamedTuple):
    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    options: tuple[str, ...]

    def check(self) -> None:
        """Against the GPU's limits, and the number of threads that the sources declare as their launch bounds."""
        assert all(0 < blocks <= most for blocks, most in zip(self.grid, MOST_BLOCKS, strict=False)), self
        direct = self.kernel.startswith("conv2d") and not self.kernel.startswith(("conv2d_product", "conv2d_depthwise"))
        narrow = direct and "-DDTYPE=double" in self.options
        assert 0 < math.prod(self.block) <= (128 if narrow else 256), self
        assert self.shared <= SHARED_BYTES, self


@pytest.fixture(scope="module")
def launches() -> Iterator[list[Launch]]:
    """What is launched, which nothing runs; tensors on the device "meta" have sizes and no memory."""
    seen: list[Launch] = []

    def module(code: str, options: tuple[str, ...]) -> Any:
        def function(name: str) -> Any:
            return lambda grid, block, arguments, shared_mem: seen.append(
                Launch(name, grid, block, shared_mem, options)
            )

        return SimpleNamespace(get_function=function)

    with pytest.MonkeyPatch.context() as patch, on_architecture(80):
        patch.setattr(cupy, "RawModule", module)
        yield seen


def on_architecture(architecture: int) -> Any:
    """That of the GPU that launchers find in the `with` block."""
    limits = launch.Limits(architecture, 108, SHARED_BYTES, 64 << 10)
    return mock.patch.object(launch, "limits", lambda like: limits)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def pairs(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    """Two equal numbers, as a rule."""
    numbers = st.integers(least, most)
    return numbers.map(lambda n: (n, n)) | st.tuples(numbers, numbers)


def image(
    *size: int,
    batch: int = 64,
    maps: int,
    channels: int,
    window: int,
    padding: int = 0,
    groups: int = 1,
    stride: int = 1,
) -> dict[str, Any]:
    return {
        "batch": batch, "groups": groups, "channels": channels, "maps": maps, "size": size, "kernel": (window, window),
        "stride": (stride, stride), "padding": (padding, padding), "dilation": (1, 1), "dtype": torch.float32,
        "architecture": 80,
    }  # fmt: skip


@settings(max_examples=150)
@example(**image(39, 250, channels=12, maps=32, window=5, padding=4))
@example(**image(160, 160, channels=4, maps=8, window=3, padding=1))
@example(**image(64, 64, channels=8, maps=8, window=5, padding=2))
@example(**image(56, 56, channels=64, maps=64, window=3))
@example(**image(1000, 5, channels=3, maps=64, window=5, padding=2, batch=1))
@example(**image(56, 56, channels=64, maps=64, window=3, padding=1) | {"dtype": torch.float16})
@example(**image(56, 56, channels=64, maps=256, window=1))
@example(**image(56, 56, channels=64, maps=128, window=3, padding=1, stride=2))
@example(**image(112, 112, channels=1, maps=1, window=3, padding=1, groups=64))
@example(**image(7, 7, channels=1, maps=2, window=3, padding=1, groups=1024, stride=2, batch=224))
@given(
    batch=st.sampled_from((1, 2, 64)) | st.integers(1, 3000),
    groups=st.sampled_from((1, 1, 2, 5)),
    channels=st.just(1) | st.integers(1, 256),
    maps=st.sampled_from((8, 16, 64)) | st.integers(1, 256),
    size=pairs(5, 256),
    kernel=st.sampled_from(((3, 3), (5, 5), (7, 7))) | pairs(1, 7),
    stride=st.just((1, 1)) | pairs(1, 3),
    padding=pairs(0, 6),
    dilation=st.just((1, 1)) | pairs(1, 3),
    dtype=st.sampled_from(DTYPES),
    architecture=st.sampled_from((75, 80)),
)
def test_convolutions(
    launches: list[Launch],
    batch: int,
    groups: int,
    channels: int,
    maps: int,
    dtype: torch.dtype,
    architecture: int,
    **geometry: Any,
) -> None:
    size, kernel, *windows = (geometry[name] for name in ("size", "kernel", "stride", "padding", "dilation"))
    out = output_size(size, kernel, *windows)
    assume(min(out) > 0)
    x = meta(batch, groups * channels, *size, dtype=dtype)
    weight, bias = meta(groups * maps, channels, *kernel, dtype=dtype), meta(groups * maps, dtype=dtype)
    dy = meta(batch, groups * maps, *out, dtype=dtype)
    launches.clear()
    with on_architecture(architecture):
        assert K.conv2d_forward(x, weight, bias, *windows, groups).shape == dy.shape
        K.conv2d_input_grad(dy, weight, size, *windows, groups)
        K.conv2d_weight_grad(dy, x, kernel, True, *windows, groups)
    assert len(launches) in (3, 4)
    if min(out) > 1:
        y, positions = K.conv2d_relu_max_pool2d_forward(x, weight, bias, *windows, groups)
        K.conv2d_relu_max_pool2d_backward(y, positions, x, weight, (True, True, True), *windows, groups)
        assert len(launches) in range(6, 9)
    for each in launches:
        each.check()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("architecture", (75, 80, 120))
def test_large_layers_in_half_precision_are_products(
    launches: list[Launch], architecture: int, dtype: torch.dtype
) -> None:
    """Where there are tensor cores for them; LeNet's layers nowhere, nor those of which too few maps would fill a tile."""

    def products(channels: int, maps: int, size: int, window: int, groups: int = 1) -> list[bool]:
        """Of forward, input gradient and weight gradient; channels and maps are those of a group."""
        launches.clear()
        x = meta(64, groups * channels, size, size, dtype=dtype)
        weight = meta(groups * maps, channels, window, window, dtype=dtype)
        geometry = (1, 1), (0, 0), (1, 1), groups
        with on_architecture(architecture):
            y = K.conv2d_forward(x, weight, None, *geometry)
            K.conv2d_input_grad(y, weight, (size, size), *geometry)
            K.conv2d_weight_grad(y, x, (window, window), False, *geometry)
        names = [each.kernel for each in launches if each.kernel != "add_splits"]
        assert [name.removeprefix("conv2d_").removeprefix("product_") for name in names] == [
            "forward", "input_grad", "weight_grad",
        ]  # fmt: skip
        return ["product" in name for name in names]

    fast = dtype.itemsize == 2 and architecture >= 80
    assert products(64, 64, 56, 3) == [fast, fast, True]
    assert products(24, 20, 14, 5) == products(32, 32, 14, 3, groups=4) == [fast] * 3
    assert products(3, 64, 32, 7) == [fast, False, True]
    assert products(64, 16, 14, 3) == [False, fast, False]
    assert products(1, 6, 32, 5) == products(6, 16, 14, 5) == products(16, 16, 14, 3) == [False] * 3


@pytest.mark.parametrize(("architecture", "tile"), ((75, 32), (80, 128)))
def test_tiles_are_those_for_the_gpu_s_way_to_multiply(launches: list[Launch], architecture: int, tile: int) -> None:
    """80 maps fill three tiles of 32 rows; on the tensor cores one of 128 rows is less work."""
    launches.clear()
    x, weight = meta(64, 64, 56, 56, dtype=torch.float16), meta(80, 64, 1, 1, dtype=torch.float16)
    with on_architecture(architecture):
        K.conv2d_forward(x, weight, None, (1, 1), (0, 0), (1, 1), 1)
    assert f"-DTILE={tile}" in launches[0].options


def test_blocks_of_depthwise_convolutions(launches: list[Launch]) -> None:
    """224 images of 512 planes of 7x7 pixels are no 114,688 blocks of a warp."""
    x, weight = meta(224, 512, 7, 7), meta(512, 1, 3, 3)
    windows = (1, 1), (1, 1), (1, 1)
    launches.clear()
    K.conv2d_forward(x, weight, None, *windows, 512)
    K.conv2d_input_grad(x, weight, (7, 7), *windows, 512)
    K.conv2d_weight_grad(x, x, (3, 3), False, *windows, 512)
    of_convolution = [each for each in launches if each.kernel != "add_splits"]
    assert len(of_convolution) == 3
    assert all(each.kernel.startswith("conv2d_depthwise") and each.block == (256,) for each in of_convolution)
    assert all(math.prod(each.grid) <= 2048 for each in of_convolution)


@given(
    batch=st.integers(0, 5000) | st.sampled_from((1 << 20, 1 << 26)),
    inputs=st.integers(0, 5000) | st.sampled_from((1 << 20, 5 << 20)),
    outputs=st.integers(0, 5000) | st.sampled_from((1 << 20, 5 << 20)),
    activation=st.sampled_from((None, "relu", "sigmoid", "step")),
    dtype=st.sampled_from(DTYPES),
    architecture=st.sampled_from((75, 80)),
)
@settings(max_examples=300)
def test_linear(
    launches: list[Launch],
    batch: int,
    inputs: int,
    outputs: int,
    activation: str | None,
    dtype: torch.dtype,
    architecture: int,
) -> None:
    assume(max(batch * inputs, inputs * outputs, outputs * batch) < 1 << 37)  # 256 GB of float16
    launches.clear()
    x, weight = meta(batch, inputs, dtype=dtype), meta(outputs, inputs, dtype=dtype)
    with on_architecture(architecture):
        y = K.linear_forward(x, weight, meta(outputs, dtype=dtype), activation)
        K.linear_backward(y, y, x, weight, (True, True, True), activation)
    for each in launches:
        each.check()


@pytest.mark.parametrize(
    ("sizes", "dtype", "architecture", "expected"),
    (
        ((2048, 1024, 2048), torch.float16, 80, [128, 128]),
        ((8192, 768, 768), torch.bfloat16, 90, [128, 128]),
        ((2048, 1020, 2048), torch.float16, 80, [64, 64]),
        ((2040, 1040, 1040), torch.float16, 80, [128, 128, 64]),
        ((1 << 20, 512, 64), torch.float16, 80, [64, 128, 32]),
        ((2048, 1024, 2048), torch.float16, 75, [64, 64]),
        ((2048, 1024, 2048), torch.float32, 90, [64, 64]),
    ),
    ids=str,
)
def test_tiles_of_large_layers(
    launches: list[Launch], sizes: tuple[int, int, int], dtype: torch.dtype, architecture: int, expected: list[int]
) -> None:
    """Of forward, and the gradients in one launch or in two; tiles of 128 need tensor cores, rows of whole eights and width."""
    batch, inputs, outputs = sizes
    launches.clear()
    x, weight = meta(batch, inputs, dtype=dtype), meta(outputs, inputs, dtype=dtype)
    with on_architecture(architecture):
        y = K.linear_forward(x, weight, None, "relu")
        K.linear_backward(y, y, x, weight, (True, True, True), "relu")
    tiles = [re.findall(r"-DTILE=(\d+) .*-DWIDTH_A=(\d)", " ".join(each.options)) for each in launches]
    assert [int(tile) for ((tile, _),) in filter(None, tiles)] == expected
    assert all((tile == "128") == (width == "8") for ((tile, width),) in filter(None, tiles))
    stored_first = [each.kernel for each in launches].count("relu_backward")
    assert stored_first == (dtype.itemsize == 2 and architecture >= 80)


@given(
    planes=st.tuples(st.integers(0, 300), st.integers(1, 300)),
    size=pairs(1, 256),
    kernel=pairs(1, 20),
    stride=pairs(1, 4),
    dilation=pairs(1, 3),
    ceil_mode=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=100)
def test_pooling(
    launches: list[Launch], planes: Any, size: Any, ceil_mode: bool, dtype: torch.dtype, **windows: Any
) -> None:
    kernel, padding = windows["kernel"], tuple(k // 2 for k in windows["kernel"])
    geometry = kernel, windows["stride"], padding, windows["dilation"]
    assume(min(output_size(size, *geometry, ceil_mode)) > 0)
    launches.clear()
    x = meta(*planes, *size, dtype=dtype)
    y, positions = K.max_pool2d_forward(x, ceil_mode, *geometry)
    K.max_pool2d_input_grad(y, positions, size, *geometry)
    K.max_pool2d_gather(x, positions, *geometry)
    for each in launches:
        each.check()


@given(shape=st.lists(st.integers(0, 3000), min_size=1, max_size=3), dtype=st.sampled_from(DTYPES), data=st.data())
@settings(max_examples=100)
def test_element_wise_and_rows(
    launches: list[Launch], shape: list[int], dtype: torch.dtype, data: st.DataObject
) -> None:
    launches.clear()
    x, dim = meta(*shape, dtype=dtype), data.draw(st.integers(0, len(shape) - 1))
    x = x.transpose(0, data.draw(st.integers(0, len(shape) - 1)))
    K.softmax_backward(x, K.softmax_forward(x, dim), dim)
    K.relu_backward(x, K.relu_forward(x))
    for reduction in ("none", "mean", "sum"):
        K.mse_loss_backward(K.mse_loss_forward(x, x, reduction), x, x, reduction)
        if x.dim() > 1:
            classes, weight = meta(len(x), *x.shape[2:], dtype=torch.int64), meta(x.shape[1], dtype=dtype)
            loss, norm, divisor = K.cross_entropy_forward(x, x, weight, reduction, -1, 0.0)
            K.cross_entropy_backward(loss, x, x, None, norm, divisor, -1, 0.1)
            K.cross_entropy_forward(x, classes, None, reduction, -1, 0.0)
    K.sgd([x, x], [x, x], [x, x], 0.1, None, 0.9, 0.0, 0.0, False, False, False)
    for each in launches:
        each.check()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sum_that_is_not_split_is_stored_at_once(launches: list[Launch], dtype: torch.dtype) -> None:
    """No second launch, and no memory for sums in float32."""
    launches.clear()
    windows = (1, 1), (0, 0), (1, 1)
    dy, x = meta(1, 512, 1, 1, dtype=dtype), meta(1, 512, 1, 1, dtype=dtype)
    K.conv2d_weight_grad(dy, x, (1, 1), True, *windows, 1)
    positions = meta(1, 512, 1, 1, dtype=torch.uint8)
    x, weight = meta(1, 64, 4, 4, dtype=dtype), meta(512, 64, 3, 3, dtype=dtype)
    K.conv2d_relu_max_pool2d_backward(dy, positions, x, weight, (False, True, True), *windows, 1)
    K.linear_weight_grad(meta(64, 4096, dtype=dtype), meta(64, 4096, dtype=dtype))
    assert [each.kernel for each in launches] == [
        "conv2d_product_weight_grad", "conv2d_relu_max_pool2d_weight_grad", "linear_backward",
    ]  # fmt: skip
