"""A network as one CUDA kernel: judged by a loop of torch in float64, on grids of any size, with races looked for."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import devices
import pytest
import torch
import torch.nn.functional as F
from network_judge import changed, check_scores, parameters
from network_judge import check_step as judge_step
from torch import Tensor

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


def check_step(model: Model, images: Tensor, targets: Tensor) -> None:
    """Takes one step, which torch takes in float64 from the same state."""

    def take() -> tuple[Tensor, Tensor, list[Tensor | None]]:
        losses, correct = model.step(images, targets)
        assert losses.shape == correct.shape == (1,)
        return losses[0], correct[0], model.buffers

    count = len(model.buffers)
    before = [None] * count if model.first else model.buffers
    judge_step(model.network, images, targets, [{"lr": model.lr, **model.options}] * count, before, take)


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
    images, _ = shape.batch(7, loss)
    check_scores(model.network, images, launchers.network_forward(model.network, images))


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
    monkeypatch.setattr(driver, "limits", lambda like: driver.Limits(80, 108, 163 << 10, 164 << 10))
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
    monkeypatch.setattr(driver, "limits", lambda like: driver.Limits(75, 1, 48 << 10, 64 << 10))
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
