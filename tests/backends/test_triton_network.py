"""A network as one kernel in Triton: its programs wait for each other, and their number changes no bit."""

import os

import pytest
import torch
from devices import running

from kernels.integration.layers import layers_of
from kernels.ops.network import Convolution, Linear, Network, Update
from lenet import LeNet

pytest.importorskip("triton")


def network() -> tuple[Network, list[torch.Tensor]]:
    """Two convolutions and two linear layers, and their parameters."""

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape) * 0.3

    convolutions = (
        Convolution(values(3, 2, 3, 3), values(3), (1, 1)),
        Convolution(values(4, 3, 3, 3), None, (0, 0)),
    )
    linears = (Linear(values(7, 16), values(7)), Linear(values(5, 7), values(5)))
    return Network(convolutions, linears), [
        t for layer in (*convolutions, *linears) for t in layer[:2] if t is not None
    ]


def trained(programs: int, monkeypatch: pytest.MonkeyPatch, loss: str, in_order: bool = False) -> list[torch.Tensor]:
    """The losses, counts and parameters after three steps on seven images, by so many programs, and then the scores.

    Images and targets have their order already, or the kernel takes them in it.
    """
    from kernels.triton import network as by_triton

    monkeypatch.setattr(by_triton, "programs", lambda like: programs)
    monkeypatch.setattr(by_triton, "BLOCK_P", 128)  # of the 288 pixels of an image
    torch.manual_seed(0)
    layers, params = network()
    images = torch.randn(7, 2, 12, 12)
    targets = torch.randn(7, 5) if loss == "mse" else torch.randint(5, (7,))
    updates = [
        Update(p, torch.empty_like(p), 0.1, None, 0.9, 0.1, 0.01, nesterov=False, maximize=False, first=True)
        for p in params
    ]
    order = torch.tensor([3, 6, 0, 0, 5, 1, 2])
    taken = (
        (images[order], targets[order], loss, updates, None) if in_order else (images, targets, loss, updates, order)
    )
    losses, correct = by_triton.network_step(layers, *taken, 3)
    return [losses, correct, *params, by_triton.network_forward(layers, images)]


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="Triton interprets; run pytest --compiled")
@pytest.mark.parametrize("loss", ("mse", "cross_entropy"))
def test_the_number_of_programs_changes_no_bit(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One counter serves all launches: each leaves it zero but for its highest bit, which an odd number of waits has changed."""
    from kernels.triton import network as by_triton

    results, left = [], []
    with running("triton"):
        counter = torch.zeros((), dtype=torch.int32)
        monkeypatch.setattr(by_triton, "grid_counter", lambda like: counter)
        for programs in (1, 3, 20):
            results.append(trained(programs, monkeypatch, loss))
            left.append(counter.item())
        results.append(trained(3, monkeypatch, loss, in_order=True))
    waits = 1 + 3 * (4 + 1 + 4 + 1) - 1 + 3  # the images of the first step; steps, but for the end; the forward pass
    assert waits % 2 and left == [-(2**31), 0, -(2**31)]
    one, *others = results
    assert all(torch.equal(expected, found) for other in others for expected, found in zip(one, other, strict=True))


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="Triton interprets; run pytest --compiled")
@pytest.mark.parametrize("target", ("80",))
def test_no_loop_has_spills(target: str) -> None:
    from benchmarks.compile.triton import build
    from kernels.triton.network import network_forward, network_step

    model = LeNet()
    layers, params = layers_of(model, "this test").network(), list(model.parameters())
    updates = [Update(p, p.clone(), 0.1, None, 0.9, 0.0, 0.0, False, False, False) for p in params]
    images = torch.zeros(64, 1, 32, 32)
    calls = [
        lambda: network_forward(layers, images),
        lambda: network_step(layers, images, torch.zeros(64, 10), "mse", updates, None, 64),
    ]
    rows = build(target, "float32", calls)
    assert {row.kernel for row in rows} >= {"network_forward_kernel", "network_step_kernel"}
    assert [row for row in rows if not row.fits] == []


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="Triton interprets; run pytest --compiled")
def test_another_batch_size_compiles_nothing() -> None:
    from benchmarks.compile.triton import compiling_for
    from kernels.triton import network as by_triton

    layers, params = network()
    updates = [Update(p, p.clone(), 0.1, None, 0.9, 0.0, 0.0, False, False, False) for p in params]
    kernels = by_triton.network_forward_kernel, by_triton.network_step_kernel
    with compiling_for("80") as device:
        for batch in (1, 16, 65, 300):
            images, targets = torch.zeros(2 * batch, 2, 12, 12), torch.zeros(2 * batch, 5)
            by_triton.network_forward(layers, images)
            by_triton.network_step(layers, images, targets, "mse", updates, None, batch)
            assert [len(kernel.device_caches[device][0]) for kernel in kernels] == [1, 1]
