"""A step of training on a whole network, judged by torch in float64 from the same state: forward, loss, backward, update.

How far each result may lie off follows from the one tolerance rule, applied layer by layer to the activations and
gradients that there are. A layer f is bilinear. The error of its own sums is the rule's; those that it is given with a
and b walk at random in the same sums, as roundings do, so their squares add up:

    error(f(a, b)) = sqrt(terms) f(|a|, |b|) + sqrt(f(error(a)^2, b^2) + f(a^2, error(b)^2))

Without that a bound would grow with every layer by the square root of its terms more than errors do, and end above the
gradients of the first layer.

ReLU and pooling hand an error on where they hand the number on, forward and backward. Errors are counted in the rule's
4 (a + j). Numbers that are NaN or infinite count as 0 in them, for no finite result has a share of one; results that are
not finite have to be what torch's are.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from judge import assert_near
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from kernels.check.judge import exactly
from kernels.ops.network import Network


def parameters(network: Network) -> list[Tensor]:
    """Weight and bias of each layer."""
    layers = (*network.convolutions, *network.linears)
    return [p for layer in layers for p in (layer.weight, layer.bias) if p is not None]


def changed(network: Network, function: Callable[[Tensor], Tensor]) -> Network:
    """The network with `function` of its parameters."""

    def of(layer: Any) -> Any:
        layer = layer._replace(weight=function(layer.weight))
        return layer if layer.bias is None else layer._replace(bias=function(layer.bias))

    return Network(tuple(map(of, network.convolutions)), tuple(map(of, network.linears)))


def check_scores(network: Network, images: Tensor, scores: Tensor) -> None:
    with torch.device("cpu"):  # wherever the backend under test has its tensors
        judged = Forward(changed(network, exactly), exactly(images)).scores
        near(scores, judged.value, judged.error)


def check_step(
    network: Network,
    images: Tensor,
    targets: Tensor,
    options: Sequence[dict[str, Any]],
    buffers: Sequence[Tensor | None],
    take: Callable[[], tuple[Tensor, Tensor, Sequence[Tensor | None]]],
) -> None:
    """Judges the loss, the correct and the momentum buffers that take() returns, and the parameters that it changes.

    Each parameter has its options of torch.optim.SGD, and its momentum buffer before the step, None where there is none.
    """
    with torch.device("cpu"):
        judged = changed(network, lambda p: exactly(p).requires_grad_())
        images, targets = exactly(images), exactly(targets)
        params = parameters(judged)
        before = [p.detach().clone() for p in params]
        old = [None if b is None else exactly(b) for b in buffers]
        sgd = torch.optim.SGD(
            [{**o, "params": [p], "lr": float(o["lr"])} for p, o in zip(params, options, strict=True)]
        )
        for p, b in zip(params, old, strict=True):
            if b is not None:
                sgd.state[p]["momentum_buffer"] = b.clone()
        forward = Forward(judged, images)
        scores, mse = forward.scores.value, targets.is_floating_point()
        loss = F.mse_loss(scores, targets) if mse else F.cross_entropy(scores, targets)
        loss.backward()
        loss_error, dscores = (mse_errors if mse else cross_entropy_errors)(forward.scores, targets)
        gradients = [p.grad for p in params]
        errors = list(map(update_errors, before, old, gradients, forward.backward(dscores), options))
        sgd.step()

    result, correct, new = take()

    with torch.device("cpu"):
        near(result, loss, loss_error)
        assert correct.item() == (scores.argmax(1) == (targets.argmax(1) if mse else targets)).sum()
        for result, p, b, (error, of_buffer) in zip(parameters(network), params, new, errors, strict=True):
            near(result, p, error)
            expected = sgd.state[p].get("momentum_buffer")
            assert (b is None) == (expected is None)
            if b is not None:
                near(b, expected, of_buffer)


def near(result: Tensor, judged: Tensor, error: Tensor) -> None:
    """By the rule, of an error for one term."""
    assert_near(result.detach().cpu(), judged.detach(), 1, error)


class Value(NamedTuple):
    """Numbers in float64, and the magnitudes of their errors as the tolerance rule has them, for one term."""

    value: Tensor
    error: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "Value":
        """Of a function that moves numbers, drops them, or both."""
        return Value(function(self.value), function(self.error))


def magnitude(tensor: Tensor) -> Tensor:
    return tensor.detach().abs().nan_to_num(0, 0, 0)


def given(tensor: Tensor) -> Value:
    return Value(tensor, torch.zeros_like(tensor))


def product(function: Callable[[Tensor, Tensor], Tensor], a: Value, b: Value) -> Value:
    """A bilinear function."""
    x, y = magnitude(a.value), magnitude(b.value)
    terms = function(torch.ones_like(x), torch.ones_like(y))
    passed_on = function(a.error**2, y**2) + function(x**2, b.error**2)
    error = terms.sqrt() * function(x, y) + passed_on.sqrt()
    return Value(function(a.value, b.value), error)


def biased(z: Value, bias: Tensor | None, shape: tuple[int, ...]) -> Value:
    """z + bias, which rounds the sum."""
    return z if bias is None else Value(z.value + bias.view(shape), z.error + magnitude(bias).view(shape))


def relu(z: Value) -> Value:
    return Value(F.relu(z.value), torch.where(z.value <= 0, 0, z.error))


def summed(dy: Value, dims: tuple[int, ...]) -> Value:
    value = dy.value.sum(dims)
    terms = dy.value.numel() / value.numel()
    return Value(value, terms**0.5 * magnitude(dy.value).sum(dims) + (dy.error**2).sum(dims).sqrt())


class Forward:
    """The forward pass of images, of which torch's autograd can go back, and the way back of errors."""

    def __init__(self, network: Network, images: Tensor) -> None:
        self.network, x = network, given(images)
        self.inputs: list[Value] = []  # of each layer
        self.windows: list[tuple[Tensor, Tensor]] = []  # of each convolution what is pooled, and where the largest are
        for weight, bias, padding in network.convolutions:
            self.inputs.append(x)
            z = product(lambda x, w, p=padding: F.conv2d(x, w, padding=p), x, given(weight))
            z = relu(biased(z, bias, (-1, 1, 1)))
            y, places = F.max_pool2d(z.value, 2, return_indices=True)
            x = Value(y, F.max_pool2d(z.error, 2))
            self.windows.append((z.value, places))
        x = x.map(lambda t: t.flatten(1))
        for weight, bias in network.linears:
            self.inputs.append(x)
            z = biased(product(F.linear, x, given(weight)), bias, (-1,))
            x = relu(z)
        self.scores = z

    @torch.no_grad()
    def backward(self, dy: Value) -> list[Tensor]:
        """The errors of the parameters' gradients, of the scores' dy."""
        inputs, gradients = reversed(self.inputs), []
        for weight, bias in reversed(self.network.linears):
            x = next(inputs)
            dbias = [] if bias is None else [summed(dy, (0,))]
            gradients[:0] = [product(lambda dy, x: dy.t() @ x, dy, x), *dbias]
            dx = product(lambda dy, w: dy @ w, dy, given(weight))
            dy = dx.map(lambda t, x=x.value: torch.where(x <= 0, 0, t))
        convolutions = zip(self.network.convolutions, self.windows, strict=True)
        for (weight, bias, padding), (z, places) in reversed(list(convolutions)):
            x = next(inputs)
            dy = dy.map(lambda t, z=z, places=places: unpooled(t.view(places.shape), z, places))
            dbias = [] if bias is None else [summed(dy, (0, 2, 3))]
            shapes = x.value.shape, weight.shape
            dweight = product(lambda dy, x, s=shapes[1], p=padding: conv2d_weight(x, s, dy, padding=p), dy, x)
            gradients[:0] = [dweight, *dbias]
            dy = product(lambda dy, w, s=shapes[0], p=padding: conv2d_input(s, w, dy, padding=p), dy, given(weight))
        return [gradient.error for gradient in gradients]


