"""Watches primitives run and judges each result by the same primitive in float64, on copies of the same inputs.

Convolution and pooling are judged by `kernels.numpy.reference`, which shares no code with what it judges; the others, of
which NumPy's code is the formula, by NumPy's.

A rule for each primitive says how many terms an output sums, and the sum of their magnitudes, as the tolerance wants.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import kernels.numpy
from kernels.check.tolerances import SUMS_IN, errors, rounded_between
from kernels.integration.primitive import as_tuple
from kernels.numpy import reference
from kernels.numpy.arrays import on_arrays
from kernels.ops.conv2d_relu_max_pool2d import WINDOWS
from kernels.ops.cross_entropy import by_row, coefficients

Sizes = list[tuple[Tensor | float, Tensor | float]]  # terms and magnitude of each float output


class Judge(TorchDispatchMode):
    """Judges every primitive of ours that runs in a `with` block, in backward too."""

    def __init__(self) -> None:
        super().__init__()
        self.exact = False  # whether sums are, as those of small whole numbers: a result is rounded once and no more
        self.primitives: set[str] = set()
        self.error = 0.0  # the largest, in units of the tolerance
        self.wrong: list[str] = []  # a line for each wrong output

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "lenet_kernels":
            return func(*args, **kwargs or {})
        name, inputs = func._opname, tree_map_only(Tensor, exactly, args[:-1])
        results = func(*args)
        with torch.no_grad():
            outputs = [output.detach().cpu() for output in outputs_of(name, args, results)]
            self._judge(name, inputs, outputs)
        return results

    def _judge(self, name: str, inputs: tuple[Any, ...], outputs: list[Tensor]) -> None:
        self.primitives.add(name)
        judged = run(name, inputs)
        dtype = outputs[0].dtype
        exact = self.exact or not dtype.is_floating_point or name in EXACT
        sizes: Sizes = [(1, 0)] * len(judged) if exact else SIZES[name](name, inputs, dtype)
        for i, (output, expected) in enumerate(zip(outputs, judged, strict=True)):
            place = f"{name}, output {i}" if len(outputs) > 1 else name
            if output.shape != expected.shape:
                self.wrong.append(f"{place}: shape {tuple(output.shape)} instead of {tuple(expected.shape)}")
                self.error = torch.inf
            elif output.is_floating_point():
                self._compare(place, output, expected, errors(output, expected, *sizes[i]))
            elif exact or name != "conv2d_relu_max_pool2d_forward":
                self._compare(place, output, expected, torch.where(output == expected, 0.0, torch.inf))
            else:
                maxima = at_positions(inputs, output).to(SUMS_IN[dtype])
                self._compare(place, output, expected, errors(maxima, judged[0], *sizes[0]))

    def _compare(self, place: str, output: Tensor, expected: Tensor, error: Tensor) -> None:
        if not error.numel():
            return
        self.error = max(self.error, error.max().item())
        if wrong := wrong_elements(output, expected, error):
            self.wrong.append(f"{place}: {wrong}")


def wrong_elements(output: Tensor, expected: Tensor, error: Tensor) -> str:
    """How many elements are wrong, whose error is above 1, and the first of them; "" where none is."""
    wrong = (error > 1).nonzero()
    if not len(wrong):
        return ""
    first = tuple(wrong[0].tolist())
    return (
        f"{len(wrong)} of {error.numel()} elements are wrong, the first at {first} of {tuple(output.shape)}:"
        f" {output[first].item():.9g} instead of {expected[first].item():.9g}, {error[first].item():.3g} tolerances off"
    )


def exactly(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU, in float64 if its numbers are floats."""
    dtype = torch.float64 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)


def run(name: str, inputs: tuple[Any, ...]) -> list[Tensor]:
    """The outputs of the primitive that judges."""
    if name in WRITING:
        inputs = tree_map_only(Tensor, torch.clone, inputs)
    return outputs_of(name, inputs, judging(name)(*map(as_tuple, inputs)))


@functools.cache
def judging(name: str) -> Callable[..., Any]:
    """The function that judges a primitive: its formula, or NumPy's code where that is the formula."""
    formula = getattr(reference, name, None)
    return on_arrays(formula) if formula else getattr(kernels.numpy, name)


