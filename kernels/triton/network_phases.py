"""The phases of a whole network: each deals the tiles of an operation out to the programs of a cooperative launch."""

import triton
import triton.language as tl

from kernels.triton import conv2d, linear
from kernels.triton.activations import relu, relu_grad
from kernels.triton.conv2d_relu_max_pool2d import convolve_and_pool
from kernels.triton.sgd import update
from kernels.triton.splits import sum_of_splits


@triton.jit
def copy_phase(images_ptr, order_ptr, batch_ptr, first, n, IMAGE: tl.constexpr, BLOCK_P: tl.constexpr):  # type: ignore[no-untyped-def]
    """batch (n, IMAGE): the images that the order has from number `first` on."""
    TILES: tl.constexpr = (IMAGE + BLOCK_P - 1) // BLOCK_P  # of an image
    for tile in range(tl.program_id(0), n * TILES, tl.num_programs(0)):
        image = tl.cast(tile // TILES, tl.int64)
        offs_p = tile % TILES * BLOCK_P + tl.arange(0, BLOCK_P)
        mask_p = offs_p < IMAGE
        pixels = tl.load(images_ptr + tl.load(order_ptr + first + image) * IMAGE + offs_p, mask_p)
        tl.store(batch_ptr + image * IMAGE + offs_p, pixels, mask_p)


@triton.jit
def convolution_phase(x_ptr, layer, n, P: tl.constexpr):  # type: ignore[no-untyped-def]
    G: tl.constexpr = P.g
    T: tl.constexpr = P.t
    X_STRIDES: tl.constexpr = P.x_strides
    STRIDES: tl.constexpr = P.strides
    PLANE: tl.constexpr = (G.out[0] // T.outputs[0]) * (G.out[1] // T.outputs[1])
    BLOCKS: tl.constexpr = T.blocks[0] * T.blocks[1]
    for number in range(tl.program_id(0), tl.cdiv(n * PLANE, T.block_m) * BLOCKS, tl.num_programs(0)):
        tile = tl.cast(number, tl.int32)
        convolve_and_pool(
            x_ptr, layer.weight, layer.bias, layer.y, layer.positions, n, tile, X_STRIDES, 1, G, T, STRIDES
        )


@triton.jit
def linear_phase(x_ptr, layer, n, P: tl.constexpr):  # type: ignore[no-untyped-def]
    I: tl.constexpr = P.i  # noqa: E741
    O: tl.constexpr = P.o  # noqa: E741
    PHI: tl.constexpr = None if P.is_last else relu
    PRECISION: tl.constexpr = P.precision
    BLOCK_N: tl.constexpr = P.forward[0]
    BLOCK_O: tl.constexpr = P.forward[1]
    WARP_SPLITS: tl.constexpr = P.forward[2]
    BLOCK_I: tl.constexpr = P.forward[3]
    for number in range(tl.program_id(0), tl.cdiv(n, BLOCK_N) * tl.cdiv(O, BLOCK_O), tl.num_programs(0)):
        tile = tl.cast(number, tl.int32)
        linear.forward_tile(
            x_ptr, layer.weight, layer.bias, layer.y, n, tile, (I, 1), (I, 1), 1, (O, 1),
            I, O, PHI, PRECISION, BLOCK_N, BLOCK_O, WARP_SPLITS, BLOCK_I,
        )  # fmt: skip


@triton.jit
def largest(x, offs_c, CLASSES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of each row of x the largest number, and where the first largest value is: NaN where there is one, as torch has it."""
    inside = offs_c < CLASSES
    is_nan = inside & (x != x)
    maximum = tl.max(tl.where(inside & (x == x), x, -float("inf")), 1)
    has_nan = tl.max(is_nan.to(tl.int32), 1)[:, None] > 0
    is_largest = tl.where(has_nan, is_nan, inside & (x == maximum[:, None]))
    return maximum, tl.min(tl.where(is_largest, offs_c, CLASSES), 1)


@triton.jit
def loss_phase(  # type: ignore[no-untyped-def]
    layer, targets_ptr, order_ptr, losses_ptr, correct_ptr, first, n,
    CLASSES: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, LOSS: tl.constexpr,
):  # fmt: skip
    """dscores (n, CLASSES) of the last layer's scores, and of each tile of images its part of the mean loss and how many are classified right.

    The targets are those from number `first` on, in this order.
    """
    offs_c = tl.arange(0, BLOCK_C)[None, :]
    for number in range(tl.program_id(0), tl.cdiv(n, BLOCK_N), tl.num_programs(0)):
        tile = tl.cast(number, tl.int32)
        image = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        mask_n = image < n
        mask = mask_n[:, None] & (offs_c < CLASSES)
        place = image[:, None].to(tl.int64) * CLASSES + offs_c
        scores = tl.load(layer.y + place, mask, other=0)
        number_of = first + image
        if order_ptr is not None:
            number_of = tl.load(order_ptr + number_of, mask_n, other=0)
        maximum, answer = largest(scores, offs_c, CLASSES)
        if LOSS == "mse":
            target = tl.load(targets_ptr + number_of[:, None] * CLASSES + offs_c, mask, other=0)
            _, label = largest(target, offs_c, CLASSES)
            count = (n * CLASSES).to(scores.dtype)
            error = scores - target
            dscores = 2 * error / count
            loss = tl.sum(tl.sum(error * error, 1), 0) / count
        else:
            label = tl.load(targets_ptr + number_of, mask_n, other=0).to(tl.int32)
            count = n.to(scores.dtype)
            shifted = tl.where(offs_c < CLASSES, scores - maximum[:, None], -float("inf"))
            total = tl.sum(tl.exp(shifted), 1)
            of_label = offs_c == label[:, None]
            dscores = (tl.exp(shifted) / total[:, None] - tl.where(of_label, 1.0, 0.0)) / count
            each = tl.log(total) - tl.sum(tl.where(of_label, shifted, 0.0), 1)
            loss = tl.sum(tl.where(mask_n, each, 0.0), 0) / count
        tl.store(layer.dy + place, dscores, mask)
        tl.store(losses_ptr + tile, loss)
        tl.store(correct_ptr + tile, tl.sum(((answer == label) & mask_n).to(tl.int32), 0))


@triton.jit
def linear_gradient_phase(x_ptr, dx_ptr, layer, length, weight_tiles, n, P: tl.constexpr):  # type: ignore[no-untyped-def]
    I: tl.constexpr = P.i  # noqa: E741
    O: tl.constexpr = P.o  # noqa: E741
    PHI_GRAD: tl.constexpr = None if P.is_last else relu_grad
    PRECISION: tl.constexpr = P.precision
    BLOCK_N: tl.constexpr = P.backward[0]
    BLOCK_O: tl.constexpr = P.backward[1]
    BLOCK_I: tl.constexpr = P.backward[2]
    WARP_SPLITS: tl.constexpr = P.backward[3]
    BLOCK_K: tl.constexpr = P.backward[4]
    dbias_ptr = None if layer.bias is None else layer.partials + O * I
    count = weight_tiles
    if dx_ptr is not None:
        count += tl.cdiv(n, BLOCK_N) * tl.cdiv(I, BLOCK_I)
    for number in range(tl.program_id(0), count, tl.num_programs(0)):
        tile = tl.cast(number, tl.int32)
        linear.gradients_tile(
            layer.dy, layer.y, x_ptr, layer.weight, dx_ptr, layer.partials, dbias_ptr, n, length, weight_tiles, tile,
            (O, 1), (O, 1), (I, 1), (I, 1), (I, 1),
            O, I, I, PHI_GRAD, PRECISION, BLOCK_N, BLOCK_O, BLOCK_I, WARP_SPLITS, BLOCK_K,
        )  # fmt: skip


@triton.jit
def convolution_gradient_phase(x_ptr, dx_ptr, layer, length, weight_tiles, n, P: tl.constexpr):  # type: ignore[no-untyped-def]
    G: tl.constexpr = P.g
    WEIGHT_T: tl.constexpr = P.weight_t
    TURNED: tl.constexpr = P.turned
    INPUT_T: tl.constexpr = P.input_t
    X_STRIDES: tl.constexpr = P.x_strides
    DY_STRIDES: tl.constexpr = P.dy_strides
    STRIDES: tl.constexpr = P.turned_strides
    WEIGHTS: tl.constexpr = G.features * G.channels * G.kernel[0] * G.kernel[1]
    dbias_ptr = None if layer.bias is None else layer.partials + WEIGHTS
    count = weight_tiles
    if INPUT_T is not None:
        PLACES: tl.constexpr = (TURNED.out[0] // INPUT_T.outputs[0]) * (TURNED.out[1] // INPUT_T.outputs[1])
        count += tl.cdiv(n * PLACES, INPUT_T.block_m) * (INPUT_T.blocks[0] * INPUT_T.blocks[1])
    for number in range(tl.program_id(0), count, tl.num_programs(0)):
        tile = tl.cast(number, tl.int32)
        conv2d.gradients_tile(
            layer.dy, layer.positions, x_ptr, layer.weight, dx_ptr, layer.partials, dbias_ptr, n, length,
            weight_tiles, tile, DY_STRIDES, X_STRIDES, G, WEIGHT_T, TURNED, INPUT_T, STRIDES,
        )  # fmt: skip


@triton.jit
def gradient_phase(x_ptr, dx_ptr, layer, length, weight_tiles, n, P: tl.constexpr):  # type: ignore[no-untyped-def]
    if P.is_convolution:
        convolution_gradient_phase(x_ptr, dx_ptr, layer, length, weight_tiles, n, P)
    else:
        linear_gradient_phase(x_ptr, dx_ptr, layer, length, weight_tiles, n, P)


@triton.jit
def update_phase(layer, splits, param, step, RULE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    for number in range(tl.program_id(0), tl.cdiv(param.n, BLOCK_E), tl.num_programs(0)):
        tile = tl.cast(number, tl.int32)
        offs_e = tile * BLOCK_E + tl.arange(0, BLOCK_E)
        mask_e = offs_e < param.n
        g = sum_of_splits(layer.partials + param.offset, offs_e, mask_e, splits, layer.elements, BLOCK_S, BLOCK_E)
        rate = param.lr if param.rate is None else tl.load(param.rate + step * param.rate_stride)
        update(
            param.pointer, g, param.buffer, offs_e, mask_e, rate, param.momentum, param.dampening, param.weight_decay,
            RULE.first and step == 0, RULE.nesterov, RULE.maximize,
        )  # fmt: skip


@triton.jit
def sum_of_tiles(part_ptr, tiles, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    acc = tl.zeros([BLOCK], part_ptr.dtype.element_ty)
    for first in range(0, tiles, BLOCK):
        index = first + tl.arange(0, BLOCK)
        acc += tl.load(part_ptr + index, index < tiles, other=0)
    return tl.sum(acc, 0)
