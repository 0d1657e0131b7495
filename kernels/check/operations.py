"""What is checked: every operation and its gradients, at sizes that fill no tile, on tensors of odd memory layouts."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import kernels.functional as F
import kernels.nn as nn
from kernels.optim import SGD

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1) if t.dim() > 1 else t,
    "batch_innermost": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0) if t.dim() > 1 else t,
    "transposed": lambda t: (
        t.permute(tuple(reversed(range(t.dim())))).contiguous().permute(tuple(reversed(range(t.dim()))))
    ),
    "sliced": lambda t: t.repeat_interleave(2, -1)[..., ::2] if t.dim() else t,
    "shifted": lambda t: torch.cat([t.new_ones(3), t.flatten()])[3:].view(t.shape),
    "expanded": lambda t: t[:1].expand(t.shape) if t.dim() else t,
}
FAR = 2**30  # elements from one image to the next: the third one's offset does not fit into 32 bits


class Inputs:
    """The tensors of a run: of one dtype, on one device, the same numbers each time; whole ones, or normally distributed."""

    def __init__(self, dtype: torch.dtype, device: torch.device, images: int, whole: bool) -> None:
        self.dtype, self.device, self.images, self.whole = dtype, device, images, whole
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, layout: Callable[[Tensor], Tensor] | str = "contiguous") -> Tensor:
        """A leaf that requires a gradient."""
        if self.whole:
            numbers = torch.randint(-3, 4, shape, generator=self._generator, device="cpu")
        else:
            numbers = torch.randn(shape, generator=self._generator, dtype=torch.float64, device="cpu")
        lay = LAYOUTS[layout] if isinstance(layout, str) else layout
        return lay(numbers.to(self.device, self.dtype)).requires_grad_()

    def differentiated(
        self, function: Callable[..., Any], *inputs: Tensor, dy: Any = "contiguous", twice: bool = False
    ) -> list[Tensor]:
        """The output and its gradients, as in training, weighted with a dy of this layout; `twice`, their gradients too."""
        y = function(*inputs)
        weights = self(*y.shape, layout=dy)
        results = [y, *torch.autograd.grad(y, inputs, weights, retain_graph=twice)]
        if twice:
            gradients = torch.autograd.grad(y, inputs, weights, create_graph=True)
            ddy = [self(*gradient.shape) for gradient in gradients]
            results += [*gradients, *torch.autograd.grad(gradients, (*inputs, weights), ddy, allow_unused=True)]
        return [result for result in results if result is not None]


def conv2d(tensor: Inputs) -> list[Tensor]:
    """One map, as in LeNet's first layer, and the others."""
    inputs = tensor(tensor.images, 1, 11, 9, layout="shifted"), tensor(6, 1, 3, 2), tensor(6)
    return tensor.differentiated(F.conv2d, *inputs, dy="expanded") + convolutions(tensor, F.conv2d)


def conv2d_relu(tensor: Inputs) -> list[Tensor]:
    return convolutions(tensor, F.conv2d_relu)


def conv2d_relu_max_pool2d(tensor: Inputs) -> list[Tensor]:
    return convolutions(tensor, F.conv2d_relu_max_pool2d)


