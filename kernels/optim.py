"""Mirrors torch.optim: SGD with one backend call for all parameters."""

from collections.abc import Callable
from typing import Any

import torch

from kernels.backend import chosen
from kernels.sgd import sgd


class SGD(torch.optim.SGD):
    """torch.optim.SGD step for step: the same arguments, errors, param_groups and state_dict.

    `foreach` and `fused`, which choose between torch's implementations, change nothing here. A tensor `lr` is read on
    its device. Raises RuntimeError for `differentiable=True` and for sparse gradients.
    """

    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(params, *args, **kwargs)
        if any(group["differentiable"] for group in self.param_groups):
            raise RuntimeError("SGD: differentiable=True is not supported; use torch.optim.SGD for it")

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
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        if any(p.grad.is_sparse for p in params):
            raise RuntimeError("SGD: expected dense gradients, got a sparse one; use torch.optim.SGD for it")
        if not group["momentum"]:
            self._update(params, [], group, first=False)
            return
        fresh: list[Any] = []
        seen: list[Any] = []
        for p in params:
            (fresh if self.state[p].get("momentum_buffer") is None else seen).append(p)
        for p in fresh:
            self.state[p]["momentum_buffer"] = torch.empty_like(p.grad)
        for some, first in ((fresh, True), (seen, False)):
            if some:
                self._update(some, [self.state[p]["momentum_buffer"] for p in some], group, first)

    def _update(self, params: list[Any], buffers: list[Any], group: dict[str, Any], first: bool) -> None:
        lr = group["lr"]
        lr, lr_tensor = (0.0, lr) if isinstance(lr, torch.Tensor) else (lr, None)
        sgd(
            params,
            [p.grad for p in params],
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
