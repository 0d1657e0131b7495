"""A network as one call: FusedStep takes steps of training, FusedForward computes scores.

For networks [Conv2d -> ReLU -> MaxPool2d(2)]* -> Flatten -> [Linear -> ReLU]* -> Linear.
"""

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, chain
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from kernels import optim
from kernels.backend import AUTOMATIC, chosen, load
from kernels.integration.layers import Layers, layers_of
from kernels.ops.arguments import check_tensors, whole
from kernels.ops.network import Network, Update, in_lines
from kernels.sizes import cdiv

LOSSES = ("mse", "cross_entropy")
Settings = tuple[float, float, float, bool, bool]  # of a group but for its rate, in the order of an Update


class FusedForward:
    """The forward pass of a model as one call, which records nothing for autograd.

        scores = kernels.FusedForward(model)(images)

    The model is an nn.Sequential of the form above, or has a method `as_sequential` that returns the nn.Sequential whose
    forward is its own; float32, with NumPy also float64. Raises TypeError for a model of another form, ValueError for a
    setting that a layer may not have, RuntimeError for parameters that do not go together.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._layers = layers_of(model, "FusedForward")
        network = self._layers.network()
        backend_for(chosen(), network.linears[0].weight.device.type)

    def __call__(self, images: Tensor) -> Tensor:
        """Scores (N, classes) of images (N, C, H, W). Raises TypeError and RuntimeError for other images."""
        network = self._layers.network()
        check_images(self._layers, network, images)
        with torch.no_grad(), torch.cuda.device_of(images):
            return backend_for(chosen(), images.device.type).network_forward(network, images.contiguous())


class FusedStep:
    """A step of training as one call: forward, loss, backward and the update of every parameter.

        step = kernels.FusedStep(model, loss="mse", optimizer=optimizer)
        loss = step(images, targets)
        losses = step.run(images, targets, batch_size=64, order=order)

    The model is as for FusedForward. The loss is "mse", the mean over all elements, with targets (N, classes), or
    "cross_entropy", the mean over the images, with labels (N) int64 from 0 to classes - 1. The optimizer is an SGD,
    torch's or ours, that has every parameter: its settings are read at each call, its momentum buffers are those of its
    own steps, so that both kinds of steps may take turns. `p.grad` is neither read nor written. After a call `correct`
    is how many of the images, step by step, had their largest score at the target's largest value, or at the label.

    Raises TypeError for a model of another form and for another optimizer, ValueError for a setting that a layer may not
    have, for an unknown loss and for parameters that the optimizer lacks, RuntimeError for parameters that do not go
    together.
    """

    correct: Tensor  # int64, () or (steps)

    def __init__(self, model: torch.nn.Module, loss: str = "mse", *, optimizer: torch.optim.Optimizer) -> None:
        self._layers = layers_of(model, "FusedStep")
        if loss not in LOSSES:
            raise ValueError(f"FusedStep: expected loss to be one of {', '.join(LOSSES)}, got {loss!r}")
        if type(optimizer) not in (torch.optim.SGD, optim.SGD):
            raise TypeError(
                f"FusedStep: expected optimizer to be kernels.optim.SGD or torch.optim.SGD, got"
                f" {type(optimizer).__name__}"
            )
        if optimizer.defaults["differentiable"]:
            raise ValueError("FusedStep: expected optimizer not to be differentiable")
        self._loss, self._optimizer = loss, optimizer
        network = self._layers.network()
        self._groups()
        backend_for(chosen(), network.linears[0].weight.device.type)

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Takes a step on images (N, C, H, W); the loss before it, ()."""
        check_tensors("FusedStep", images=images, targets=targets)
        if images.shape[:1] == (0,):
            raise RuntimeError(f"FusedStep: expected at least one image, got images of shape {tuple(images.shape)}")
        losses = self.run(images, targets, batch_size=max(images.shape[:1], default=1))
        self.correct = self.correct[0]
        return losses[0]

    def run(
        self,
        images: Tensor,
        targets: Tensor,
        batch_size: int,
        order: Tensor | None = None,
        scheduler: LRScheduler | None = None,
    ) -> Tensor:
        """Takes steps on batches of the images, one after the other or as the indices `order` (int64) have them.

        The last batch may be smaller. `scheduler` takes a step after each step. Returns the losses (steps).
        Raises TypeError, ValueError, IndexError and RuntimeError for other arguments.
        """
        network = self._layers.network()
        check_images(self._layers, network, images)
        self._check_targets(network, images, targets)
        if order is not None:
            check_order(images, order)
            order = order.contiguous()
        if (batch_size := whole("FusedStep", "batch_size", batch_size)) < 1:
            raise ValueError(f"FusedStep: expected batch_size to be at least 1, got {batch_size}")
        if scheduler is not None and not isinstance(scheduler, LRScheduler):
            raise TypeError(f"FusedStep: expected scheduler to be an LRScheduler, got {type(scheduler).__name__}")
        take = backend_for(chosen(), images.device.type).network_step
        images, targets = images.contiguous(), targets.detach().contiguous()
        count, done = (images if order is None else order).shape[0], 0  # quicker than len of a tensor
        taken: list[tuple[Tensor, Tensor]] = []
        while done < count:
            with self._step_hooks() as hooked, torch.no_grad(), torch.cuda.device_of(images):
                updates, steps = self._updates(1 if hooked else cdiv(count - done, batch_size), scheduler)
                end = min(done + steps * batch_size, count)
                if order is None and end - done < count:
                    order = torch.arange(count, device=images.device)
                indices = None if order is None else order[done:end]
                taken.append(take(network, images, targets, self._loss, updates, indices, batch_size))
                self._notice(updates)
            done = end
        if not taken:
            taken = [(images.new_empty(0), torch.empty(0, dtype=torch.int64, device=images.device))]
        losses, self.correct = taken[0] if len(taken) == 1 else (torch.cat(each) for each in zip(*taken, strict=True))
        return losses

    def _check_targets(self, network: Network, images: Tensor, targets: Any) -> None:
        check_dense("FusedStep", targets=targets)
        mse, classes = self._loss == "mse", len(network.linears[-1].weight)
        dtype = images.dtype if mse else torch.int64
        if targets.dtype != dtype or targets.device != images.device:
            raise RuntimeError(
                f"FusedStep: expected targets of {self._loss} to be {dtype} on {images.device}, got {targets.dtype} on"
                f" {targets.device}"
            )
        shape = (len(images), classes) if mse else (len(images),)
        if targets.shape != shape:
            error = RuntimeError if mse else ValueError
            raise error(
                f"FusedStep: expected targets of {self._loss} to have shape {shape}, got {tuple(targets.shape)}"
            )

    def _groups(self) -> list[tuple[Tensor, int]]:
        """Each parameter in the order of the layers, with the number of the optimizer's group that has it."""
        group_of = {id(p): i for i, group in enumerate(self._optimizer.param_groups) for p in group["params"]}
        parameters = []
        for layer in (*self._layers.convolutions, *self._layers.linears):
            for parameter in layer.parameters():
                if parameter is None:
                    continue
                group = group_of.get(id(parameter))  # a tensor's own hash takes longer
                if group is None:
                    raise ValueError(f"FusedStep: expected optimizer to have the parameters of layer {layer.name!r}")
                if not parameter.requires_grad:
                    raise ValueError(f"FusedStep: expected the parameters of layer {layer.name!r} to require grad")
                parameters.append((parameter, group))
        return parameters

    def _updates(self, most: int, scheduler: LRScheduler | None) -> tuple[list[Update], int]:
        """How the next steps change each parameter, and how many: `most`, or until a setting but the rate changes.

        The scheduler goes ahead of the steps.
        """
        groups = self._optimizer.param_groups
        settings, rates, steps = options(groups), [[now(group["lr"])] for group in groups], most
        self._optimizer._opt_called = True  # type: ignore[attr-defined]  # or the scheduler would warn
        if scheduler is not None:
            scheduler.step()
            for steps in range(1, most + 1):
                if steps == most or options(groups) != settings:
                    break
                for values, group in zip(rates, groups, strict=True):
                    values.append(now(group["lr"]))
                scheduler.step()
        parameters, updates = self._groups(), []
        lrs, state = [rate(values, parameters[0][0].device) for values in rates], self._optimizer.state
        for parameter, i in parameters:
            (momentum, *_), (lr, lr_tensor) = settings[i], lrs[i]
            buffer = state[parameter].get("momentum_buffer") if momentum else None
            if buffer is not None and not buffer.is_contiguous():  # of a gradient in another memory order
                buffer = state[parameter]["momentum_buffer"] = buffer.contiguous()
            updates.append(Update(parameter, buffer, lr, lr_tensor, *settings[i], False))
        return with_buffers(updates), steps

    def _notice(self, updates: list[Update]) -> None:
        """Lets autograd know of what has changed, and the optimizer keep its momentum buffers."""
        buffers = [update.momentum_buffer for update in updates if update.momentum_buffer is not None]
        torch.autograd.graph.increment_version([update.param for update in updates] + buffers)
        for update in updates:
            if update.first:
                self._optimizer.state[update.param]["momentum_buffer"] = update.momentum_buffer

    @contextmanager
    def _step_hooks(self) -> Iterator[bool]:
        """A block with the optimizer's hooks before and after it, and whether there are any: they want to see each step."""
        optimizer = self._optimizer
        before = list(chain(_global_optimizer_pre_hooks.values(), optimizer._optimizer_step_pre_hooks.values()))
        after = list(chain(optimizer._optimizer_step_post_hooks.values(), _global_optimizer_post_hooks.values()))
        for hook in before:
            hook(optimizer, (), {})
        yield bool(before or after)
        for hook in after:
            hook(optimizer, (), {})


