"""A whole network as one kernel in Triton: a cooperative launch whose programs pass through the layers together.

    for each step:
        for each convolution:         y, positions = max_pool2d(relu(conv2d(x)))
        for each linear layer:        y = relu(x weight^T + bias)
        loss, and its gradient by the scores
        for each layer from the last: dweight and dbias of each split, and dx
        for each parameter:           its gradient = the sum of the splits, by which SGD changes it

Each line is a phase: its tiles, which are the operations' own, are dealt out to the programs, and no program begins the next
phase before all are done with this one. What the phases hand on lies in memory, small enough to stay in the L2 cache. A tile
does not depend on the number of programs, so neither does any sum.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from kernels.ops.network import Network, Update, check_float32
from kernels.sizes import cdiv
from kernels.triton import conv2d, linear, tiles
from kernels.triton.activations import relu, relu_grad
from kernels.triton.conv2d import weight_strides
from kernels.triton.conv2d_relu_max_pool2d import convolve_and_pool
from kernels.triton.launch import launch
from kernels.triton.sgd import update
from kernels.triton.splits import sum_of_splits

WARPS = 4  # of a program
PROGRAMS = 2  # on a multiprocessor, whose registers do for them: 2 WARPS 32 threads of 255
ROWS = 32  # of a tile of the loss
WEIGHT_SUMS = 60  # of a lane in a convolution's weight gradient: the loop over steps takes registers as well
BLOCK_S, BLOCK_E = 8, 128  # splits and elements that are added up at a time


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
    forward: tuple[int, ...]  # BLOCK_N, BLOCK_O, BLOCK_I
    backward: tuple[int, ...]  # BLOCK_N, BLOCK_O, BLOCK_I, WARP_SPLITS, BLOCK_K
    is_last: bool  # of the network: without ReLU


class Layer(NamedTuple):
    """A layer's parameters and memory: its result y, the gradient dy of it, and what the splits of a gradient sum up to."""

    weight: Any
    bias: Any
    y: Any
    positions: Any  # of a convolution
    dy: Any
    partials: Any  # (splits, elements): those of the weight, then of the bias
    elements: int


class Cut(NamedTuple):
    """How the sums of a layer's weight gradient are split."""

    splits: Any
    length: Any  # of a split: chunks of places for a convolution, rows for a linear layer
    tiles: Any  # of all splits


class Parameter(NamedTuple):
    """A parameter of n elements, and how a step changes it; its gradient begins at `offset` in its layer's."""

    pointer: Any
    buffer: Any
    rate: Any  # None, or where lr is
    rate_stride: int  # 0 where it serves all steps
    offset: int
    n: int
    lr: float
    momentum: float
    dampening: float
    weight_decay: float


class Rule(NamedTuple):
    """What is known of it when compiling; `first` says that the first step fills the momentum buffer."""

    layer: int
    first: bool
    nesterov: bool
    maximize: bool


@triton.constexpr_function
def item(table, at):  # type: ignore[no-untyped-def]
    """table[at] of a table of constants: what the brackets give may have no strings in it with Triton 3.6."""
    return table[at]


@triton.jit
def wait_for_all(arrived_ptr, phases):  # type: ignore[no-untyped-def]
    """Ends a phase: returns when every program has called it so many times, and all see what the others have stored."""
    tl.debug_barrier()
    tl.atomic_add(arrived_ptr, 1, sem="release")
    target = phases * tl.num_programs(0)
    while tl.atomic_add(arrived_ptr, 0, sem="acquire") < target:
        pass
    tl.debug_barrier()


