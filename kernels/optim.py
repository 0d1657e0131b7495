"""Mirrors torch.optim: SGD with one backend call for all parameters; every other name is torch's own."""

from collections.abc import Callable
from typing import Any

import torch
import torch.optim as _torch

from kernels.backend import chosen
from kernels.distributed import in_process_group, shard
from kernels.mirror import torch_attribute
from kernels.sgd import sgd

__all__ = ["SGD"]


def __getattr__(name: str) -> Any:
    return torch_attribute(_torch, __name__, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_torch)})


class SGD(_torch.SGD):
    """torch.optim.SGD step for step: the same arguments, errors, param_groups and state_dict.

    `foreach` and `fused`, which choose between torch's implementations, change nothing here. A tensor `lr` is read on
    its device. Raises RuntimeError for `differentiable=True` and for sparse gradients.
    """

    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(params, *args, **kwargs)
        if any(group["differentiable"] for group in self.param_groups):
            raise RuntimeError("SGD: differentiable=True is not supported; use torch.optim.SGD for it")
        self._step_supports_amp_scaling = False  # fused=True says it were: GradScaler has to unscale before our step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Updates every parameter that has a gradient; returns what `closure`, run first, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        steady: tuple[list[Any], list[Any], list[Any]] = ([], [], [])  # parameters, gradients, momentum buffers
        first: tuple[list[Any], list[Any], list[Any]] = ([], [], [])  # the same where there was no momentum buffer yet
        for p in group["params"]:
            grad = p.grad
            if grad is None:
                continue
            if grad.is_sparse:
                raise RuntimeError("SGD: expected dense gradients, got a sparse one; use torch.optim.SGD for it")
            lists = steady
            if group["momentum"]:
                state = self.state[p]
                buffer = state.get("momentum_buffer")
                if buffer is None:
                    lists, buffer = first, torch.empty_like(grad)
                    state["momentum_buffer"] = buffer
                lists[2].append(buffer)
            lists[0].append(p)
            lists[1].append(grad)
        for lists in (first, steady):
            if lists[0]:
                self._update(*lists, group, lists is first)

    def _update(
        self, params: list[Any], grads: list[Any], buffers: list[Any], group: dict[str, Any], first: bool
    ) -> None:
        if in_process_group():
            params, grads, buffers = ([shard(tensor) for tensor in tensors] for tensors in (params, grads, buffers))
        lr = group["lr"]
        lr, lr_tensor = (0.0, lr) if isinstance(lr, torch.Tensor) else (lr, None)
        sgd(
            tuple(params),
            tuple(grads),
            tuple(buffers),
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
