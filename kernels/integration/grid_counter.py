"""What the blocks of a cooperative launch count themselves with while they wait for each other."""

import functools

import torch
from torch import Tensor


def grid_counter(like: Tensor) -> Tensor:
    """The counter of torch's current stream, () int32: its low 31 bits are zero, as every launch leaves them.

    A captured graph has its own, which it zeroes itself: it may run beside the stream's later launches. On the CPU, where
    simulators run a kernel and may stop it half-way, every launch has its own; a GPU that stops one takes no other.
    """
    if not like.is_cuda or torch.cuda.is_current_stream_capturing():
        return like.new_zeros((), dtype=torch.int32)
    return _grid_counter(like.device, torch.cuda.current_stream(like.device).cuda_stream)


@functools.cache
def _grid_counter(device: torch.device, stream: int) -> Tensor:
    return torch.zeros((), dtype=torch.int32, device=device)
