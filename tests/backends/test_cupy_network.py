"""A network as one CUDA kernel: judged by a loop of torch in float64, on grids of any size, with races looked for."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import devices
import pytest
import torch
import torch.nn.functional as F
from judge import assert_near
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

cupy = pytest.importorskip("cupy")

from cupy.cuda import nvrtc  # noqa: E402

from kernels.cupy import launch as driver  # noqa: E402
from kernels.cupy import network as launchers  # noqa: E402
from kernels.cupy.network import shapes  # noqa: E402
from kernels.cupy.network_plan import plan  # noqa: E402
from kernels.ops.network import Convolution, Linear, Network, Update  # noqa: E402

LOSSES = "mse", "cross_entropy"


class Shape(NamedTuple):
    """image (C, H, W); convolutions (maps, KH, KW, padding of the height, of the width); outputs of the linear layers."""

    image: tuple[int, int, int]
    convolutions: Sequence[tuple[int, int, int, int, int]]
    linears: Sequence[int]
    bias: bool = True

    def network(self) -> Network:
        """With random parameters."""
        channels, h, w = self.image
        convolutions, linears = [], []
        for maps, kh, kw, ph, pw in self.convolutions:
            scale = (channels * kh * kw) ** -0.5
            convolutions.append(
                Convolution(scale * torch.randn(maps, channels, kh, kw), self._bias(maps, scale), (ph, pw))
            )
            channels, h, w = maps, (h + 2 * ph - kh + 1) // 2, (w + 2 * pw - kw + 1) // 2
        inputs = channels * h * w
        for outputs in self.linears:
            scale = inputs**-0.5
            linears.append(Linear(scale * torch.randn(outputs, inputs), self._bias(outputs, scale)))
            inputs = outputs
        return Network(tuple(convolutions), tuple(linears))

    def _bias(self, length: int, scale: float) -> Tensor | None:
        return scale * torch.randn(length) if self.bias else None

    def batch(self, n: int, loss: str) -> tuple[Tensor, Tensor]:
        """Images and targets."""
        classes = self.linears[-1]
        targets = torch.rand(n, classes) if loss == "mse" else torch.randint(classes, (n,))
        return torch.randn(n, *self.image), targets


LENET = Shape((1, 32, 32), [(6, 5, 5, 0, 0), (16, 5, 5, 0, 0)], [120, 84, 10])
SMALL = Shape((1, 11, 10), [(4, 3, 3, 0, 0)], [6])
TWO = Shape((2, 14, 13), [(5, 3, 3, 0, 0), (3, 3, 2, 0, 0)], [9, 4])
SHAPES = {
    "one convolution": SMALL,
    "two convolutions": TWO,
    "no bias": TWO._replace(bias=False),
    "padding": Shape((3, 9, 10), [(4, 5, 5, 2, 2), (6, 3, 3, 1, 1)], [20]),
    "more padding than window": Shape((2, 6, 7), [(2, 2, 1, 2, 1), (5, 1, 2, 1, 2)], [7, 5, 3]),
    "windows of even and odd length": Shape((1, 13, 12), [(3, 4, 2, 1, 0), (2, 1, 4, 0, 2)], [3]),
    "three convolutions": Shape((1, 24, 22), [(2, 3, 3, 0, 0), (9, 3, 3, 1, 1), (5, 3, 3, 1, 0)], [33]),
    "no convolution": Shape((2, 3, 5), [], [40, 7]),
    "one linear layer": Shape((1, 1, 300), [], [50]),
    "one class": Shape((1, 6, 6), [(1, 3, 3, 0, 0)], [1]),
}


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


def double(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def forward(network: Network, x: Tensor) -> Tensor:
    """Scores, by torch."""
    for layer in network.convolutions:
        x = F.max_pool2d(F.relu(F.conv2d(x, layer.weight, layer.bias, padding=layer.padding)), 2)
    x = x.flatten(1)
    for layer in network.linears[:-1]:
        x = F.relu(F.linear(x, layer.weight, layer.bias))
    return F.linear(x, network.linears[-1].weight, network.linears[-1].bias)


class Value(NamedTuple):
    """A number in float64, and the magnitude of its error as the tolerance rule has it, for one term."""

    value: Tensor
    error: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "Value":
        return Value(function(self.value), function(self.error))


def product(function: Callable[[Tensor, Tensor], Tensor], a: Value, b: Value) -> Value:
    """A bilinear function: its own error is that of a sum, sqrt(terms) times its magnitude; those of a and b pass on."""
    x, y = a.value.abs(), b.value.abs()
    terms = function(torch.ones_like(x), torch.ones_like(y))
    error = terms.sqrt() * function(x, y) + function(a.error, y) + function(x, b.error)
    return Value(function(a.value, b.value), error)


def added(a: Value, bias: Value | None, shape: tuple[int, ...]) -> Value:
    return a if bias is None else Value(*(x + y.view(shape) for x, y in zip(a, bias, strict=True)))


def exact(tensor: Tensor | None) -> Value | None:
    """What is given; where it is added, that rounds the sum."""
    return None if tensor is None else Value(double(tensor), double(tensor).abs())


class Errors:
    """How far scores, loss and gradients of a batch may be off: the rule for every layer, one after the other."""

    def __init__(self, network: Network, images: Tensor, targets: Tensor) -> None:
        x = Value(double(images), torch.zeros_like(double(images)))
        inputs, maxima = [], []
        for s in network.convolutions:
            inputs.append(x)
            z = product(lambda a, b, p=s.padding: F.conv2d(a, b, padding=p), x, self._given(s.weight))
            z = added(z, exact(s.bias), (-1, 1, 1))
            y, places = F.max_pool2d(z.value, 2, return_indices=True)
            x = Value(y, F.max_pool2d(z.error, 2)).map(lambda t, y=y: torch.where(y <= 0, 0, t))
            maxima.append((places, z.value.shape, y))
        pooled, x = x, x.map(lambda t: t.flatten(1))
        for k, s in enumerate(network.linears):
            inputs.append(x)
            z = added(product(F.linear, x, self._given(s.weight)), exact(s.bias), (-1,))
            x = z.map(lambda t, z=z.value: torch.where(z <= 0, 0, t)) if k < len(network.linears) - 1 else z
        self.scores, mse = x.error, targets.is_floating_point()
        targets = double(targets) if mse else targets.cpu()
        loss, dy = self._mse(x, targets) if mse else self._cross_entropy(x, targets)

        gradients: list[list[Value]] = []
        for s in reversed(network.linears):
            x = inputs.pop()
            dbias = [] if s.bias is None else [self._sum(dy, (0,))]
            gradients.insert(0, [product(lambda dy, x: dy.t() @ x, dy, x), *dbias])
            dx = product(lambda dy, weight: dy @ weight, dy, self._given(s.weight))
            dy = dx.map(lambda t, x=x.value: torch.where(x <= 0, 0, t))
        dy = dx.map(lambda t: t.view_as(pooled.value))
        for s in reversed(network.convolutions):
            x, (places, shape, y) = inputs.pop(), maxima.pop()
            dy = dy.map(lambda t, y=y: torch.where(y <= 0, 0, t))
            dy = dy.map(lambda t, i=places, shape=shape: F.max_unpool2d(t, i, 2, output_size=shape[2:]))
            dbias = [] if s.bias is None else [self._sum(dy, (0, 2, 3))]
            weight = self._given(s.weight)
            dweight = product(lambda dy, x, s=s: conv2d_weight(x, s.weight.shape, dy, padding=s.padding), dy, x)
            gradients.insert(0, [dweight, *dbias])
            dy = product(lambda dy, w, x=x.value, p=s.padding: conv2d_input(x.shape, w, dy, padding=p), dy, weight)
        self.loss, self.gradients = loss.error, [gradient.error for layer in gradients for gradient in layer]

    @staticmethod
    def _given(tensor: Tensor) -> Value:
        return Value(double(tensor), torch.zeros_like(double(tensor)))

    @staticmethod
    def _sum(dy: Value, dims: tuple[int, ...]) -> Value:
        terms = dy.value.numel() / dy.value.sum(dims).numel()
        return Value(dy.value.sum(dims), terms**0.5 * dy.value.abs().sum(dims) + dy.error.sum(dims))

    @staticmethod
    def _mse(scores: Value, targets: Tensor) -> tuple[Value, Value]:
        off, n = scores.value - targets, targets.numel()
        error = scores.error + off.abs()
        loss = off.square().mean()
        return Value(loss, n**0.5 * loss + 2 * (off.abs() * error).mean()), Value(
            2 * off / n, 2 * (error + off.abs()) / n
        )

    @staticmethod
    def _cross_entropy(scores: Value, labels: Tensor) -> tuple[Value, Value]:
        """exp turns the error of a score into a relative one."""
        p = scores.value.softmax(1)
        below = scores.value.amax(1, keepdim=True) - scores.value
        relative = scores.error + scores.error.amax(1, keepdim=True) + below + p.shape[1] ** 0.5
        error = p * (relative + (p * relative).sum(1, keepdim=True))
        loss = F.cross_entropy(scores.value, labels)
        dy = p - F.one_hot(labels, p.shape[1])
        return Value(loss, relative.amax(1).mean() * 2 + len(p) ** 0.5 * loss), Value(
            dy / len(p), (error + dy.abs()) / len(p)
        )


class Model:
    """A network with the state of its optimizer."""

    def __init__(self, network: Network, lr: float | Tensor, momentum: float = 0, **options: Any) -> None:
        self.network, self.lr = network, lr
        self.options = {"momentum": momentum, "dampening": 0, "weight_decay": 0, "nesterov": False, "maximize": False}
        self.options |= options
        self.buffers = [torch.full_like(p, torch.nan) if momentum else None for p in parameters(network)]
        self.first = True

    def copy(self) -> "Model":
        made = Model(changed(self.network, torch.clone), self.lr, **self.options)
        made.buffers, made.first = [b if b is None else b.clone() for b in self.buffers], self.first
        return made

    def step(
        self, images: Tensor, targets: Tensor, order: Tensor | None = None, batch_size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """By the kernel: losses and how many images are classified correctly."""
        lr, lr_tensor = (0.0, self.lr) if isinstance(self.lr, Tensor) else (self.lr, None)
        updates = [
            Update(p, buffer, lr, lr_tensor, first=self.first, **self.options)
            for p, buffer in zip(parameters(self.network), self.buffers, strict=True)
        ]
        self.first = False
        loss = "mse" if targets.is_floating_point() else "cross_entropy"
        return launchers.network_step(self.network, images, targets, loss, updates, order, batch_size or len(images))

    def state(self) -> list[Tensor]:
        return [*parameters(self.network), *(b for b in self.buffers if b is not None)]


def near(result: Tensor, judged: Tensor, error: Tensor) -> None:
    """By the rule; an error that is no number is as large as can be."""
    assert_near(result.cpu(), judged, 1, error.nan_to_num(nan=torch.inf, posinf=torch.inf))


def check_step(model: Model, images: Tensor, targets: Tensor) -> None:
    """Takes one step, which torch takes in float64 from the same state."""
    errors = Errors(model.network, images, targets)
    judged = changed(model.network, lambda p: double(p).requires_grad_())
    params, first, o = parameters(judged), model.first, model.options
    old = [None if buffer is None else double(buffer) for buffer in model.buffers]
    sgd = torch.optim.SGD(params, float(model.lr), **o)
    if not first:
        for p, buffer in zip(params, old, strict=True):
            sgd.state[p]["momentum_buffer"] = None if buffer is None else buffer.clone()
    before = [p.detach().clone() for p in params]
    scores = forward(judged, double(images))
    if targets.is_floating_point():
        loss, labels = F.mse_loss(scores, double(targets)), targets.cpu().argmax(1)
    else:
        loss, labels = F.cross_entropy(scores, targets.cpu()), targets.cpu()
    loss.backward()
    sgd.step()

    losses, correct = model.step(images, targets)
    near(losses[0], loss.detach(), errors.loss)
    assert correct.tolist() == [int((scores.argmax(1) == labels).sum())]
    for k, (p, error) in enumerate(zip(params, errors.gradients, strict=True)):
        error = error + 2 * o["weight_decay"] * before[k].abs()
        if o["momentum"]:
            if not first:
                error = 2 * o["momentum"] * old[k].abs() + (1 - o["dampening"]) * error
            near(model.buffers[k], sgd.state[p]["momentum_buffer"], error)
            error = error + 2 * o["momentum"] * error if o["nesterov"] else error
        near(parameters(model.network)[k], p.detach(), before[k].abs() + 2 * float(model.lr) * error)


@pytest.fixture(autouse=True)
def running() -> Iterator[None]:
    with devices.running("cupy"):
        yield


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many blocks a launch has."""

    def set_blocks(blocks: int) -> None:
        monkeypatch.setattr(launchers, "most_blocks", lambda *_: blocks)

    return set_blocks


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(grid: Any, name: str, loss: str) -> None:
    grid(4)
    shape = SHAPES[name]
    model = Model(shape.network(), lr=0.1, momentum=0.9)
    for n in (3, 2):
        check_step(model, *shape.batch(n, loss))
    images, targets = shape.batch(7, loss)
    errors = Errors(model.network, images, targets)
    near(
        launchers.network_forward(model.network, images),
        forward(changed(model.network, double), double(images)),
        errors.scores,
    )