def outputs_of(name: str, inputs: tuple[Any, ...], results: Any) -> list[Tensor]:
    """What a primitive gave, as a list: sgd has written it into its parameters and momentum buffers, relu_ into its input."""
    if name == "sgd":
        return [*inputs[0], *inputs[2]]
    if name == "relu_":
        return [inputs[0]]
    return list(results) if isinstance(results, tuple) else [results]


def changed(function: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    """The inputs with `function` of those that hold floats."""
    return tree_map_only(Tensor, lambda tensor: function(tensor) if tensor.is_floating_point() else tensor, inputs)


def multilinear(name: str, inputs: tuple[Any, ...], dtype: torch.dtype) -> Sizes:
    """With ones in the place of every number the primitive counts its terms, with their magnitudes it sums those."""
    return list(zip(run(name, changed(torch.ones_like, inputs)), run(name, changed(torch.abs, inputs)), strict=True))


def linear_forward(name: str, inputs: tuple[Any, ...], dtype: torch.dtype) -> Sizes:
    """Of the sum z; a sigmoid adds roundings of its own value, at most 1."""
    *product, activation = inputs
    ((terms, magnitude),) = multilinear(name, (*product, None), dtype)
    return [(terms, magnitude + (activation == "sigmoid"))]


def linear_backward(name: str, inputs: tuple[Any, ...], dtype: torch.dtype) -> Sizes:
    """A sigmoid's dz is rounded to the dtype before it is summed: by a part of itself, or of the smallest normal number."""
    dy, y, input, weight, needed, activation = inputs
    ones = changed(torch.ones_like, (dy, None, input, weight))
    rounded = 1.0
    if activation == "sigmoid":
        dy, y, activation = dy * y * (1 - y), None, None
        dy, rounded = dy.abs() + torch.finfo(dtype).smallest_normal, rounded_between(dtype)
    sums = run(name, (dy.abs(), y, input.abs(), weight.abs(), needed, activation))
    return [(terms, rounded * total) for terms, total in zip(run(name, (*ones, needed, None)), sums, strict=True)]


def conv2d_relu_forward(name: str, inputs: tuple[Any, ...], dtype: torch.dtype) -> Sizes:
    """ReLU takes no sum further off."""
    return multilinear("conv2d_forward", inputs, dtype)


def conv2d_relu_max_pool2d_forward(name: str, inputs: tuple[Any, ...], dtype: torch.dtype) -> Sizes:
    """A maximum is as far off as the sum of its window that is furthest off."""
    ((terms, magnitude),) = multilinear("conv2d_forward", inputs, dtype)
    largest = [run("max_pool2d_forward", (sizes, False, *WINDOWS))[0] for sizes in (terms, magnitude)]
    return [(largest[0], largest[1]), (1, 0)]


def at_positions(inputs: tuple[Any, ...], positions: Tensor) -> Tensor:
    """The sums at the positions that a fused convolution found, 0 where it found none above 0.

    Where two sums are nearly equal, or one is nearly 0, either may be right.
    """
    (sums,) = run("conv2d_forward", inputs)
    (taken,) = run("max_pool2d_gather", (sums, positions.clamp(max=3), *WINDOWS))
    taken[(positions > 3) & (positions < 255)] = torch.nan  # no such position
    return torch.where(positions == 255, 0, taken)


def sigmoid_forward(name: str, inputs: tuple[Any, ...], dtype: torch.dtype) -> Sizes:
    return [(1, run(name, inputs)[0])]


def sigmoid_backward(name: str, inputs: tuple[Any, ...], dtype: torch.dtype) -> Sizes:
    return [(1, run(name, inputs)[0].abs())]


def softmax_forward(name: str, inputs: tuple[Any, ...], dtype: torch.dtype) -> Sizes:
    x, dim = inputs
    return [(x.shape[dim], run(name, inputs)[0] * steepness(x, dim))]


def steepness(x: Tensor, dim: int) -> Tensor:
    """The relative error of softmax for one of x, whose rounding exp magnifies."""
    return 1 + (x - x.amax(dim, keepdim=True)).abs()


def softmax_backward(name: str, inputs: tuple[Any, ...], dtype: torch.dtype) -> Sizes:
    dy, y, dim = inputs
    return [(y.shape[dim], y * (dy.abs() + (dy.abs() * y).sum(dim, keepdim=True)))]


def mse_loss_forward(name: str, inputs: tuple[Any, ...], dtype: torch.dtype) -> Sizes:
    """All terms are positive."""
    input, _, reduction = inputs
    return [(1 if reduction == "none" else input.numel(), run(name, inputs)[0])]


def mse_loss_backward(name: str, inputs: tuple[Any, ...], dtype: torch.dtype) -> Sizes:
    return [(1, run(name, inputs)[0].abs())]


def cross_entropy_forward(name: str, inputs: tuple[Any, ...], dtype: torch.dtype) -> Sizes:
    """The maxima and the numbers of rows are exact, the sums are of exponentials as in softmax."""
    input, target, weight, reduction, *options = inputs
    loss, norm, divisor = run(name, inputs)
    c, _, of_log = cross_entropy_magnitudes(input, target, weight, *options)
    losses = (c * of_log).sum(1)
    z = input - norm[0].unsqueeze(1)
    sums = torch.stack([torch.zeros_like(norm[0]), (z.exp() * (1 + z.abs())).sum(1)])
    classes, rows = input.shape[1], losses.numel()
    return [
        (classes, losses) if reduction == "none" else (classes + rows, losses.sum() / divisor),
        (classes, sums),
        (rows, 0 if weight is None or target.is_floating_point() else run(name, changed(torch.abs, inputs))[2]),
    ]


def cross_entropy_backward(name: str, inputs: tuple[Any, ...], dtype: torch.dtype) -> Sizes:
    dloss, input, target, weight, _, divisor, *options = inputs
    c, p, of_log = cross_entropy_magnitudes(input, target, weight, *options)
    factor = dloss.abs() / divisor
    return [(input.shape[1], by_row(factor) * (p * of_log * c.sum(1, keepdim=True) + c))]


def cross_entropy_magnitudes(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """|c| and softmax(input), and what the roundings of their logarithms are parts of, all in the shape of input."""
    target, weight = changed(torch.abs, (target, weight))
    c = coefficients(input, target, weight, ignore_index, label_smoothing)
    z = input - input.amax(1, keepdim=True)
    log_sum = z.logsumexp(1, keepdim=True)
    return c, (z - log_sum).exp(), 1 + log_sum + z.abs()


def sgd(name: str, inputs: tuple[Any, ...], dtype: torch.dtype) -> Sizes:
    """With magnitudes, and subtraction turned into addition: at most the four terms p, b, grad and weight_decay p."""
    params, grads, buffers, lr, lr_tensor, *rule, nesterov, _, first = inputs
    lr = lr if lr_tensor is None else lr_tensor.item()
    tensors = changed(torch.abs, (params, grads, buffers))
    return [(4, magnitude) for magnitude in run(name, (*tensors, -lr, None, *rule, nesterov, False, first))]


WRITING = {"relu_", "sgd"}  # to their inputs
EXACT = {"relu_", "relu_forward", "relu_backward", "step_forward", "max_pool2d_forward", "max_pool2d_gather"}
SIZES: dict[str, Callable[[str, tuple[Any, ...], torch.dtype], Sizes]] = {
    "conv2d_forward": multilinear,
    "conv2d_input_grad": multilinear,
    "conv2d_weight_grad": multilinear,
    "conv2d_relu_forward": conv2d_relu_forward,
    "conv2d_relu_max_pool2d_forward": conv2d_relu_max_pool2d_forward,
    "conv2d_relu_max_pool2d_backward": multilinear,
    "max_pool2d_input_grad": multilinear,
    "linear_forward": linear_forward,
    "linear_input_grad": multilinear,
    "linear_weight_grad": multilinear,
    "linear_backward": linear_backward,
    "sigmoid_forward": sigmoid_forward,
    "sigmoid_backward": sigmoid_backward,
    "softmax_forward": softmax_forward,
    "softmax_backward": softmax_backward,
    "mse_loss_forward": mse_loss_forward,
    "mse_loss_backward": mse_loss_backward,
    "cross_entropy_forward": cross_entropy_forward,
    "cross_entropy_backward": cross_entropy_backward,
    "sgd": sgd,
}
