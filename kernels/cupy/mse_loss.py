"""Launchers of mse_loss.cu."""

import torch
from torch import Tensor

from kernels.cupy.elementwise import BLOCK_BYTES, elementwise, layout
from kernels.cupy.launch import launch

MOST_BLOCKS = 1024  # of a sum: a few for each multiprocessor of the largest chips


def mse_loss_forward(input: Tensor, target: Tensor, reduction: str) -> Tensor:
    """The squared errors, their mean or their sum."""
    if reduction == "none":
        return elementwise("mse_loss", "squared_error", torch.empty_like(input), input, target)
    loss = input.new_empty(())
    count = input.numel() if reduction == "mean" else 1
    threads = (256,)
    blocks = min(-(-input.numel() * input.element_size() // (4 * BLOCK_BYTES)) or 1, MOST_BLOCKS)
    places = layout(input.shape, input.stride(), target.stride())
    sums = torch.float64 if input.dtype == torch.float64 else torch.float32
    partials = input.new_empty(blocks, dtype=sums) if blocks > 1 else None
    launch(input, "mse_loss", "sum_squares", (blocks,), threads, input, target, loss, partials, count, places)
    if partials is not None:
        launch(input, "mse_loss", "sum_partials", (1,), threads, partials, loss, blocks, count)
    return loss


def mse_loss_backward(dloss: Tensor, input: Tensor, target: Tensor, reduction: str) -> Tensor:
    """2 (input - target) dloss / n."""
    dinput = torch.empty_like(input)
    if reduction == "none":
        return elementwise("mse_loss", "squared_error_backward", dinput, dloss, input, target)
    count = input.numel() if reduction == "mean" else 1
    return elementwise("mse_loss", "mse_loss_backward", dinput, input, target, scalars=(dloss, count))
