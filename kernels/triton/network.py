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
from triton.runtime import driver

from kernels.integration.grid_counter import grid_counter
from kernels.ops.network import Network, Update
from kernels.sizes import cdiv
from kernels.triton import tiles
from kernels.triton.launch import launch
from kernels.triton.network_phases import (
    convolution_phase,
    copy_phase,
    gradient_phase,
    linear_phase,
    loss_phase,
    sum_of_tiles,
    update_phase,
)
from kernels.triton.network_plan import WARPS, ConvolutionPlan, Cut, LinearPlan, cuts_of, parameters_of, plans_of

PROGRAMS = 2  # on a multiprocessor, whose registers do for them: 2 WARPS 32 threads of REGISTERS
REGISTERS = 255  # of a thread, which can have no more
ROWS = 32  # of a tile of the loss
BLOCK_S, BLOCK_E = 8, 128  # splits and elements that are added up at a time
BLOCK_P = 1024  # pixels that are copied at a time
TURN = tl.constexpr(1 << 31)  # the counter's bit that says how often all have come, odd or even


class Layer(NamedTuple):
    """A layer's parameters and memory: its result y, the gradient dy of it, and what the splits of a gradient sum up to."""

    weight: Any
    bias: Any
    y: Any
    positions: Any  # of a convolution's maxima, which its gradients ask for
    dy: Any
    partials: Any  # (splits, elements): those of the weight, then of the bias
    elements: int


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


def item(table, at):  # type: ignore[no-untyped-def]
    """table[at] of a table of constants: what the brackets give may have no strings in it with Triton 3.6."""
    return table[at]


if not knobs.runtime.interpret:  # which with Triton 3.6 would hand over plain tuples in the place of those with names
    item = triton.constexpr_function(item)


@triton.jit
def wait_for_all(counter_ptr):  # type: ignore[no-untyped-def]
    """Ends a phase: returns when every program is here, and all see what the others have stored.

    What the programs add is TURN together, so the lower bits are zero again for the next time, and for the next launch.
    """
    counter_ptr = counter_ptr.to(tl.pointer_type(tl.uint32))
    share = tl.where(tl.program_id(0) == 0, TURN - (tl.num_programs(0) - 1).to(tl.uint32), 1)
    tl.debug_barrier()
    before = tl.atomic_add(counter_ptr, share, sem="release")
    while (tl.atomic_add(counter_ptr, 0, sem="acquire") ^ before) < TURN:
        pass
    tl.debug_barrier()


@triton.jit
def cut_of(cuts_ptr, layer):  # type: ignore[no-untyped-def]
    return tl.load(cuts_ptr + 3 * layer), tl.load(cuts_ptr + 3 * layer + 1), tl.load(cuts_ptr + 3 * layer + 2)


@triton.jit
def layer_phase(x_ptr, layer, n, P: tl.constexpr):  # type: ignore[no-untyped-def]
    if P.is_convolution:
        convolution_phase(x_ptr, layer, n, P)
    else:
        linear_phase(x_ptr, layer, n, P)


