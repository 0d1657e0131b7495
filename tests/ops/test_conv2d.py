"""conv2d: random cases against torch in float64, derivatives of derivatives, errors."""

from typing import Any

import pytest
import torch
from cases import WHOLE, convolutions, tensors
from hypothesis import given
from hypothesis import strategies as st
from judge import CONV2D, CONV2D_RELU_MAX_POOL2D, check, exact
from torch.autograd import gradcheck, gradgradcheck

import kernels.functional as F

pytestmark = pytest.mark.usefixtures("poisoned")

GEOMETRIES = (
    {},
    {"stride": 2, "padding": 1},
    {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    {"groups": 2, "padding": "same"},
    {"groups": 2, "stride": 3, "dilation": 2, "padding": 1},
)


@given(st.data())
def test_random(data: st.DataObject) -> None:
    args, kwargs = data.draw(convolutions())
    check(CONV2D, *args, **kwargs, make_dy=lambda y: data.draw(tensors(y.shape, y.dtype)))


@given(st.data())
def test_whole_numbers_are_exact(data: st.DataObject) -> None:
    args, kwargs = data.draw(convolutions(WHOLE))
    operation = CONV2D._replace(sizes=exact)
    check(operation, *args, **kwargs, make_dy=lambda y: data.draw(tensors(y.shape, y.dtype, WHOLE)))


@pytest.mark.large
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("precision", (torch.float16, torch.bfloat16, "tf32", torch.float32), ids=str)
@pytest.mark.parametrize("operation", (CONV2D, CONV2D_RELU_MAX_POOL2D), ids=("conv2d", "conv2d_relu_max_pool2d"))
def test_as_many_maps_as_tensor_cores_want(operation: Any, precision: Any, geometry: dict[str, Any]) -> None:
    """Without tensor cores, in float32, they are more than a program computes."""
    tf32 = precision == "tf32"  # whole numbers are exact in it
    dtype = torch.float32 if tf32 else precision
    groups = geometry.get("groups", 1)
    shapes = ((2, 31 * groups, 7, 8), (31 * groups, 31, 3, 3), (31 * groups,))
    inputs = [torch.randint(-3, 4, shape).to(dtype).requires_grad_() for shape in shapes]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
        check(operation, *inputs, **geometry, make_dy=lambda y: torch.randint(-3, 4, y.shape).to(dtype))


@pytest.mark.large
@pytest.mark.parametrize("operation", (CONV2D, CONV2D_RELU_MAX_POOL2D), ids=("conv2d", "conv2d_relu_max_pool2d"))
@pytest.mark.parametrize("maps", (24, 17), ids=("vectors", "no vectors"))
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last), ids=str)
def test_as_many_pixels_as_tensor_cores_split(layout: torch.memory_format, maps: int, operation: Any) -> None:
    """A block has pixels of two images, and several programs share the sums of a weight gradient."""
    images, *others = (
        torch.randint(-3, 4, shape).float() for shape in ((3, maps, 24, 24), (maps, maps, 3, 3), (maps,))
    )
    inputs = [tensor.requires_grad_() for tensor in (images.to(memory_format=layout), *others)]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        check(
            operation._replace(sizes=exact), *inputs, padding=1, make_dy=lambda y: torch.randint(-3, 4, y.shape).float()
        )


@pytest.mark.large
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("with_bias", (False, True))
def test_derivatives(geometry: dict[str, Any], with_bias: bool) -> None:
    groups = geometry.get("groups", 1)
    shapes = ((2, 2, 6, 5), (2, 2 // groups, 3, 2), (2,))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes[: 2 + with_bias]]

    def convolve(input: Any, weight: Any, bias: Any = None) -> Any:
        return F.conv2d(input, weight, bias, **geometry)

    assert gradcheck(convolve, inputs, fast_mode=True)
    assert gradgradcheck(convolve, inputs, fast_mode=True)


@pytest.mark.large
def test_third_derivative() -> None:
    input, weight = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((1, 1, 4, 4), (1, 1, 2, 2))
    )

    def gradient(input: Any, weight: Any) -> Any:
        loss = F.conv2d(input, weight).pow(3).sum()
        return torch.autograd.grad(loss, (input, weight), create_graph=True)

    assert gradgradcheck(gradient, (input, weight))


@pytest.mark.parametrize("shape", ((4, 2, 3, 3), (4, 1, 3, 3), (4, 2, 1, 1), (1, 2, 1, 3)), ids=str)
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last), ids=str)
@pytest.mark.parametrize("function", (F.conv2d, F.conv2d_relu, F.conv2d_relu_max_pool2d), ids=lambda f: f.__name__)
def test_gradients_have_the_strides_of_parameters(function: Any, layout: torch.memory_format, shape: Any) -> None:
    input, bias = torch.randn(3, shape[1], 6, 6), torch.randn(shape[0], requires_grad=True)
    dense = torch.randn(shape, requires_grad=True)
    weight = dense.detach().to(memory_format=layout).requires_grad_()
    dweight, dbias = torch.autograd.grad(function(input, weight, bias).square().sum(), (weight, bias))
    assert dweight.stride() == weight.stride() and dbias.stride() == bias.stride()
    assert torch.equal(dweight, torch.autograd.grad(function(input, dense, bias).square().sum(), dense)[0])


