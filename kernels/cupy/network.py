"""Launchers of network_forward.cu and network_step.cu."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.cupy import launch as driver
from kernels.cupy.launch import Structure, addresses, launch, structure
from kernels.cupy.network_plan import (
    BLOCKS,
    IMAGES,
    MOST_SPLITS,
    THREADS,
    ConvolutionShape,
    LinearShape,
    Plan,
    plan,
)
from kernels.cupy.sgd import OPTIONS
from kernels.integration.grid_counter import grid_counter
from kernels.ops.network import Convolution, Linear, Network, Update, check_float32
from kernels.sizes import cdiv


def network_forward(network: Network, images: Tensor) -> Tensor:
    """Scores (N, classes) of images (N, C, H, W), float32."""
    made = plan_of(network, images, training=False)
    scores = images.new_empty(len(images), network.linears[-1].weight.shape[0])
    blocks = most_blocks(images, made)
    at_once = 1 if len(images) <= blocks else IMAGES
    grid = (min(cdiv(len(images), at_once), blocks),)
    arguments = images, scores, len(images), at_once, parameters(network)
    launch(
        images, "network_forward", "network_forward", grid, (THREADS,), *arguments, shared=made.shared, **made.constants
    )
    return scores


def network_step(
    network: Network,
    images: Tensor,
    targets: Tensor,
    loss: str,
    updates: Sequence[Update],
    order: Tensor | None,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """Steps of SGD, each on the next batch_size of the images in `order`; losses (steps) before, correct (steps).

    loss: "mse" with targets (M, classes), or "cross_entropy" with labels (M). Parameters change in place.
    """
    count = len(images) if order is None else len(order)
    steps, batch = cdiv(count, batch_size), min(batch_size, count)
    losses, correct = images.new_empty(steps), images.new_empty(steps, dtype=torch.int64)
    made = plan_of(network, images, training=True)
    sections = batch * made.row, min(batch, MOST_SPLITS) * made.gradients, batch, batch
    scratch = images.new_empty(sum(sections)).split(sections)
    grid = (min(max(batch, made.tiles), most_blocks(images, made)) if steps else 0,)
    rates = [_rate(update, images.device) for update in updates]
    launch(
        images, "network_step", "network_step", grid, (THREADS,),
        images, targets, order, losses, correct, structure(tuple(addresses(scratch))), grid_counter(images),
        count, batch_size, parameters(network), changes(updates, rates),
        shared=made.shared, cooperative=True, CROSS_ENTROPY=int(loss == "cross_entropy"), **made.constants,
    )  # fmt: skip
    return losses, correct


def plan_of(network: Network, images: Tensor, training: bool) -> Plan:
    """The network's layout on the device of the images; RuntimeError where a block lacks the memory, or for float64."""
    check_float32("CuPy", images)
    channels, height, width = images.shape[1:]
    return plan((channels, height, width), *shapes(network), training, driver.limits(images).shared)


def shapes(network: Network) -> tuple[tuple[ConvolutionShape, ...], tuple[LinearShape, ...]]:
    """What a plan has to know of the layers."""
    convolutions = (
        ConvolutionShape(tuple(s.weight.shape), s.bias is not None, s.padding) for s in network.convolutions
    )
    linears = (
        LinearShape(tuple(s.weight.shape), s.bias is not None, s.weight.data_ptr() % 16 == 0) for s in network.linears
    )
    return tuple(convolutions), tuple(linears)


def most_blocks(images: Tensor, made: Plan) -> int:
    """How many blocks the device holds at a time; each takes 1 KB of shared memory beside its own."""
    device = driver.limits(images)
    fitting = device.shared_of_multiprocessor // (made.shared + 1024)
    return device.multiprocessors * max(1, min(BLOCKS, fitting))


def parameters(network: Network) -> Structure:
    """struct Parameters of network.cuh."""
    layers: tuple[Convolution | Linear, ...] = (*network.convolutions, *network.linears)
    return structure(tuple(addresses(p for layer in layers for p in (layer.weight, layer.bias) if p is not None)))


def changes(updates: Sequence[Update], rates: Sequence[Tensor | None]) -> Structure:
    """struct Updates of network_update.cuh."""
    return _changes(
        tuple(addresses(update.momentum_buffer for update in updates)),
        tuple(addresses(rates)),
        tuple(0 if rate is None else rate.dim() for rate in rates),
        tuple((u.lr, u.momentum, u.dampening, u.weight_decay, u.nesterov, u.maximize, u.first) for u in updates),
    )


@functools.lru_cache(maxsize=64)
def _changes(*columns: tuple[Any, ...]) -> Structure:
    names = "momentum_buffer", "rates", "rate_stride", "options"
    dtypes: tuple[Any, ...] = np.int64, np.int64, np.int64, OPTIONS
    made = np.zeros((), [(name, dtype, len(columns[0])) for name, dtype in zip(names, dtypes, strict=True)])
    for name, dtype, column in zip(names, dtypes, columns, strict=True):
        made[name] = np.array(list(column), dtype)
    return made.view(Structure)


def _rate(update: Update, device: torch.device) -> Tensor | None:
    """The rate, where it is a tensor, as the kernel reads it."""
    return None if update.lr_tensor is None else update.lr_tensor.to(device, torch.float32)
