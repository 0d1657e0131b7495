"""Hypothesis strategies: tensors of any memory layout, and the arguments of the operations."""

import math
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from kernels.backend import chosen
from kernels.check.operations import LAYOUTS
from kernels.sizes import output_size, spanned_size

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BATCHES = {"numpy": (0, 1, 2, 3, 33, 70, 260)}  # more than a tile of images, and more than two threads' tiles
SMALL_BATCHES = (0, 1, 2, 3, 7)  # for backends that run in an interpreter or a simulator here


def generator_of(seed: int) -> torch.Generator:
    """Random numbers where new tensors lie, which is on a GPU if the backend under test runs on one."""
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


@st.composite
def tensors(draw: Any, shape: Any, dtype: torch.dtype, values: tuple[float, ...] = ()) -> Tensor:
    """A tensor of one of the LAYOUTS, of normally distributed numbers or of some of the `values`."""
    generator = generator_of(draw(st.integers(0, 2**16)))
    if values:
        places = torch.randint(len(values), tuple(shape), generator=generator)
        tensor = torch.tensor(values, dtype=torch.float64)[places]
    else:
        tensor = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    return LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](tensor.to(dtype))


WHOLE = tuple(range(-3, 4))


@st.composite
def leaves(draw: Any, shape: Any, dtype: torch.dtype, values: tuple[float, ...] = ()) -> Tensor:
    """A tensor that may require a gradient."""
    return draw(tensors(shape, dtype, values)).requires_grad_(draw(st.booleans()))


def pairs(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(least, most), st.integers(least, most))


def batches() -> st.SearchStrategy[int]:
    """Numbers of images that cross the borders of the backend's tiles."""
    return st.sampled_from(BATCHES.get(chosen(), SMALL_BATCHES))


@st.composite
def convolutions(draw: Any, values: tuple[float, ...] = (), least_output: int = 1) -> tuple[tuple, dict[str, Any]]:
    """Arguments of conv2d."""
    dtype, groups = draw(st.sampled_from(DTYPES)), draw(st.integers(1, 3))
    channels, features = draw(pairs(1, 3))
    kernel, stride, padding, dilation = draw(pairs(1, 3)), draw(pairs(1, 3)), draw(pairs(0, 2)), draw(pairs(1, 2))
    size = tuple(
        max(1, d * (k - 1) + 1 - 2 * p + (least_output - 1) * s + draw(st.integers(0, 5)))
        for k, s, p, d in zip(kernel, stride, padding, dilation, strict=True)
    )
    image = (groups * channels, *size)
    batch = draw(batches())
    input = draw(leaves(image if draw(st.integers(0, 4)) == 0 else (batch, *image), dtype, values))
    weight = draw(leaves((groups * features, channels, *kernel), dtype, values))
    bias = draw(st.none() | leaves((groups * features,), dtype, values))
    return (input, weight, bias), {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}


@st.composite
def transposed_convolutions(draw: Any, values: tuple[float, ...] = ()) -> tuple[tuple, dict[str, Any]]:
    """Arguments of conv_transpose2d: those that lead back from a convolution's output to the size of its input."""
    (images, weight, _), kwargs = draw(convolutions(values))
    windows = weight.shape[2:], kwargs["stride"], kwargs["padding"], kwargs["dilation"]
    size = output_size(images.shape[-2:], *windows)
    input = draw(leaves((*images.shape[:-3], weight.shape[0], *size), weight.dtype, values))
    bias = draw(st.none() | leaves((images.shape[-3],), weight.dtype, values))
    beyond = tuple(n - reached for n, reached in zip(images.shape[-2:], spanned_size(size, *windows), strict=True))
    return (input, weight, bias), {"output_padding": beyond} | kwargs


POOLABLE = (-math.inf, -1.0, 0.0, 1.0, 2.0)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@st.composite
def poolings(draw: Any) -> tuple[tuple, dict[str, Any]]:
    """Arguments of max_pool2d: no window leaps over the image, for torch's gradient then writes beside it."""
    dtype = draw(st.sampled_from(DTYPES + INTEGERS))
    kernel, stride, dilation = draw(pairs(1, 4)), draw(st.none() | pairs(1, 4)), draw(pairs(1, 2))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    padding = tuple(draw(st.integers(0, length // 2)) for length in kernel)
    size = [
        max(d, length - 2 * p + draw(st.integers(0, 6))) for d, length, p in zip(dilation, reach, padding, strict=True)
    ]
    image = (draw(st.integers(1, 3)), *size)
    shape = image if draw(st.integers(0, 4)) == 0 else (draw(batches()), *image)
    if dtype.is_floating_point:
        values = POOLABLE + ((math.nan,) if draw(st.booleans()) else ())
        input = draw(leaves(shape, dtype, draw(st.sampled_from([values, ()]))))
    else:
        input = draw(tensors(shape, dtype, (0, 1, 2, 100)))
    flags = {"ceil_mode": draw(st.booleans()), "return_indices": draw(st.booleans())}
    return (input, kernel), {"stride": stride, "padding": padding, "dilation": dilation} | flags