def check_images(layers: Layers, network: Network, images: Any) -> None:
    """TypeError, RuntimeError: images are no tensor (N, C, H, W) of the network's dtype, on its device, for its layers."""
    check_dense(layers.caller, images=images)
    weight = network.linears[0].weight
    if images.dtype != weight.dtype or images.device != weight.device:
        raise RuntimeError(
            f"{layers.caller}: expected images to be {weight.dtype} on {weight.device}, as the model is, got"
            f" {images.dtype} on {images.device}"
        )
    if torch.is_autocast_enabled(images.device.type):
        raise RuntimeError(f"{layers.caller}: computes in {images.dtype} and does not run under autocast")
    if images.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(f"{layers.caller}: expected images not to require grad: no gradient of them is computed")
    layers.check_images(tuple(images.shape))


def check_dense(caller: str, **tensors: Any) -> None:
    """TypeError, NotImplementedError: an argument is no tensor, or a sparse or mkldnn one."""
    check_tensors(caller, **tensors)
    for argument, tensor in tensors.items():
        if tensor.layout != torch.strided:
            raise NotImplementedError(f"{caller}: expected {argument} to be a strided tensor, got {tensor.layout}")


def check_order(images: Tensor, order: Any) -> None:
    """TypeError, IndexError, RuntimeError: order is no tensor of indices (any number) on the device of images."""
    check_tensors("FusedStep", order=order)
    if order.dtype != torch.int64 or order.dim() != 1:
        raise IndexError(
            f"FusedStep: expected order to be int64 of one dimension, got {order.dtype} of shape {tuple(order.shape)}"
        )
    if order.device != images.device:
        raise RuntimeError(
            f"FusedStep: expected order to be on the device of images, {images.device}, got {order.device}"
        )