@pytest.mark.parametrize("n", (1, 2, 5, 65, 257))
def test_batch_sizes(grid: Any, n: int) -> None:
    """More images than the update stages at a time, and than there are splits."""
    grid(7)
    shape = SHAPES["one class"]._replace(linears=[3])
    model = Model(shape.network(), lr=0.1, momentum=0.9)
    for _ in range(2):
        check_step(model, *shape.batch(n, "cross_entropy"))


def test_parameters_in_one_vector(grid: Any) -> None:
    """As views of it they lie at any multiple of 4 bytes."""
    grid(4)
    shape = Shape((1, 10, 10), [(4, 3, 3, 0, 0)], [12, 8])
    network = shape.network()
    lengths = [p.numel() for p in parameters(network)]
    flat = iter(torch.empty(1 + sum(lengths))[1:].split(lengths))
    views = changed(network, lambda p: next(flat).view_as(p).copy_(p))
    assert any(layer.weight.data_ptr() % 16 for layer in views.linears)
    model = Model(views, lr=0.1)
    for _ in range(2):
        check_step(model, *shape.batch(3, "mse"))


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum and dampening": {"momentum": 0.9, "dampening": 0.4},
    "nesterov and weight decay": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    "maximize": {"maximize": True, "weight_decay": 0.1},
    "everything": {"momentum": 0.7, "dampening": 0.2, "weight_decay": 0.3, "maximize": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("tensor", (False, True), ids=("number", "tensor"))
def test_options(grid: Any, options: dict[str, Any], tensor: bool) -> None:
    grid(3)
    model = Model(SMALL.network(), torch.tensor(0.05) if tensor else 0.05, **options)
    for _ in range(3):
        check_step(model, *SMALL.batch(3, "mse"))


@pytest.mark.parametrize("loss", LOSSES)
def test_one_launch_takes_the_steps_of_many(grid: Any, loss: str) -> None:
    """Bit for bit: an order, a smaller last batch, a rate for each step, options that differ between parameters."""
    grid(5)
    images, targets = TWO.batch(9, loss)
    order = torch.tensor([8, 0, 3, 3, 7, 1, 2, 6])
    rates = torch.tensor([0.3, 0.05, 0.2], dtype=torch.float64)
    network = TWO.network()
    alone = changed(network, torch.clone)
    settings = [
        (0.1 * (1 + k), rates if k % 3 == 0 else None, (k % 2) * 0.9, 0.2, 0.1 * k, False, k % 4 == 1, k < 4)
        for k in range(len(parameters(network)))
    ]

    def updates(network: Network) -> list[Update]:
        return [
            Update(p, torch.full_like(p, torch.nan if s[-1] else 0.5) if s[2] else None, *s)
            for p, s in zip(parameters(network), settings, strict=True)
        ]

    together = updates(network)
    losses, correct = launchers.network_step(network, images, targets, loss, together, order, 3)
    apart, results = updates(alone), []
    for step, batch in enumerate(order.split(3)):
        now = [
            u._replace(first=u.first and step == 0, lr_tensor=None if u.lr_tensor is None else rates[step].clone())
            for u in apart
        ]
        results.append(launchers.network_step(alone, images[batch], targets[batch], loss, now, None, len(batch)))
    assert torch.equal(losses, torch.cat([result[0] for result in results]))
    assert torch.equal(correct, torch.cat([result[1] for result in results]))
    for mine, other in zip(together, apart, strict=True):
        assert torch.equal(mine.param, other.param)
        assert mine.momentum_buffer is None or torch.equal(mine.momentum_buffer, other.momentum_buffer)


@pytest.mark.parametrize("name", ("two convolutions", "no convolution"))
def test_no_grid_changes_a_bit(grid: Any, name: str) -> None:
    """Fewer blocks than images, as many, more; fewer than tiles of the parameters, and more."""
    shape = SHAPES[name]
    images, targets = shape.batch(5, "mse")
    start, states = Model(shape.network(), lr=0.1, momentum=0.9), []
    for blocks in (1, 2, 5, 6, 40):
        grid(blocks)
        model = start.copy()
        losses, correct = model.step(images, targets, torch.tensor([4, 1, 0, 2, 3, 1, 4]), 5)
        states.append([losses, correct, *model.state(), launchers.network_forward(model.network, images)])
    for state in states[1:]:
        assert all(torch.equal(a, b) for a, b in zip(states[0], state, strict=True))


def test_more_splits_than_blocks(grid: Any) -> None:
    """Splits of several images, which one block takes or many."""
    shape = Shape((1, 4, 4), [(2, 3, 3, 0, 0)], [3])
    images, targets = shape.batch(300, "mse")
    start, states = Model(shape.network(), lr=0.1), []
    for blocks in (3, 160):
        grid(blocks)
        model = start.copy()
        states.append([*model.step(images, targets), *model.state()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


@pytest.mark.parametrize("loss", LOSSES)
def test_lenet(loss: str) -> None:
    """On the grid that the launcher chooses."""
    model = Model(LENET.network(), lr=0.1, momentum=0.9)
    check_step(model, *LENET.batch(3, loss))


@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf), ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_numbers_that_are_none(grid: Any, value: float, loss: str) -> None:
    grid(2)
    images, targets = TWO.batch(3, loss)
    images[1, 0, 4, 5] = value
    check_step(Model(TWO.network(), lr=0.1), images, targets)


def test_the_first_of_equal_maxima_takes_the_gradient(grid: Any) -> None:
    grid(2)
    network = SMALL.network()
    network.convolutions[0].weight.zero_()
    network.convolutions[0].bias.fill_(1)
    check_step(Model(network, lr=0.1), *SMALL.batch(2, "mse"))


def test_largest_scores() -> None:
    """The first of equal ones; NaN counts as the largest, as in torch.argmax."""
    weight = torch.tensor([[1.0], [3.0], [3.0], [0.0]])
    network = Network((), (Linear(weight, torch.tensor([0.0, 0.0, 0.0, torch.nan])),))
    images = torch.tensor([1.0, 2.0, 0.0]).view(3, 1, 1, 1)
    for bias, places in ((0.0, [1, 1, 0]), (torch.nan, [3, 3, 3])):
        network.linears[0].bias[3] = bias
        for wrong in (0, 1):
            labels = (torch.tensor(places) + wrong) % 4
            for targets in (labels, F.one_hot(labels, 4).float()):
                assert Model(network, lr=0.0).copy().step(images, targets)[1].item() == (0 if wrong else 3)


@pytest.mark.skipif(devices.GPU, reason="a GPU does not show in which order its blocks run")
@pytest.mark.parametrize("blocks", (2, 5))
def test_no_schedule_changes_a_bit(grid: Any, blocks: int) -> None:
    import ptxsim.cuda

    grid(blocks)
    images, targets = TWO.batch(5, "mse")
    model = Model(TWO.network(), lr=0.1, momentum=0.9)
    with ptxsim.cuda.cuda_device(arch=devices.arch, races=True, seed=100, seeds=6) as device:
        model.step(images, targets, batch_size=3)
    (launch,) = device.launches
    assert launch.grid == (blocks, 1, 1)
    assert launch.schedule_dependent == []


def test_the_counter_serves_every_launch(grid: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An odd number of barriers leaves its highest bit set."""
    counter = torch.zeros((), dtype=torch.int32)
    monkeypatch.setattr(launchers, "grid_counter", lambda like: counter)
    images, targets = SMALL.batch(2, "mse")
    start, states, left = Model(SMALL.network(), lr=0.1), [], []
    for blocks in (3, 4, 1):
        grid(blocks)
        model = start.copy()
        states.append([*model.step(images, targets), *model.state()])
        left.append(counter.item())
    assert left == [-(2**31), 0, -(2**31)]
    for state in states[1:]:
        assert all(torch.equal(a, b) for a, b in zip(states[0], state, strict=True))


@pytest.mark.parametrize(
    ("shape", "what"),
    (
        (Shape((3, 200, 200), [(4, 3, 3, 0, 0)], [10]), r"the input of convolutions\[0\] it takes 6\d\d,\d\d\d bytes"),
        (Shape((64, 12, 12), [(256, 3, 3, 0, 0)], [10]), r"the weight of convolutions\[0\]"),
        (Shape((1, 64, 64), [(3, 3, 3, 1, 1), (20, 3, 3, 1, 1)], [10]), r"the gradient before pooling of convolutions\[1\]"),
        (Shape((1, 1, 50000), [], [10]), r"the input of linears\[0\] it takes 200,000 bytes"),
        (Shape((1, 1, 2), [], [9, 42000]), r"the output of linears\[1\]"),
    ),
)  # fmt: skip
def test_what_does_not_fit(shape: Shape, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "limits", lambda like: driver.Limits(108, 163 << 10, 164 << 10))
    images, targets = shape.batch(1, "mse")
    with pytest.raises(RuntimeError, match=f"shared memory of a block: with {what}.*, this GPU has 166,912$"):
        Model(shape.network(), lr=0.1).step(images, targets)


def test_float64_is_refused() -> None:
    images, targets = SMALL.batch(1, "mse")
    network = changed(SMALL.network(), Tensor.double)
    with pytest.raises(RuntimeError, match="whole networks in torch.float32, got torch.float64"):
        launchers.network_forward(network, images.double())
    with pytest.raises(RuntimeError, match=r"torch.float32, got torch.float64"):
        Model(network, lr=0.1).step(images.double(), targets.double())


def test_what_does_not_fit_for_training_may_fit_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    images, targets = LENET.batch(1, "mse")
    network = LENET.network()
    monkeypatch.setattr(driver, "limits", lambda like: driver.Limits(1, 48 << 10, 64 << 10))
    assert launchers.network_forward(network, images).shape == (1, 10)
    with pytest.raises(RuntimeError, match="49,152"):
        Model(network, lr=0.1).step(images, targets)


@pytest.mark.parametrize("arch", (75, 80, 90, 100))
@pytest.mark.parametrize("file", ("network_step", "network_forward"))
def test_registers(file: str, arch: int) -> None:
    """BLOCKS blocks of LeNet's have registers enough on a multiprocessor, none of which goes to memory; sm_75 has 64 KB."""
    convolutions, linears = shapes(LENET.network())
    made = plan(LENET.image, convolutions, linears, file == "network_step", 64 << 10)
    constants = made.constants | ({"CROSS_ENTROPY": 1} if file == "network_step" else {})
    text = driver.source(file)
    program = nvrtc.createProgram(text, f"{file}.cu", (), ())
    nvrtc.compileProgram(
        program, (*driver.options(torch.float32, **constants), f"-arch=sm_{arch}", "--ptxas-options=-v")
    )
    said = nvrtc.getProgramLog(program)
    nvrtc.destroyProgram(program)
    assert re.findall(r"(\d+) bytes spill stores", said) == ["0"], said