@triton.jit
def cut_of(cuts_ptr, layer):  # type: ignore[no-untyped-def]
    return tl.load(cuts_ptr + 3 * layer), tl.load(cuts_ptr + 3 * layer + 1), tl.load(cuts_ptr + 3 * layer + 2)


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
    BLOCK_I: tl.constexpr = P.forward[2]
    for number in range(tl.program_id(0), tl.cdiv(n, BLOCK_N) * tl.cdiv(O, BLOCK_O), tl.num_programs(0)):
        tile = tl.cast(number, tl.int32)
        linear.forward_tile(
            x_ptr, layer.weight, layer.bias, layer.y, n, tile, (I, 1), (I, 1), 1, (O, 1),
            I, O, PHI, PRECISION, BLOCK_N, BLOCK_O, BLOCK_I,
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
    layer, targets_ptr, losses_ptr, correct_ptr, n,
    CLASSES: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, LOSS: tl.constexpr,
):  # fmt: skip
    """dscores (n, CLASSES) of the last layer's scores, and of each tile of images its part of the mean loss and how many are classified right."""
    offs_c = tl.arange(0, BLOCK_C)[None, :]
    for number in range(tl.program_id(0), tl.cdiv(n, BLOCK_N), tl.num_programs(0)):
        tile = tl.cast(number, tl.int32)
        image = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        mask_n = image < n
        mask = mask_n[:, None] & (offs_c < CLASSES)
        place = image[:, None].to(tl.int64) * CLASSES + offs_c
        scores = tl.load(layer.y + place, mask, other=0)
        maximum, answer = largest(scores, offs_c, CLASSES)
        if LOSS == "mse":
            target = tl.load(targets_ptr + place, mask, other=0)
            _, label = largest(target, offs_c, CLASSES)
            count = (n * CLASSES).to(scores.dtype)
            error = scores - target
            dscores = 2 * error / count
            loss = tl.sum(tl.sum(error * error, 1), 0) / count
        else:
            label = tl.load(targets_ptr + image, mask_n, other=0).to(tl.int32)
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


