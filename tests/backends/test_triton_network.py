"""A network as one kernel in Triton: its programs wait for each other, and their number changes no bit."""

import os
from itertools import pairwise

import pytest
import torch
from devices import running
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kernels.ops.network import Convolution, Linear, Network, Update

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


def momentum(p: torch.Tensor) -> Update:
    """SGD's, of a step that is not the first."""
    return Update(p, p.clone(), 0.1, None, 0.9, 0.0, 0.0, nesterov=False, maximize=False, first=False)


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
@settings(max_examples=1)
@given(
    st.sampled_from(("80", "90")), st.sampled_from(("float32", "tf32")), st.integers(1, 4),
    st.tuples(st.integers(3, 32), st.integers(3, 64)), st.sampled_from((3, 5)), st.integers(0, 2),
    st.sampled_from((20, 32, 45)), st.sampled_from(((), (100,), (120, 84))), st.integers(2, 20),
    st.sampled_from(("mse", "cross_entropy")), st.booleans(),
)  # fmt: skip
@example("90", "tf32", 1, (6, 16), 5, 0, 32, (120, 84), 10, "mse", False)  # LeNet
def test_nothing_spills(
    target: str, precision: str, channels: int, maps: tuple[int, int], kernel: int, padding: int, size: int,
    hidden: tuple[int, ...], classes: int, loss: str, in_order: bool,
) -> None:  # fmt: skip
    """Whatever network a user brings: a phase has all registers, for nothing of the others is kept in them.

    Not where an operation's own kernel takes more than all, as for gradients of over 32 maps in TF32 on sm_90.
    """
    from benchmarks.compile.triton import build
    from kernels.triton.network import network_forward, network_step

    images, convolutions = torch.zeros(2, channels, size, size), []
    for i, o in pairwise((channels, *maps)):
        convolutions.append(Convolution(torch.zeros(o, i, kernel, kernel), torch.zeros(o), (padding, padding)))
        size = (size + 2 * padding - kernel + 1) // 2
    widths = (maps[-1] * size * size, *hidden, classes)
    layers = Network(convolutions, [Linear(torch.zeros(o, i), torch.zeros(o)) for i, o in pairwise(widths)])
    updates = [momentum(p) for layer in (*layers.convolutions, *layers.linears) for p in (layer.weight, layer.bias)]
    targets = torch.zeros(2, classes) if loss == "mse" else torch.zeros(2, dtype=torch.int64)
    order = torch.arange(2) if in_order else None
    calls = [
        lambda: network_forward(layers, images),
        lambda: network_step(layers, images, targets, loss, updates, order, 2),
    ]
    rows = build(target, precision, calls)
    assert {row.kernel for row in rows} >= {"network_forward_kernel", "network_step_kernel"}
    assert [row for row in rows if row.spilled] == []


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="Triton interprets; run pytest --compiled")
def test_another_batch_size_compiles_nothing() -> None:
    from benchmarks.compile.triton import compiling_for
    from kernels.triton import network as by_triton

    layers, params = network()
    updates = [momentum(p) for p in params]
    kernels = by_triton.network_forward_kernel, by_triton.network_step_kernel
    with compiling_for("80") as device:
        for batch in (1, 16, 65, 300):
            images, targets = torch.zeros(2 * batch, 2, 12, 12), torch.zeros(2 * batch, 5)
            by_triton.network_forward(layers, images)
            by_triton.network_step(layers, images, targets, "mse", updates, None, batch)
            assert [len(kernel.device_caches[device][0]) for kernel in kernels] == [1, 1]