def conv_transpose2d(tensor: Inputs) -> list[Tensor]:
    """Groups and every geometry; rows and columns that no window reaches, which hold the bias alone."""

    def grouped(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv_transpose2d(input, weight, bias, (3, 1), (0, 1), (2, 1), 2, (1, 2))

    inputs = tensor(tensor.images, 4, 4, 5, layout="channels_last"), tensor(4, 3, 2, 3, layout="sliced"), tensor(6)
    return tensor.differentiated(grouped, *inputs, dy="batch_innermost")


def convolutions(tensor: Inputs, function: Callable[..., Any]) -> list[Tensor]:
    """Groups and every geometry; more maps than tensor cores want."""
    n = tensor.images

    def grouped(*inputs: Tensor) -> Tensor:
        return function(*inputs, stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)

    return [
        *tensor.differentiated(
            grouped, tensor(n, 4, 8, 7, layout="channels_last"), tensor(6, 2, 2, 3, layout="sliced"), tensor(6)
        ),
        *tensor.differentiated(
            function, tensor(n, 3, 6, 7, layout="batch_innermost"), tensor(17, 3, 3, 2), tensor(17), dy="channels_last"
        ),
    ]


def max_pool2d(tensor: Inputs) -> list[Tensor]:
    """Windows side by side, windows that overlap, and a window of more positions than a byte counts."""
    n = tensor.images

    def overlapping(input: Tensor) -> Any:
        return F.max_pool2d(input, (3, 2), (2, 1), 1, (1, 2), ceil_mode=True)

    def large(input: Tensor) -> Any:
        return F.max_pool2d(input, 17)

    return [
        *tensor.differentiated(lambda input: F.max_pool2d(input, 2), tensor(n, 3, 13, 11), dy="expanded", twice=True),
        *tensor.differentiated(
            overlapping, tensor(n, 3, 13, 11, layout="channels_last"), dy="batch_innermost", twice=True
        ),
        *tensor.differentiated(large, tensor(2, 1, 18, 36, layout="sliced")),
    ]


def linear(tensor: Inputs) -> list[Tensor]:
    """Rows of features, and images that lie with the batch innermost."""
    n = tensor.images
    return [
        *tensor.differentiated(
            F.linear, tensor(n, 37), tensor(19, 37, layout="transposed"), tensor(19), dy="expanded", twice=True
        ),
        *tensor.differentiated(
            F.linear, tensor(n, 3, 70, layout="batch_innermost"), tensor(85, 70), tensor(85), twice=True
        ),
    ]


def linear_relu(tensor: Inputs) -> list[Tensor]:
    n = tensor.images
    return tensor.differentiated(
        F.linear_relu, tensor(n, 139, layout="sliced"), tensor(85, 139), tensor(85), dy="shifted"
    )


def linear_sigmoid(tensor: Inputs) -> list[Tensor]:
    layer = nn.Linear(37, 19, activation="sigmoid", device=tensor.device, dtype=tensor.dtype)

    def function(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (input,))

    return tensor.differentiated(function, tensor(tensor.images, 37), tensor(19, 37), tensor(19))


def elementwise(function: Callable[[Tensor], Tensor]) -> Callable[[Inputs], list[Tensor]]:
    """Every layout; a size that is just more than a block of elements."""

    def run(tensor: Inputs) -> list[Tensor]:
        shapes = [(tensor.images, 3, 5, 7), (1025,)]
        results = []
        for layout in LAYOUTS:
            for shape in shapes:
                results += tensor.differentiated(function, tensor(*shape, layout=layout), dy=layout)
        return results

    return run


def relu(tensor: Inputs) -> list[Tensor]:
    """In memory of its own, and in place."""
    images = tensor(tensor.images, 3, 5, 7, layout="batch_innermost").detach()
    return [*elementwise(F.relu)(tensor), F.relu(images.clone(), inplace=True)]


def softmax(tensor: Inputs) -> list[Tensor]:
    """Short rows, long ones, and rows whose elements are not neighbours in memory."""
    n = tensor.images
    return [
        *tensor.differentiated(lambda x: F.softmax(x, 1), tensor(n, 10), dy="expanded"),
        *tensor.differentiated(lambda x: F.softmax(x, 1), tensor(3, 2051, layout="sliced"), dy="shifted"),
        *tensor.differentiated(lambda x: F.softmax(x, 0), tensor(37, n, layout="transposed")),
        *tensor.differentiated(
            lambda x: F.softmax(x, 1), tensor(n, 3, 7, layout="channels_last"), dy="batch_innermost"
        ),
    ]


def mse_loss(tensor: Inputs) -> list[Tensor]:
    """One block of elements, and many."""
    results = []
    for reduction in ("none", "mean", "sum"):
        for shape, layout in (((tensor.images, 10), "expanded"), ((7, 3001), "transposed")):
            loss = nn.MSELoss(reduction=reduction)
            results += tensor.differentiated(loss, tensor(*shape, layout=layout), tensor(*shape))
    return results


def cross_entropy(tensor: Inputs) -> list[Tensor]:
    """Few classes and many, neighbours in memory and not, with every kind of target."""
    n, results = tensor.images, []
    for reduction in ("none", "mean", "sum"):
        for shape, layout in (((n, 10), "expanded"), ((3, 2051), "sliced"), ((n, 3, 7), "channels_last")):
            options: Any = {"weight": tensor(shape[1]).detach().abs(), "reduction": reduction}
            rows = torch.Size([shape[0], *shape[2:]])
            classes = (torch.arange(rows.numel(), device=tensor.device) * 7 % shape[1]).view(rows)
            for target in (classes, tensor(*shape, layout=layout).detach().softmax(1)):
                for smoothing in (0.0, 0.1):
                    loss = functools.partial(F.cross_entropy, target=target, label_smoothing=smoothing, **options)
                    results += tensor.differentiated(loss, tensor(*shape, layout=layout))
    return results


def sgd(tensor: Inputs) -> list[Tensor]:
    """Two steps over parameters of many sizes, none and one among them; momentum, Nesterov's, and none."""
    results: list[Tensor] = []
    rate = torch.tensor(0.1, device=tensor.device)
    for options in (
        {"lr": 0.1},
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
        {"lr": rate, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True, "maximize": True},
    ):
        parameters = [
            tensor(),
            tensor(0),
            tensor(1025),
            tensor(33, 37, layout="transposed"),
            tensor(9, 8, layout="sliced"),
        ]
        optimiser = SGD(parameters, **options)
        for _ in range(2):
            for parameter in parameters:
                parameter.grad = tensor(*parameter.shape).detach()
            optimiser.step()
        results += [parameter.detach() for parameter in parameters]
    return results


def lenet(tensor: Inputs) -> list[Tensor]:
    """Two training steps, the second with momentum."""
    from lenet import LeNet  # which is built on the package that this module belongs to

    net = LeNet().to(tensor.device, tensor.dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(tensor(*parameter.shape) * parameter[0].numel() ** -0.5)
    optimiser = SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    images, targets = tensor(tensor.images, 1, 32, 32).detach(), tensor(tensor.images, 10).detach()
    for _ in range(2):
        optimiser.zero_grad()
        loss = nn.MSELoss()(net(images), targets)
        loss.backward()
        optimiser.step()
    return [loss, *(parameter.detach() for parameter in net.parameters())]


def large_offsets(tensor: Inputs) -> list[Tensor]:
    """Three images so far apart in memory that the last one's offset takes more than 32 bits."""
    needed = (2 * FAR + 4096) * tensor.dtype.itemsize
    try:
        memory = torch.empty(needed // tensor.dtype.itemsize, dtype=tensor.dtype, device=tensor.device)
    except RuntimeError as error:
        raise CannotRun(f"needs {needed / 1e9:.1f} GB of memory") from error

    def far(images: Tensor) -> Tensor:
        return memory.as_strided(images.shape, (FAR, *images.stride()[1:])).copy_(images)

    def gradients(function: Callable[..., Any], input: Tensor, *others: Tensor) -> list[Tensor]:
        y = function(input, *others)
        return [y, *torch.autograd.grad(y, (input, *others), torch.ones_like(y))]

    image = (3, 2, 9, 8)
    return [
        *gradients(F.relu, tensor(*image, layout=far)),
        *gradients(F.conv2d, tensor(*image, layout=far), tensor(5, 2, 3, 3), tensor(5)),
        *gradients(F.conv2d_relu_max_pool2d, tensor(*image, layout=far), tensor(5, 2, 3, 3), tensor(5)),
        *gradients(lambda x: F.max_pool2d(x, 2), tensor(*image, layout=far)),
        *gradients(F.linear_relu, tensor(3, 37, layout=far), tensor(19, 37), tensor(19)),
        *gradients(lambda x: F.softmax(x, 1), tensor(3, 37, layout=far)),
        *gradients(F.mse_loss, tensor(3, 37, layout=far), tensor(3, 37)),
        *gradients(F.cross_entropy, tensor(3, 37, layout=far), tensor(3, 37)),
    ]


class CannotRun(Exception):
    """An operation that this machine has not the means for; the text says which."""


class Operation(NamedTuple):
    """`run` gives every result; whole numbers are added up exactly in some operations."""

    run: Callable[[Inputs], list[Tensor]]
    exact: bool = False
    tf32: bool = False  # whether Triton may multiply it in TF32
    heavy: bool = False  # for Triton's interpreter
    dtypes: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


OPERATIONS = {
    "conv2d": Operation(conv2d, exact=True, tf32=True),
    "conv2d_relu": Operation(conv2d_relu, exact=True, tf32=True),
    "conv2d_relu_max_pool2d": Operation(conv2d_relu_max_pool2d, exact=True, tf32=True),
    "conv_transpose2d": Operation(conv_transpose2d, exact=True, tf32=True),
    "max_pool2d": Operation(max_pool2d, exact=True),
    "linear": Operation(linear, exact=True, tf32=True),
    "linear + relu": Operation(linear_relu, exact=True, tf32=True),
    "linear + sigmoid": Operation(linear_sigmoid),
    "relu": Operation(relu, exact=True),
    "sigmoid": Operation(elementwise(F.sigmoid)),
    "step": Operation(elementwise(F.step), exact=True),
    "softmax": Operation(softmax),
    "mse_loss": Operation(mse_loss),
    "cross_entropy": Operation(cross_entropy),
    "SGD": Operation(sgd),
    "LeNet, training step": Operation(lenet, heavy=True, dtypes=(torch.bfloat16, torch.float32)),
    "large offsets": Operation(large_offsets, dtypes=(torch.float16,)),
}