def unpooled(dy: Tensor, z: Tensor, places: Tensor) -> Tensor:
    """dz of y = max_pool2d(relu(z), 2), whose largest elements have these places."""
    dz = torch.zeros_like(z).flatten(2).scatter(2, places.flatten(2), dy.flatten(2)).view_as(z)
    return torch.where(z <= 0, 0, dz)


@torch.no_grad()
def mse_errors(scores: Value, targets: Tensor) -> tuple[Tensor, Value]:
    """Of the loss, the error; of the scores, dscores = 2 (scores - targets) / n."""
    off, n = scores.value - targets, targets.numel()
    error = scores.error + magnitude(off)
    loss_error = n**0.5 * magnitude(off).square().mean() + 2 * (magnitude(off) * error).mean()
    return loss_error, Value(2 * off / n, 2 * (error + magnitude(off)) / n)


@torch.no_grad()
def cross_entropy_errors(scores: Value, labels: Tensor) -> tuple[Tensor, Value]:
    """The same, dscores = (p - one-hot labels) / N of p = softmax(scores); exp makes errors of scores relative ones of p."""
    value, (n, classes) = scores.value, scores.value.shape
    p = value.softmax(1)
    below = magnitude(value.amax(1, keepdim=True) - value)
    relative = scores.error + scores.error.amax(1, keepdim=True) + below + classes**0.5
    mean = (magnitude(p) * relative).sum(1, keepdim=True)
    loss = magnitude(F.cross_entropy(value, labels, reduction="none"))
    loss_error = (n**0.5 * loss + mean.squeeze(1) + relative.gather(1, labels[:, None]).squeeze(1)).mean()
    dy = p - F.one_hot(labels, classes)
    return loss_error, Value(dy / n, (magnitude(p) * (relative + mean) + magnitude(dy)) / n)


def update_errors(
    p: Tensor, b: Tensor | None, gradient: Tensor, error: Tensor, o: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """Of a parameter and its momentum buffer after a step: kernels.ops.sgd's formula, with every difference a sum.

    It sums at most the four terms p, b, gradient and weight_decay p, so each has 2 = sqrt(4) of its magnitude.
    """
    p, b, g = 2 * magnitude(p), None if b is None else 2 * magnitude(b), 2 * magnitude(gradient) + error
    g = g + o["weight_decay"] * p
    if o["momentum"]:
        b = g if b is None else o["momentum"] * b + abs(1 - o["dampening"]) * g
        g = g + o["momentum"] * b if o["nesterov"] else b
    return p + float(o["lr"]) * g, b
