"""Whether a module's call does anything but its forward: hooks of its own, hooks of all modules, another forward."""

import torch.nn.modules.module as hooks_of_all
from torch.nn import Module

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
HOOKS_OF_ALL = tuple(f"_global{hooks}" for hooks in HOOKS)


def has_hooks(module: Module) -> bool:
    """Whether hooks of the module's own wait for its call or its gradient."""
    return any(getattr(module, hooks) for hooks in HOOKS)


def all_have_hooks() -> bool:
    """Whether there are hooks of all modules."""
    return any(getattr(hooks_of_all, hooks) for hooks in HOOKS_OF_ALL)


def has_own_forward(module: Module) -> bool:
    """Whether forward was replaced on the instance."""
    return "forward" in module.__dict__