@triton.jit
def forward_phases(images_ptr, layers, arrived_ptr, phases, n, PLANS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The layers in order, for n images: each takes from memory what the one before has left there."""
    for at in tl.static_range(len(PLANS)):
        x_ptr = images_ptr if at == 0 else layers[at - 1].y
        if item(PLANS, at).is_convolution:
            convolution_phase(x_ptr, layers[at], n, item(PLANS, at))
        else:
            linear_phase(x_ptr, layers[at], n, item(PLANS, at))
        wait_for_all(arrived_ptr, phases + at + 1)


@triton.jit(do_not_specialize=["n"])
def network_forward_kernel(images_ptr, layers, arrived_ptr, n, PLANS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The last layer's y, the scores (n, classes), of images (n, C, H, W)."""
    forward_phases(images_ptr, layers, arrived_ptr, 0, n, PLANS)


@triton.jit(do_not_specialize=["total", "batch", "steps"])
def network_step_kernel(  # type: ignore[no-untyped-def]
    images_ptr, targets_ptr, losses_ptr, correct_ptr, layers, cuts_ptr, parameters, loss_parts_ptr, correct_parts_ptr, arrived_ptr,
    total, batch, steps, PLANS: tl.constexpr, RULES: tl.constexpr, IMAGE: tl.constexpr, LOSS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """So many steps on images (total, IMAGE elements each) and targets, `batch` of them each; the last may have fewer."""
    LAYERS: tl.constexpr = len(PLANS)
    CLASSES: tl.constexpr = item(PLANS, LAYERS - 1).o
    TARGET: tl.constexpr = CLASSES if LOSS == "mse" else 1  # elements
    for step in range(steps):
        phases = step * (2 * LAYERS + 2)
        first = tl.cast(step, tl.int64) * batch
        n = tl.minimum(batch, total - first).to(tl.int32)
        images = images_ptr + first * IMAGE
        forward_phases(images, layers, arrived_ptr, phases, n, PLANS)
        phases += LAYERS + 1
        loss_phase(
            layers[LAYERS - 1], targets_ptr + first * TARGET, loss_parts_ptr, correct_parts_ptr, n,
            CLASSES, BLOCK_C, BLOCK_N, LOSS,
        )  # fmt: skip
        wait_for_all(arrived_ptr, phases)
        for behind in tl.static_range(LAYERS):
            x_ptr = images if behind == LAYERS - 1 else layers[LAYERS - 2 - behind].y
            dx_ptr = None if behind == LAYERS - 1 else layers[LAYERS - 2 - behind].dy
            _, length, weight_tiles = cut_of(cuts_ptr, LAYERS - 1 - behind)
            gradient_phase(
                x_ptr, dx_ptr, layers[LAYERS - 1 - behind], length, weight_tiles, n, item(PLANS, LAYERS - 1 - behind)
            )
            wait_for_all(arrived_ptr, phases + behind + 1)
        for i in tl.static_range(len(RULES)):
            splits, _, _ = cut_of(cuts_ptr, item(RULES, i).layer)
            update_phase(layers[item(RULES, i).layer], splits, parameters[i], step, item(RULES, i), BLOCK_S, BLOCK_E)
        if tl.program_id(0) == 0:
            loss_tiles = tl.cdiv(n, BLOCK_N)
            tl.store(losses_ptr + step, sum_of_tiles(loss_parts_ptr, loss_tiles, BLOCK_E))
            tl.store(correct_ptr + step, sum_of_tiles(correct_parts_ptr, loss_tiles, BLOCK_E))
        wait_for_all(arrived_ptr, phases + LAYERS + 1)


def network_forward(network: Network, images: Tensor) -> Tensor:
    """Scores (N, classes) of images (N, C, H, W)."""
    n = len(images)
    plans = plans_of(network, images)
    layers = layers_of(network, plans, images, n, ())
    if n:
        start(network_forward_kernel, images, images.contiguous(), layers, arrived(images), n, plans)
    return layers[-1].y


def network_step(
    network: Network,
    images: Tensor,
    targets: Tensor,
    loss: str,
    updates: Sequence[Update],
    order: Tensor | None,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """(losses, correct) (steps), of a step for each `batch_size` of the images, taken in this order."""
    if order is not None:
        images, targets = images[order], targets[order]
    total, steps = len(images), cdiv(len(images), batch_size)
    batch, classes = min(batch_size, total), len(network.linears[-1].weight)
    plans = plans_of(network, images)
    cuts = cuts_of(plans, tuple(bias is not None for _, bias in parameters_of(network)), batch)
    layers = layers_of(network, plans, images, batch, cuts)
    parameters, rules = rules_of(layers, updates)
    losses, correct = images.new_empty(steps), images.new_empty(steps, dtype=torch.int64)
    loss_parts, correct_parts = (
        images.new_empty(cdiv(batch, ROWS), dtype=each) for each in (images.dtype, torch.int32)
    )
    if steps:
        start(
            network_step_kernel, images, images.contiguous(), targets.contiguous(), losses, correct, layers, on_device(cuts, images.device), parameters,
            loss_parts, correct_parts, arrived(images), total, batch, steps,
            plans, rules, images[0].numel(), loss, tiles.power_of_2(classes, 2, 1 << 16), ROWS, BLOCK_S, BLOCK_E,
        )  # fmt: skip
    return losses, correct


def rules_of(layers: Sequence[Layer], updates: Sequence[Update]) -> tuple[tuple[Parameter, ...], tuple[Rule, ...]]:
    """What the kernel is told of each parameter, weights before biases, layer by layer."""
    parameters, rules, left = [], [], iter(updates)
    for number, layer in enumerate(layers):
        offset = 0
        for param in (layer.weight, layer.bias):
            if param is not None:
                u = next(left)
                stride = 0 if u.lr_tensor is None or u.lr_tensor.dim() == 0 else 1
                numbers = map(float, (u.lr, u.momentum, u.dampening, u.weight_decay))
                parameters.append(
                    Parameter(param, u.momentum_buffer, u.lr_tensor, stride, offset, param.numel(), *numbers)
                )
                rules.append(Rule(number, u.first, u.nesterov, u.maximize))
                offset += param.numel()
    return tuple(parameters), tuple(rules)


def plans_of(network: Network, images: Tensor) -> tuple[ConvolutionPlan | LinearPlan, ...]:
    """How each layer is computed: by the rules of its operation, but all with the same number of warps.

    RuntimeError for float64: Triton hands the numbers of SGD's rule on as float32.
    """
    check_float32("Triton", images)
    plans: list[ConvolutionPlan | LinearPlan] = []
    size, dtype = tuple(images.shape[2:]), images.dtype
    for weight, _, padding in network.convolutions:
        g = tiles.conv2d_geometry(weight.shape, size, (1, 1), tuple(padding), (1, 1), 1, pooled=True)
        dot, weight_dot = tiles.dot_precision(g, dtype), tiles.dot_precision(g, dtype, tiles.WEIGHT_DOT_MAPS)
        turned = g.turned()
        of_group, o_stride, c_stride, *of_taps = weight_strides(weight, g)
        weight_t = tiles.conv2d_weight_tile(g, dtype, weight_dot, WARPS, False, True, WEIGHT_SUMS)
        input_t = tiles.conv2d_tile(turned, dtype, tiles.dot_precision(turned, dtype), WARPS, False, True)
        plans.append(
            ConvolutionPlan(
                True, g, tiles.pooled_tile(g, dtype, dot, WARPS, False), contiguous((g.channels, *g.size)), contiguous((g.features, g.out[0] // 2, g.out[1] // 2)), weight_strides(weight, g), weight_t, turned,
                input_t if plans else None, (of_group, c_stride, o_stride, *of_taps),
            )
        )  # fmt: skip
        size = (g.out[0] // 2, g.out[1] // 2)
    for number, (weight, _) in enumerate(network.linears):
        o, i = weight.shape
        precision = linear.tensor_cores(dtype)
        forward, backward = tiles.linear_tile(dtype, precision, o), tiles.linear_backward_tile(dtype, precision, o, i)
        is_last = number == len(network.linears) - 1
        plans.append(LinearPlan(False, i, o, precision or "ieee", forward[:3], backward[:5], is_last))
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
            of_split = cdiv(plan.o, block_o) * cdiv(plan.i + with_bias, block_i)
            splits, rows = tiles.linear_splits(n, of_split, warp_splits)
            cuts.append(Cut(splits, rows, splits * of_split))
    return tuple(cuts)


@functools.lru_cache(maxsize=256)
def on_device(cuts: tuple[Cut, ...], device: torch.device) -> Tensor:
    """The cuts as (layers, 3) int32: what a batch decides, Triton would compile anew if it were in a tuple of numbers."""
    return torch.tensor(cuts, dtype=torch.int32, device=device)


def layers_of(
    network: Network, plans: Sequence[ConvolutionPlan | LinearPlan], like: Tensor, n: int, cuts: Sequence[Cut]
) -> tuple[Layer, ...]:
    """By layer, the memory for n images; without cuts only what the forward pass needs."""
    layers = []
    for number, (plan, (weight, bias)) in enumerate(zip(plans, parameters_of(network), strict=True)):
        positions = dy = partials = None
        if isinstance(plan, ConvolutionPlan):
            y = like.new_empty((n, len(weight), plan.g.out[0] // 2, plan.g.out[1] // 2))
            positions = torch.empty_like(y, dtype=torch.uint8)
        else:
            y = like.new_empty((n, plan.o))
        elements = weight.numel() + (0 if bias is None else bias.numel())
        if cuts:
            dy, partials = torch.empty_like(y), like.new_empty(cuts[number].splits * elements)
        layers.append(Layer(weight, bias, y, positions, dy, partials, elements))
    return tuple(layers)


def parameters_of(network: Network) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of each layer."""
    layers: list[Any] = [*network.convolutions, *network.linears]
    return [(layer.weight, layer.bias) for layer in layers]


def arrived(images: Tensor) -> Tensor:
    """The counter of `wait_for_all`."""
    return torch.zeros(1, dtype=torch.int32, device=images.device)


def start(kernel: Any, like: Tensor, *arguments: Any) -> None:
    launch(kernel, programs(like), *arguments, num_warps=WARPS, num_stages=1, launch_cooperative_grid=True)


def programs(like: Tensor) -> int:
    """As many as are sure to run side by side."""
    if knobs.runtime.interpret:
        return 1  # which runs them one after the other
    return PROGRAMS * (torch.cuda.get_device_properties(like.device).multi_processor_count if like.is_cuda else 1)
