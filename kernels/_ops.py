"""The namespace of our operators, in the form that builds for the Hugging Face Hub replace by one of each build's own."""

import torch

ops = torch.ops.lenet_kernels


def add_op_namespace_prefix(name: str) -> str:
    """The operator's name as torch.library takes it."""
    return f"{ops.name}::{name}"
