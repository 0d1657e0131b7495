"""torch.compile, torch.export and fake tensors: whole graphs, no needless recompilation, eager's numbers."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import generator_of
from models import Net, gradients
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

import kernels
import kernels.nn as nn
import kernels.optim as optim
from lenet import LeNet

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),  # of torch's compiler about torch
]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def batch(n: int) -> tuple[Tensor, Tensor]:
    generator = generator_of(n)
    return torch.randn(n, 1, 32, 32, generator=generator), torch.randn(n, 10, generator=generator)


def train(net: torch.nn.Module, transform: Any, sizes: tuple[int, ...]) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of a few steps on batches of these sizes, and the last gradients and parameters."""
    optimiser, criterion = optim.SGD(net.parameters(), lr=0.1, momentum=0.9), nn.MSELoss()
    loss_of = transform(lambda x, target: criterion(net(x), target))
    losses = []
    for n in sizes:
        optimiser.zero_grad()
        loss = loss_of(*batch(n))
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses, gradients(net) | dict(net.named_parameters())


def fused() -> LeNet:
    torch.manual_seed(0)
    return LeNet()


def separate() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.mark.parametrize("make", (fused, separate))
def test_training_equals_eager(make: Any) -> None:
    compiled = train(make(), lambda f: torch.compile(f, fullgraph=True, backend="aot_eager"), (4, 4, 4))
    torch.testing.assert_close(compiled, train(make(), lambda f: f, (4, 4, 4)))


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
def test_inductor() -> None:
    compiled = train(fused(), lambda f: torch.compile(f, fullgraph=True), (4, 4))
    torch.testing.assert_close(compiled, train(fused(), lambda f: f, (4, 4)))


@pytest.mark.parametrize("make", (fused, separate))
def test_a_batch_of_any_size_compiles_once(make: Any) -> None:
    counter, sizes = CompileCounterWithBackend("aot_eager"), (2, 3, 5, 8, 13)
    compiled = train(make(), lambda f: torch.compile(f, fullgraph=True, dynamic=True, backend=counter), sizes)
    assert counter.frame_count == 1
    torch.testing.assert_close(compiled, train(make(), lambda f: f, sizes))


def test_the_optimiser_step_compiles() -> None:
    results = []
    for transform in (lambda f: f, lambda f: torch.compile(f, backend="aot_eager")):
        p = torch.ones(3, requires_grad=True)
        optimiser = optim.SGD([p], lr=0.1, momentum=0.9, nesterov=True)
        step = transform(optimiser.step)
        for number in range(3):
            p.grad = torch.full((3,), float(number))
            step()
        results.append(p.detach())
    torch.testing.assert_close(*results)


OPERATIONS = {
    "conv2d": lambda x: nn.functional.conv2d(x, torch.ones(3, 2, 3, 3), stride=2, padding=1),
    "conv_transpose2d": lambda x: nn.functional.conv_transpose2d(x, torch.ones(2, 3, 3, 2), torch.ones(3), 2, 1, 1),
    "max_pool2d": lambda x: nn.functional.max_pool2d(x, 3, 2, 1, ceil_mode=True, return_indices=True)[0],
    "relu": lambda x: nn.functional.relu(x * 1, inplace=True),
    "sigmoid": nn.functional.sigmoid,
    "step": nn.functional.step,
    "softmax": lambda x: nn.functional.softmax(x, 1),
    "mse_loss": lambda x: nn.functional.mse_loss(x, torch.ones_like(x), reduction="none"),
    "cross_entropy": lambda x: nn.functional.cross_entropy(x, torch.ones_like(x)),
    "cross_entropy of classes": lambda x: nn.functional.cross_entropy(x, x[:, 0].gt(0).long(), label_smoothing=0.1),
    "linear": lambda x: nn.functional.linear(x, torch.ones(4, 6)),
    "conv2d_relu": lambda x: nn.functional.conv2d_relu(x, torch.ones(3, 2, 3, 3), padding="same"),
    "conv2d_relu_max_pool2d": lambda x: nn.functional.conv2d_relu_max_pool2d(x, torch.ones(3, 2, 3, 3), padding="same"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation(name: str) -> None:
    compiled = torch.compile(OPERATIONS[name], fullgraph=True, backend="aot_eager")
    results = []
    for function in (OPERATIONS[name], compiled):
        for x in (torch.randn(2, 2, 6, 6), torch.randn(2, 6, 6, 2).permute(0, 3, 1, 2), torch.randn(3, 2, 6, 6)):
            x = torch.arange(x.numel()).remainder(7).sub(3.0).view(x.shape).as_strided(x.shape, x.stride())
            x.requires_grad_()
            y = function(x)
            results.append((y.detach(), y.stride(), *torch.autograd.grad(y, x, torch.ones_like(y))))
    torch.testing.assert_close(results[:3], results[3:])


def test_the_chosen_backend_is_part_of_the_graph(backend: str) -> None:
    seen = []

    def look(graph: Any, inputs: Any) -> Any:
        seen.extend(node.args[-1] for node in graph.graph.nodes if "lenet_kernels" in str(node.target))
        return graph

    from torch._dynamo.backends.common import aot_autograd

    torch.compile(nn.functional.relu, fullgraph=True, backend=aot_autograd(fw_compiler=look))(torch.ones(2))
    assert seen == [backend]


@pytest.mark.parametrize("make", (fused, separate))
def test_export(make: Any) -> None:
    net, (x, _) = make().eval(), batch(3)
    size = torch.export.Dim("n", min=1, max=1024)
    exported = torch.export.export(net, (x,), dynamic_shapes=({0: size},))
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert any("lenet_kernels" in target for target in targets)
    for n in (1, 3, 9):
        torch.testing.assert_close(exported.module()(batch(n)[0]), net(batch(n)[0]))


def test_an_exported_program_in_a_file(tmp_path: Path) -> None:
    net = fused().eval()
    shapes = ({0: torch.export.Dim("n")},)
    torch.export.save(torch.export.export(net, batch(3)[:1], dynamic_shapes=shapes), tmp_path / "net.pt2")
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    torch.testing.assert_close(loaded(batch(9)[0]), net(batch(9)[0]))


@pytest.mark.parametrize("make", (fused, separate))
def test_fake_tensors(make: Any) -> None:
    """Shapes, strides and dtypes flow forward and backward without a number being computed."""
    with FakeTensorMode():
        net = make()
        output = net(torch.randn(5, 1, 32, 32))
        loss = nn.MSELoss()(output, torch.randn(5, 10))
        loss.backward()
        assert (output.shape, loss.shape) == ((5, 10), ())
        assert all(p.grad.shape == p.shape and p.grad.stride() == p.stride() for p in net.parameters())


def test_meta_tensors() -> None:
    with torch.device("meta"):
        assert kernels.functional.conv2d(torch.ones(2, 1, 8, 8), torch.ones(3, 1, 3, 3)).shape == (2, 3, 6, 6)
        assert LeNet()(torch.ones(2, 1, 32, 32)).shape == (2, 10)