@triton.jit(do_not_specialize=["n"])
def network_forward_kernel(images_ptr, layers, counter_ptr, n, PLANS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The last layer's y, the scores (n, classes), of images (n, C, H, W)."""
    layer_phase(images_ptr, layers[0], n, item(PLANS, 0))
    for at in tl.static_range(1, len(PLANS)):
        wait_for_all(counter_ptr)
        layer_phase(layers[at - 1].y, layers[at], n, item(PLANS, at))


@triton.jit(do_not_specialize=["total", "batch", "steps"])
def network_step_kernel(  # type: ignore[no-untyped-def]
    images_ptr, targets_ptr, order_ptr, batch_ptr, losses_ptr, correct_ptr, layers, cuts_ptr, parameters,
    loss_parts_ptr, correct_parts_ptr, counter_ptr,
    total, batch, steps, PLANS: tl.constexpr, RULES: tl.constexpr, IMAGE: tl.constexpr, LOSS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """So many steps on `batch` of the images (IMAGE elements each) and targets each, the last on what is left of `total`.

    With an order (total) those come in it, and a batch of images is put together at batch_ptr during the step before.
    """
    LAYERS: tl.constexpr = len(PLANS)
    CLASSES: tl.constexpr = item(PLANS, LAYERS - 1).o
    if order_ptr is not None:
        copy_phase(images_ptr, order_ptr, batch_ptr, 0, tl.minimum(batch, total), IMAGE, BLOCK_P)
        wait_for_all(counter_ptr)
    for step in tl.range(steps, disable_licm=True):  # else the addresses of all phases lie in registers throughout
        first = tl.cast(step, tl.int64) * batch
        n = tl.minimum(batch, total - first).to(tl.int32)
        images = images_ptr + first * IMAGE if order_ptr is None else batch_ptr
        for at in tl.static_range(LAYERS):
            layer_phase(images if at == 0 else layers[at - 1].y, layers[at], n, item(PLANS, at))
            wait_for_all(counter_ptr)
        loss_phase(
            layers[LAYERS - 1], targets_ptr, order_ptr, loss_parts_ptr, correct_parts_ptr, first, n,
            CLASSES, BLOCK_C, BLOCK_N, LOSS,
        )  # fmt: skip
        wait_for_all(counter_ptr)
        for behind in tl.static_range(LAYERS):
            x_ptr = images if behind == LAYERS - 1 else layers[LAYERS - 2 - behind].y
            dx_ptr = None if behind == LAYERS - 1 else layers[LAYERS - 2 - behind].dy
            _, length, weight_tiles = cut_of(cuts_ptr, LAYERS - 1 - behind)
            gradient_phase(
                x_ptr, dx_ptr, layers[LAYERS - 1 - behind], length, weight_tiles, n, item(PLANS, LAYERS - 1 - behind)
            )
            wait_for_all(counter_ptr)
        for i in tl.static_range(len(RULES)):
            splits, _, _ = cut_of(cuts_ptr, item(RULES, i).layer)
            update_phase(layers[item(RULES, i).layer], splits, parameters[i], step, item(RULES, i), BLOCK_S, BLOCK_E)
        if tl.program_id(0) == 0:
            loss_tiles = tl.cdiv(n, BLOCK_N)
            tl.store(losses_ptr + step, sum_of_tiles(loss_parts_ptr, loss_tiles, BLOCK_E))
            tl.store(correct_ptr + step, sum_of_tiles(correct_parts_ptr, loss_tiles, BLOCK_E))
        if step + 1 < steps:
            if order_ptr is not None:
                first += batch
                copy_phase(images_ptr, order_ptr, batch_ptr, first, tl.minimum(batch, total - first), IMAGE, BLOCK_P)
            wait_for_all(counter_ptr)


def network_forward(network: Network, images: Tensor) -> Tensor:
    """Scores (N, classes) of images (N, C, H, W)."""
    n = len(images)
    plans = plans_of(network, images)
    layers = layers_of(network, plans, images, n, ())
    if n:
        start(network_forward_kernel, images, images.contiguous(), layers, grid_counter(images), n, plans)
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
    total = len(images) if order is None else len(order)
    steps, batch, classes = cdiv(total, batch_size), min(batch_size, total), len(network.linears[-1].weight)
    plans = plans_of(network, images)
    cuts = cuts_of(plans, tuple(bias is not None for _, bias in parameters_of(network)), batch)
    layers = layers_of(network, plans, images, batch, cuts)
    parameters, rules = rules_of(layers, updates)
    losses, correct = images.new_empty(steps), images.new_empty(steps, dtype=torch.int64)
    loss_parts, correct_parts = (
        images.new_empty(cdiv(batch, ROWS), dtype=each) for each in (images.dtype, torch.int32)
    )
    in_order = (None, None) if order is None else (order, images.new_empty((batch, *images.shape[1:])))
    if steps:
        start(
            network_step_kernel, images, images.contiguous(), targets.contiguous(), *in_order, losses, correct, layers,
            on_device(cuts, images.device), parameters, loss_parts, correct_parts, grid_counter(images), total, batch, steps,
            plans, rules, images[0].numel(), loss, tiles.power_of_2(classes, 2, 1 << 16), ROWS, BLOCK_S, BLOCK_E, BLOCK_P,
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
            positions = torch.empty_like(y, dtype=torch.uint8) if cuts else None
        else:
            y = like.new_empty((n, plan.o))
        elements = weight.numel() + (0 if bias is None else bias.numel())
        if cuts:
            dy, partials = torch.empty_like(y), like.new_empty(cuts[number].splits * elements)
        layers.append(Layer(weight, bias, y, positions, dy, partials, elements))
    return tuple(layers)


def start(kernel: Any, like: Tensor, *arguments: Any) -> None:
    launch(
        kernel, programs(like), *arguments, num_warps=WARPS, num_stages=1, launch_cooperative_grid=True, **registers()
    )


def registers() -> dict[str, int]:
    """The option by which NVIDIA's compiler gives a thread what it needs: it would rather spill and have a third block."""
    if knobs.runtime.interpret or driver.active.get_current_target().backend != "cuda":
        return {}
    return {"maxnreg": REGISTERS}


def programs(like: Tensor) -> int:
    """As many as are sure to run side by side."""
    if knobs.runtime.interpret:
        return 1  # which runs them one after the other
    return PROGRAMS * (torch.cuda.get_device_properties(like.device).multi_processor_count if like.is_cuda else 1)
