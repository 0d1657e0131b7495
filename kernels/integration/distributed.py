"""torch.distributed: whether it is at work, and what this process holds of a tensor that is spread over several."""

from typing import Any

import torch

if torch.distributed.is_available():
    from torch.distributed import is_initialized as in_process_group  # tensors may be shards
else:

    def in_process_group() -> bool:
        """Whether torch.distributed is at work in this process: not where torch was built without it."""
        return False


def shard(tensor: Any) -> Any:
    """This process's part where FSDP spreads the tensor, else the tensor; gradients and buffers are cut as parameters."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
