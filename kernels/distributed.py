"""torch.distributed: whether it is at work, and what this process holds of a tensor that is spread over several."""

from typing import Any

import torch


def in_process_group() -> bool:
    """Whether torch.distributed is at work in this process: tensors may be shards."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def shard(tensor: Any) -> Any:
    """This process's part where FSDP spreads the tensor, else the tensor; gradients and buffers are cut as parameters."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
