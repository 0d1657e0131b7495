"""Our operations beside torch's, and the judgement: torch in float64 on the same inputs decides, gradients included.

Of convolution and pooling the NumPy backend's primitives are also judged one by one, by their formulas, as
`python -m kernels check` judges those of every backend.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as theirs
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import kernels.functional as ours
from kernels.backend import chosen
from kernels.check.judge import Judge, Sizes, cross_entropy_magnitudes, exactly, steepness, wrong_elements
from kernels.check.tolerances import errors, rounded_between


class Call(NamedTuple):
    """Arguments of a call; its tensors that require grad are differentiated."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def change(self, function: Callable[[Tensor], Tensor]) -> "Call":
        """The call with its float tensors changed, all of them leaves."""

        def changed(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            return function(value.detach()).requires_grad_(value.requires_grad)

        return Call(tuple(map(changed, self.args)), {name: changed(value) for name, value in self.kwargs.items()})

    @property
    def leaves(self) -> list[Tensor]:
        return [v for v in (*self.args, *self.kwargs.values()) if isinstance(v, Tensor) and v.requires_grad]

    def run(self, function: Callable[..., Any]) -> list[Tensor]:
        """The outputs."""
        y = function(*self.args, **self.kwargs)
        return list(y) if isinstance(y, tuple) else [y]

    def output_dtypes(self, function: Callable[..., Any]) -> list[torch.dtype]:
        """Found without computing: torch's float16 convolution has crashed the process on some memory layouts."""
        call: Call = tree_map_only(Tensor, lambda tensor: tensor.detach().to("meta"), self)
        return [output.dtype for output in call.run(function)]

    def gradients(self, output: Tensor, dy: Tensor | None) -> list[Tensor]:
        """Those of the leaves, of an output weighted with dy."""
        return list(torch.autograd.grad(output, self.leaves, dy, retain_graph=True)) if self.leaves else []

    def differentiate(self, function: Callable[..., Any], dy: Tensor | None) -> list[Tensor]:
        """The outputs, then the gradients of the first one, weighted with dy."""
        outputs = self.run(function)
        return outputs + self.gradients(outputs[0], dy)


class Calls(TorchDispatchMode):
    """The names of our operators that ran in a `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "lenet_kernels":
            self.names.append(func._opname)
        return func(*args, **kwargs or {})


class Operation(NamedTuple):
    """`sizes(call, dy)` gives the number of summed terms and the sum of their magnitudes for each output and gradient."""

    ours: Callable[..., Any]
    torch: Callable[..., Any]
    sizes: Callable[["Operation", Call, Any], Sizes]
    has_formulas: bool = False  # in kernels.numpy.reference, of its primitives


def check(
    operation: Operation, *args: Any, make_dy: Callable[[Tensor], Tensor] = torch.randn_like, **kwargs: Any
) -> list[Tensor]:
    """Judges the operation's outputs and the gradients of the first one, weighted with make_dy(output); returns them."""
    call = Call(args, kwargs).change(lambda tensor: tensor)
    results = call.run(operation.ours)
    dy = make_dy(results[0].detach()) if call.leaves else None
    results += call.gradients(results[0], dy)
    judge(operation, call, dy, results)
    return results


def judge(operation: Operation, call: Call, dy: Tensor | None, results: list[Tensor]) -> None:
    """Judges the outputs of a call, and the gradients of the first one, weighted with dy."""
    with torch.device("cpu"), _one_thread():  # wherever the backend under test has its tensors
        call, dy = tree_map_only(Tensor, _on_cpu, (call, dy))
        judged = call.change(_double).differentiate(operation.torch, _double(dy))
        dtypes = call.output_dtypes(operation.torch) + [leaf.dtype for leaf in call.leaves]
        sizes = operation.sizes(operation, call, dy)
        for result, expected, dtype, size in zip(results, judged, dtypes, sizes, strict=True):
            assert result.dtype == dtype
            if dtype.is_floating_point:
                assert_near(result.cpu(), expected, *size)
            else:
                assert torch.equal(result.cpu(), expected)
        if operation.has_formulas and chosen() == "numpy":
            judge_primitives(operation, call, dy)


def judge_primitives(operation: Operation, call: Call, dy: Tensor | None) -> None:
    """Fails where a primitive of the call or of its gradients is not what its formula says."""
    judge = Judge()
    judge.exact = operation.sizes is exact
    with judge:
        call.differentiate(operation.ours, dy)
    assert not judge.wrong, "\n".join(judge.wrong)


def assert_near(result: Tensor, judged: Tensor, terms: Tensor | float = 1, magnitude: Tensor | float = 0) -> None:
    """Fails where a result of a float dtype is further from the float64 `judged` than the tolerance allows."""
    assert result.shape == judged.shape, f"shape {tuple(result.shape)} instead of {tuple(judged.shape)}"
    wrong = wrong_elements(result, judged, errors(result, judged, terms, magnitude))
    assert not wrong, wrong


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """For the judge's small tensors, where torch's threads wait for each other far longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().requires_grad_(tensor.requires_grad)


def _double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else exactly(tensor)


def _ones(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else torch.ones_like(tensor, dtype=torch.float64)


def _magnitude(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double().abs()


def exact(operation: Operation, call: Call, dy: Any) -> Sizes:
    """Nothing is rounded before the result is: so for small integers in a float dtype, whatever they are added up to."""
    return [(1, 0)] * (len(call.output_dtypes(operation.torch)) + len(call.leaves))


def multilinear(operation: Operation, call: Call, dy: Any) -> Sizes:
    """With ones in the place of every number the operation counts its terms, with their magnitudes it sums those."""
    terms = call.change(_ones).differentiate(operation.torch, _ones(dy))
    return list(zip(terms, call.change(_magnitude).differentiate(operation.torch, _magnitude(dy)), strict=True))


def _conv_transpose2d_sizes(operation: Operation, call: Call, dy: Any) -> Sizes:
    """The bias is added to a sum that was rounded."""
    (terms, magnitude), *gradients = multilinear(operation, call, dy)
    (dtype,) = call.output_dtypes(operation.torch)
    return [(terms, magnitude * rounded_between(dtype)), *gradients]


def bounded_by(function: Callable[..., Any]) -> Callable[[Operation, Call, Any], Sizes]:
    """The sizes of a multilinear function that sums at least the operation's terms."""
    return lambda operation, call, dy: multilinear(operation._replace(torch=function), call, dy)


def routed(operation: Operation, call: Call, dy: Any) -> Sizes:
    """The outputs are copies of inputs, and gradients are sums of dy."""
    call = call.change(_double)
    y, *others = call.run(operation.torch)
    gradients = zip(call.gradients(y, _ones(dy)), call.gradients(y, _magnitude(dy)), strict=True)
    return [(1, 0), *((1, 0) for _ in others), *gradients]


def _sigmoid_sizes(operation: Operation, call: Call, dy: Any) -> Sizes:
    (y,) = call.change(_double).run(operation.torch)
    y = y.detach()
    return [(1, y)] + [(1, y * dy.double().abs() * rounded_between(leaf.dtype)) for leaf in call.leaves]


def _softmax_sizes(operation: Operation, call: Call, dy: Any) -> Sizes:
    input, dim, *_ = (*call.args, *call.kwargs.values())
    (y,) = call.change(_double).run(operation.torch)
    if y.numel() == 0:
        return exact(operation, call, dy)
    magnitude = y.detach() * steepness(exactly(input), dim)
    terms = y.shape[dim] if y.dim() else 1
    sizes: Sizes = [(terms, magnitude)]
    for leaf in call.leaves:
        d = dy.double().abs() * rounded_between(leaf.dtype)
        sizes.append((terms, magnitude * (d + (d * magnitude).sum(dim, keepdim=True))))
    return sizes


def _mse_loss_sizes(operation: Operation, call: Call, dy: Any) -> Sizes:
    reduction = call.kwargs.get("reduction", "mean")
    error = torch.sub(*(t.detach().double() for t in call.args[:2])).abs()
    terms = 1 if reduction == "none" else max(error.numel(), 1)
    loss = error.square() if reduction == "none" else error.square().sum()
    sizes: Sizes = [(terms, loss / terms if reduction == "mean" else loss)]
    for leaf in call.leaves:
        each = 2 * error * dy.double().abs() / (terms if reduction == "mean" else 1)
        sizes.append((error.numel() / max(leaf.numel(), 1), each.sum_to_size(leaf.shape)))
    return sizes


def _cross_entropy_sizes(operation: Operation, call: Call, dy: Any) -> Sizes:
    """The gradients of probabilities and weights are made of tensor operations, which round between them."""
    dtypes = [leaf.dtype for leaf in call.leaves]
    call = call.change(_double)
    given = inspect.signature(theirs.cross_entropy).bind(*call.args, **call.kwargs)
    given.apply_defaults()
    arguments = given.arguments
    input, target, weight = (arguments[name] for name in ("input", "target", "weight"))
    index, smoothing = arguments["ignore_index"], max(arguments["label_smoothing"], 0)
    if not input.numel():
        return exact(operation, call, dy)
    with torch.no_grad():
        shape = input.shape if input.dim() > 1 else (1, *input.shape)
        rows = torch.Size([shape[0], *shape[2:]])
        x, t = input.reshape(shape), target.reshape(shape if target.is_floating_point() else rows)
        w = torch.ones(shape[1], dtype=torch.float64) if weight is None else weight.abs()
        c, p, of_log = cross_entropy_magnitudes(x, t, w, index, smoothing)
        losses = (c * of_log).sum(1)
        counted = torch.ones(rows) if t.is_floating_point() else w[t.clamp(min=0)] * (t != index)
        divisor = counted.sum() if arguments["reduction"] == "mean" else 1
        loss = losses if arguments["reduction"] == "none" else losses.sum() / divisor
        loss = loss if input.dim() > 1 or not loss.dim() else loss.squeeze(0)
        sizes: Sizes = [(shape[1] + rows.numel(), loss)]
        for leaf, dtype in zip(call.leaves, dtypes, strict=True):
            each = (dy.double().abs() / divisor).expand(rows).unsqueeze(1) * of_log
            if leaf is input:
                each = each * (p * c.sum(1, keepdim=True) + c)
            elif leaf is target:
                each = each * w.view(-1, *[1] * (x.dim() - 2)) * rounded_between(dtype)
            else:
                each = (each * (t.abs() + smoothing)).transpose(0, 1).flatten(1).sum(1) * rounded_between(dtype)
            sizes.append((shape[1] + rows.numel(), each.reshape(leaf.shape)))
        return sizes


def then_relu_max_pool2d(*args: Any, **kwargs: Any) -> Tensor:
    return theirs.max_pool2d(theirs.relu(theirs.conv2d(*args, **kwargs)), 2)


def _then_sum_pool2d(*args: Any, **kwargs: Any) -> Tensor:
    return theirs.avg_pool2d(theirs.conv2d(*args, **kwargs), 2, divisor_override=1)


def then_relu(*args: Any, **kwargs: Any) -> Tensor:
    return theirs.relu(theirs.conv2d(*args, **kwargs))


def _linear_then_relu(*args: Any, **kwargs: Any) -> Tensor:
    return theirs.relu(theirs.linear(*args, **kwargs))


CONV2D = Operation(ours.conv2d, theirs.conv2d, multilinear, has_formulas=True)
CONV2D_RELU = Operation(ours.conv2d_relu, then_relu, bounded_by(theirs.conv2d), has_formulas=True)
CONV2D_RELU_MAX_POOL2D = Operation(
    ours.conv2d_relu_max_pool2d, then_relu_max_pool2d, bounded_by(_then_sum_pool2d), has_formulas=True
)
CONV_TRANSPOSE2D = Operation(ours.conv_transpose2d, theirs.conv_transpose2d, _conv_transpose2d_sizes, has_formulas=True)
MAX_POOL2D = Operation(ours.max_pool2d, theirs.max_pool2d, routed, has_formulas=True)
LINEAR = Operation(ours.linear, theirs.linear, multilinear)
LINEAR_RELU = Operation(ours.linear_relu, _linear_then_relu, bounded_by(theirs.linear))
RELU = Operation(ours.relu, theirs.relu, routed)
SIGMOID = Operation(ours.sigmoid, torch.sigmoid, _sigmoid_sizes)
SOFTMAX = Operation(ours.softmax, theirs.softmax, _softmax_sizes)
CROSS_ENTROPY = Operation(ours.cross_entropy, theirs.cross_entropy, _cross_entropy_sizes)
MSE_LOSS = Operation(ours.mse_loss, theirs.mse_loss, _mse_loss_sizes)
