"""Mirrors torch.optim: SGD with one backend call for all parameters; every other name is torch's own."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.optim as _torch
from torch.autograd import profiler
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.optim.sgd import sgd as torch_sgd

from kernels.backend import chosen
from kernels.integration.distributed import in_process_group, shard
from kernels.integration.mirror import mirror_submodules, torch_attribute
from kernels.ops.sgd import sgd

__all__ = ["SGD"]

Tensors = tuple[Any, ...]
TORCH_OPTIONS = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")

mirror_submodules(_torch, __name__, ("lr_scheduler", "swa_utils"))


def __getattr__(name: str) -> Any:
    return torch_attribute(_torch, __name__, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch)})


class SGD(_torch.SGD):
    """torch.optim.SGD step for step: the same arguments, errors, param_groups and state_dict.

    `foreach` and `fused`, which choose between torch's implementations, change nothing here. A tensor `lr` is read on
    its device. Where steps are differentiable, and for groups with a sparse gradient, torch's own functions run.
    """

    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(params, *args, **kwargs)
        self._step_supports_amp_scaling = False  # fused=True says it were: GradScaler has to unscale before our step

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients, or zeroes them."""
        if not set_to_none or profiler._is_profiler_enabled:  # which waits for torch's mark
            return super().zero_grad(set_to_none)
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Updates every parameter that has a gradient; returns what `closure`, run first, returned."""
        if self._is_watched():
            return self._watched_step() if closure is None else self._watched_step(closure)
        return self._step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # so that torch does not wrap it: we take the wrapper only where it is needed

    def _is_watched(self) -> bool:
        """Whether there are hooks to call, or a profiler that waits for torch's mark."""
        return bool(
            profiler._is_profiler_enabled
            or self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
        )

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        differentiable = self.defaults["differentiable"]
        with torch.set_grad_enabled(differentiable):
            for group in self.param_groups:
                if differentiable or not self._step_group(group):
                    self._step_group_as_torch(group)
        return loss

    _watched_step = _torch.Optimizer.profile_hook_step(_step)

    def _step_group_as_torch(self, group: dict[str, Any]) -> None:
        params: list[Any] = []
        grads: list[Any] = []
        buffers: list[Any] = []
        has_sparse_grad = self._init_group(group, params, grads, buffers)
        options = {name: group[name] for name in TORCH_OPTIONS}
        torch_sgd(params, grads, buffers, has_sparse_grad=has_sparse_grad, foreach=False, fused=False, **options)
        for p, buffer in zip(params, buffers, strict=False):  # without momentum there are none
            self.state[p]["momentum_buffer"] = buffer

    def _step_group(self, group: dict[str, Any]) -> bool:
        """False, with nothing done, where a gradient is sparse."""
        momentum, state = group["momentum"], self.state
        # parameter, gradient, momentum buffer, by device and whether the buffer is still to be made
        alike: defaultdict[Any, list[tuple[Any, Any, Any]]] = defaultdict(list)
        for p in group["params"]:
            grad = p.grad
            if grad is None:
                continue
            if grad.is_sparse:
                return False
            buffer = state[p].get("momentum_buffer") if momentum else None
            alike[p.device, buffer is None].append((p, grad, buffer))
        for (_, missing), rows in alike.items():
            params, grads, buffers = zip(*rows, strict=True)
            first = bool(momentum) and missing
            if first:
                buffers = tuple(map(torch.empty_like, grads))
                for p, buffer in zip(params, buffers, strict=True):
                    state[p]["momentum_buffer"] = buffer
            self._update(params, grads, buffers if momentum else (), group, first)
        return True

    def _update(self, params: Tensors, grads: Tensors, buffers: Tensors, group: dict[str, Any], first: bool) -> None:
        if in_process_group():
            params, grads, buffers = (tuple(map(shard, tensors)) for tensors in (params, grads, buffers))
        lr = group["lr"]
        lr, lr_tensor = (0.0, lr) if isinstance(lr, torch.Tensor) else (lr, None)
        sgd(
            params,
            grads,
            buffers,
            lr,
            lr_tensor,
            group["momentum"],
            group["dampening"],
            float(group["weight_decay"]),
            group["nesterov"],
            group["maximize"],
            first,
            chosen(),
        )