def with_buffers(updates: list[Update]) -> list[Update]:
    """The updates, with new momentum buffers where one is missing, side by side: a backend can update all as one."""
    lacking = [u.param for u in updates if u.momentum and u.momentum_buffer is None]
    if not lacking:
        return updates
    starts = list(accumulate((in_lines(p.numel()) for p in lacking), initial=0))
    memory = torch.empty(starts[-1], dtype=lacking[0].dtype, device=lacking[0].device)
    new = (memory[start:][: p.numel()].view(p.shape) for p, start in zip(lacking, starts, strict=False))
    return [
        u._replace(momentum_buffer=next(new), first=True) if u.momentum and u.momentum_buffer is None else u
        for u in updates
    ]


def options(groups: list[dict[str, Any]]) -> list[Settings]:
    return [(g["momentum"], g["dampening"], g["weight_decay"], g["nesterov"], g["maximize"]) for g in groups]


def now(lr: Any) -> Any:
    """A rate as it is now: schedulers change tensors in place."""
    return lr.detach().clone() if isinstance(lr, Tensor) else lr


def rate(values: list[Any], device: torch.device) -> tuple[float, Tensor | None]:
    """(lr, lr_tensor) of an Update for the rates of all steps, or one for each."""
    if isinstance(values[0], Tensor) and values[0].device == device:
        return 0.0, values[0].reshape(()) if len(values) == 1 else torch.stack(values).reshape(-1)
    if len(values) == 1:
        return float(values[0]), None
    return 0.0, torch.tensor([float(value) for value in values], dtype=torch.float64, device=device)


@functools.cache
def backend_for(name: str, device_type: str) -> ModuleType:
    """`network` of the backend `name`, or where that is "" of the first that can run; RuntimeError: there is none."""
    reasons = []
    for candidate in (name,) if name else AUTOMATIC.get(device_type, ()):
        try:
            package = load(candidate, device_type)
        except RuntimeError as error:
            reasons.append(str(error))
            continue
        return importlib.import_module(f"{package.__name__}.network")
    raise RuntimeError("; ".join(reasons) or f"no backend runs on {device_type!r}")
