"""How the Triton backend computes a whole network: each layer by the rules of its operation, and how its sums are split."""

import functools
from typing import Any, NamedTuple

from torch import Tensor

from kernels.ops.network import Network, check_float32
from kernels.sizes import cdiv
from kernels.triton import linear, tiles
from kernels.triton.conv2d import weight_strides

WARPS = 4  # of a program
# A phase is as long as its longest tile, so forward no warp has a split of a linear layer's sums, and there are
WEIGHT_SUMS = 60  # of a lane in a convolution's weight gradient
# Products behind pooling for fewer maps take all registers even alone: for them there are
LOOKING_UP = 28  # maps that use a value gathered there, at least


class ConvolutionPlan(NamedTuple):
    """How a convolution is computed, and its gradients: what the kernels of conv2d and the fused operation are told."""

    is_convolution: bool
    g: Any
    t: Any
    x_strides: tuple[int, ...]  # of the input, which is contiguous
    dy_strides: tuple[int, ...]  # of the result's gradient
    strides: tuple[int, ...]  # of the weights
    weight_t: Any
    turned: Any
    input_t: Any  # None for the first layer, whose input needs no gradient
    turned_strides: tuple[int, ...]


class LinearPlan(NamedTuple):
    """The same for a linear layer."""

    is_convolution: bool
    i: int
    o: int
    precision: str
    forward: tuple[int, ...]  # BLOCK_N, BLOCK_O, WARP_SPLITS, BLOCK_I
    backward: tuple[int, ...]  # BLOCK_N, BLOCK_O, BLOCK_I, WARP_SPLITS, BLOCK_K
    is_last: bool  # of the network: without ReLU


class Cut(NamedTuple):
    """How the sums of a layer's weight gradient are split."""

    splits: Any
    length: Any  # of a split: chunks of places for a convolution, rows for a linear layer
    tiles: Any  # of all splits


def plans_of(network: Network, images: Tensor) -> tuple[ConvolutionPlan | LinearPlan, ...]:
    """How each layer is computed: by the rules of its operation, but all with the same number of warps.

    RuntimeError for float64: Triton hands the numbers of SGD's rule on as float32.
    """
    check_float32("Triton", images)
    plans: list[ConvolutionPlan | LinearPlan] = []
    size, dtype = tuple(images.shape[2:]), images.dtype
    for weight, _, padding in network.convolutions:
        g = tiles.conv2d_geometry(weight.shape, size, (1, 1), tuple(padding), (1, 1), 1, pooled=True)
        (part,) = tiles.input_gradients(g)
        dot = tiles.dot_precision(g, dtype, tiles.GATHERING)
        weight_dot, input_dot = (tiles.dot_precision(each, dtype, LOOKING_UP) for each in (g, part.g))
        of_group, o_stride, c_stride, *of_taps = weight_strides(weight, g)
        weight_t = tiles.conv2d_weight_tile(g, dtype, weight_dot, WARPS, False, True, WEIGHT_SUMS)
        input_t = tiles.conv2d_tile(part.g, dtype, input_dot, WARPS, False, True)
        plans.append(
            ConvolutionPlan(
                True, g, tiles.pooled_tile(g, dtype, dot, WARPS, False), contiguous((g.channels, *g.size)), contiguous((g.features, g.out[0] // 2, g.out[1] // 2)), weight_strides(weight, g), weight_t, part.g,
                input_t if plans else None, (of_group, c_stride, o_stride, *of_taps),
            )
        )  # fmt: skip
        size = (g.out[0] // 2, g.out[1] // 2)
    for number, (weight, _) in enumerate(network.linears):
        o, i = weight.shape
        precision = linear.tensor_cores(dtype)
        block_n, block_o, _, block_i, *_ = tiles.linear_tile(dtype, precision, i, o, False, False)
        backward = tiles.linear_backward_tile(dtype, precision, i, o, False, False)
        is_last = number == len(network.linears) - 1
        plans.append(
            LinearPlan(False, i, o, precision or "ieee", (block_n, block_o, 1, block_i), backward[:5], is_last)
        )
    return tuple(plans)


def contiguous(shape: tuple[int, int, int]) -> tuple[int, ...]:
    """The strides of contiguous images (N, *shape)."""
    channels, height, width = shape
    return channels * height * width, height * width, width, 1


@functools.lru_cache(maxsize=256)
def cuts_of(plans: tuple[ConvolutionPlan | LinearPlan, ...], biased: tuple[bool, ...], n: int) -> tuple[Cut, ...]:
    """By layer, for batches of n images."""
    cuts = []
    for plan, with_bias in zip(plans, biased, strict=True):
        if isinstance(plan, ConvolutionPlan):
            cuts.append(Cut(*tiles.conv2d_weight_splits(n, plan.g, plan.weight_t)))
        else:
            _, block_o, block_i, warp_splits, _ = plan.backward
            of_split = cdiv(plan.o, block_o) * tiles.tiles_of_row(plan.i, with_bias, block_i)
            splits, rows = tiles.linear_splits(n, of_split, warp_splits)
            cuts.append(Cut(splits, rows, splits * of_split))
    return tuple(cuts)


def parameters_of(network: Network) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of each layer."""
    layers: list[Any] = [*network.convolutions, *network.linears]
    return [(layer.weight, layer.bias) for layer in layers]