@pytest.mark.parametrize("kernel", (2, 3, 5))
@pytest.mark.parametrize(("maps", "groups", "rows"), ((5, 1, 5), (2, 2, 9), (13, 1, 5)))
@pytest.mark.parametrize("place", ((..., -1, slice(None)), (..., slice(None), -1)), ids=("last row", "last column"))
def test_weight_gradient_beside_infinite_pixels(place: Any, maps: int, groups: int, rows: int, kernel: int) -> None:
    """Only the last row or column of the window meets them: the zeros beyond an odd output must not."""
    input = torch.randint(-3, 4, (3, 2, kernel + rows - 1, kernel + rows - 1)).float()
    input[place] = torch.inf
    weight, bias = (torch.zeros(shape, requires_grad=True) for shape in ((maps, 2 // groups, kernel, kernel), (maps,)))
    F.conv2d(input, weight, bias, groups=groups).sum().backward()
    dy = torch.ones(3, maps, rows, rows, dtype=torch.float64)
    judged = torch.nn.grad.conv2d_weight(input.double(), weight.shape, dy, groups=groups)
    assert judged.isfinite().any()
    torch.testing.assert_close(weight.grad, judged.float(), rtol=0, atol=0)
    assert bias.grad.tolist() == [3 * rows**2] * maps


@pytest.mark.large
@pytest.mark.parametrize("operation", (CONV2D, CONV2D_RELU_MAX_POOL2D), ids=("conv2d", "conv2d_relu_max_pool2d"))
@pytest.mark.parametrize(("kernel", "padding"), ((3, 1), (5, 0), (5, 2), (7, 3)))
def test_square_windows(operation: Any, kernel: int, padding: int) -> None:
    """They may have code of their own; channels and maps for several blocks, and pixels that fill no block."""
    shapes = ((3, 2 * 17, kernel + 6, kernel + 8), (2 * 7, 17, kernel, kernel), (2 * 7,))
    inputs = [torch.randint(-3, 4, shape).float().requires_grad_() for shape in shapes]
    operation = operation._replace(sizes=exact)
    check(operation, *inputs, padding=padding, groups=2, make_dy=lambda y: torch.randint(-3, 4, y.shape).float())


@pytest.mark.large
@pytest.mark.parametrize("kernel", (3, 5, 7))
def test_wide_images(kernel: int) -> None:
    """A warp may have a single row of them, and leave out what lies above and below the image."""
    shapes = ((1, 2, kernel + 2, 64), (3, 2, kernel, kernel), (3,))
    inputs = [torch.randint(-3, 4, shape).float().requires_grad_() for shape in shapes]
    check(CONV2D._replace(sizes=exact), *inputs, make_dy=lambda y: torch.randint(-3, 4, y.shape).float())


@pytest.mark.large
@pytest.mark.parametrize("batch", (13, 703))
def test_many_images(batch: int) -> None:
    """So many that blocks take several at once, or one after the other, and the last block fewer."""
    shapes = ((batch, 2, 14, 14), (6, 2, 5, 5), (6,))
    inputs = [torch.randint(-3, 4, shape).float().requires_grad_() for shape in shapes]
    operation = CONV2D_RELU_MAX_POOL2D._replace(sizes=exact)
    check(operation, *inputs, make_dy=lambda y: torch.randint(-3, 4, y.shape).float())


@pytest.mark.large
@pytest.mark.parametrize("groups", (1, 2))
@pytest.mark.parametrize(
    "geometry",
    ({"stride": 5}, {"stride": (30, 1), "padding": 4}, {"stride": (1, 2), "dilation": 2, "padding": 3}),
    ids=str,
)
def test_rows_that_few_windows_meet(geometry: dict[str, Any], groups: int) -> None:
    """At an image's edge fewer rows of the window count, and beyond the last window none."""
    shapes = ((40, 2 * groups, 17, 12), (4 * groups, 2, 3, 3), (4 * groups,))
    inputs = [torch.randint(-3, 4, shape).float().requires_grad_() for shape in shapes]
    operation = CONV2D._replace(sizes=exact)
    check(operation, *inputs, **geometry, groups=groups, make_dy=lambda y: torch.randint(-3, 4, y.shape).float())


@pytest.mark.large
@pytest.mark.parametrize(
    ("channels", "maps", "kernel", "geometry"),
    (
        (20, 24, (1, 1), {}),
        (20, 24, (1, 1), {"stride": 2}),
        (3, 40, (7, 7), {"stride": 2, "padding": 3}),
        (16, 17, (3, 3), {"stride": (2, 3), "padding": (2, 1), "dilation": (2, 1)}),
        (12, 13, (2, 3), {"stride": (3, 6), "dilation": (2, 4), "groups": 2}),
        (12, 70, (3, 2), {"stride": 4, "padding": (3, 1), "dilation": (3, 1)}),
    ),
    ids=str,
)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
def test_more_maps_than_a_thread_takes(
    dtype: torch.dtype, channels: int, maps: int, kernel: Any, geometry: dict[str, Any]
) -> None:
    """The convolution may be a product of matrices, the input's gradient one for each class of pixels modulo the stride."""
    groups = geometry.get("groups", 1)
    shapes = ((3, channels * groups, 12, 14), (maps * groups, channels, *kernel), (maps * groups,))
    inputs = [torch.randint(-3, 4, shape).to(dtype).requires_grad_() for shape in shapes]
    check(CONV2D._replace(sizes=exact), *inputs, **geometry, make_dy=lambda y: torch.randint(-3, 4, y.shape).to(dtype))


@pytest.mark.large
@pytest.mark.parametrize(("dtype", "size"), ((torch.float16, 48), (torch.bfloat16, 47)), ids=str)
def test_as_many_pixels_as_large_tiles_want(dtype: torch.dtype, size: int) -> None:
    """Rows of an even number of pixels are read four at once."""
    inputs = [torch.randn(shape).to(dtype).requires_grad_() for shape in ((8, 20, size, size), (64, 20, 1, 1), (64,))]
    check(CONV2D, *inputs)


@pytest.mark.large
@pytest.mark.parametrize(
    ("maps", "size", "kernel", "geometry"),
    (
        (1, (9, 7), (3, 3), {"padding": 1}),
        (1, (29, 30), (3, 3), {"stride": 2, "padding": 1}),
        (2, (12, 9), (5, 3), {"stride": (3, 1), "padding": (2, 0), "dilation": (1, 2)}),
        (3, (8, 11), (2, 2), {"stride": (4, 3), "padding": (1, 0), "dilation": (2, 1)}),
    ),
    ids=str,
)
def test_depthwise(maps: int, size: Any, kernel: Any, geometry: dict[str, Any]) -> None:
    """An input map for each of the output's, in more planes than a block or a warp takes."""
    groups, batch = 19, 21
    shapes = ((batch, groups, *size), (maps * groups, 1, *kernel), (maps * groups,))
    inputs = [torch.randint(-3, 4, shape).float().requires_grad_() for shape in shapes]
    operation = CONV2D._replace(sizes=exact)
    check(operation, *inputs, **geometry, groups=groups, make_dy=lambda y: torch.randint(-3, 4, y.shape).float())


@pytest.mark.large
def test_more_groups_than_a_grid_has_rows() -> None:
    groups = 70_000
    inputs = [torch.randint(-3, 4, shape).float() for shape in ((1, groups, 2, 2), (groups, 1, 1, 1))]
    check(CONV2D._replace(sizes=exact), *inputs, groups=groups)


@pytest.mark.parametrize(
    ("change", "error", "named"),
    (
        ({"input": [1.0]}, TypeError, "input"),
        ({"weight": 1}, TypeError, "weight"),
        ({"bias": 1.0}, TypeError, "bias"),
        ({"input": torch.zeros(4, 4)}, RuntimeError, "input"),
        ({"input": torch.zeros(1, 2, 4, 4, dtype=torch.float64)}, RuntimeError, "weight"),
        ({"input": torch.zeros(1, 3, 4, 4)}, RuntimeError, "input"),
        ({"input": torch.zeros(1, 2, 1, 4)}, RuntimeError, "input"),
        ({"bias": torch.zeros(2)}, RuntimeError, "bias"),
        ({"bias": torch.zeros(3, 1)}, RuntimeError, "bias"),
        ({"stride": 0}, RuntimeError, "stride"),
        ({"stride": 1.5}, TypeError, "stride"),
        ({"stride": (1, 1, 1)}, RuntimeError, "stride"),
        ({"padding": -1}, RuntimeError, "padding"),
        ({"padding": "full"}, RuntimeError, "padding"),
        ({"padding": "same", "stride": 2}, RuntimeError, "padding"),
        ({"dilation": 0}, RuntimeError, "dilation"),
        ({"groups": 0}, RuntimeError, "groups"),
        ({"groups": 2}, RuntimeError, "groups"),
        ({"groups": 1.0}, TypeError, "groups"),
    ),
    ids=str,
)
@pytest.mark.parametrize("function", (F.conv2d, F.conv2d_relu, F.conv2d_relu_max_pool2d), ids=lambda f: f.__name__)
def test_errors(function: Any, change: dict[str, Any], error: type[Exception], named: str) -> None:
    good = {"input": torch.zeros(1, 2, 4, 4), "weight": torch.zeros(3, 2, 2, 2), "bias": torch.zeros(3)}
    with pytest.raises(error) as theirs:
        torch.nn.functional.conv2d(**good | change)
    with pytest.raises(error, match=f"^{function.__name__}: .*{named}") as ours:
        function(**good | change)
    assert isinstance(ours.value, theirs.type)


@pytest.mark.parametrize("dtype", (torch.int64, torch.bool, torch.complex64), ids=str)
def test_dtypes_that_are_not_supported(dtype: torch.dtype) -> None:
    with pytest.raises(NotImplementedError, match="conv2d: expected input to be float16.*got torch"):
        F.conv2d(torch.ones(1, 1, 3, 3, dtype=dtype), torch.ones(1, 1, 2, 2, dtype=dtype))


@pytest.mark.parametrize("batch", ((), (0,), (2,)), ids=str)
@pytest.mark.parametrize("kernel", ((33, 0, 3, 3), (2, 0, 0, 1)), ids=str)
@pytest.mark.parametrize("with_bias", (False, True))
def test_no_channels(batch: Any, kernel: Any, with_bias: bool) -> None:
    """Images without channels give images without channels in torch, whatever maps the weight has."""
    shapes = ((*batch, 0, 6, 5), kernel, kernel[:1])[: 2 + with_bias]
    results = check(CONV2D, *(torch.randn(s, requires_grad=True) for s in shapes), padding=(1, 2), stride=2, groups=1)
    assert results[0].shape[-3] == 0
    with pytest.raises(RuntimeError, match="conv2d_relu_max_pool2d: expected input to have channels, got"):
        F.conv2d_relu_max_pool2d(*(torch.randn(s) for s in shapes))


@pytest.mark.parametrize("size", ((0, 5), (5, 0), (0, 0)), ids=str)
@pytest.mark.parametrize("function", (F.conv2d, F.conv2d_relu, F.conv2d_relu_max_pool2d), ids=lambda f: f.__name__)
def test_images_without_pixels(function: Any, size: Any) -> None:
    """Padding does not help, but where there is no image."""
    weight = torch.ones(3, 2, 2, 2)
    with pytest.raises(RuntimeError):
        torch.nn.functional.conv2d(torch.ones(1, 2, *size), weight, padding=2)
    for shape in ((1, 2, *size), (2, *size)):
        with pytest.raises(RuntimeError, match=f"{function.__name__}: expected input to have no empty dimension .*got"):
            function(torch.ones(shape), weight, padding=2)
    assert function(torch.ones(0, 2, *size), weight, padding=2).shape[:2] == (0, 3)
    without = (torch.ones(1, 0, *size), weight[:, :0])
    assert F.conv2d(*without, padding=2).shape == torch.nn.functional.conv2d(*without, padding=2).shape


@pytest.mark.parametrize(
    ("kernel", "geometry"),
    (((2, 3), {"stride": (2**40, 2), "padding": 1}), ((1, 1), {"stride": 2, "dilation": 2**40})),
    ids=str,
)
def test_numbers_beyond_32_bits(kernel: Any, geometry: dict[str, Any]) -> None:
    """The stride of a single window and the dilation of one element say nothing, however large."""
    inputs = [torch.randn(shape, requires_grad=True) for shape in ((2, 3, 5, 6), (4, 3, *kernel), (4,))]
    check(CONV2D, *inputs, **geometry)
