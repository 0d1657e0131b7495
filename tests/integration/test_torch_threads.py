"""Threads and processes: the same bits however many threads there are and whoever else calls, and safe forks."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch
from models import Net, loss_and_gradients
from torch import Tensor

import kernels.functional as F
import kernels.nn as nn
from kernels.numpy.blas import one_blas_thread
from kernels.numpy.threads import WORTH_A_THREAD, _lock, both, for_each

pytestmark = pytest.mark.usefixtures("backend")

BATCH = 1100  # enough for several threads


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def results(function: Any, *shapes: tuple[int, ...]) -> list[Tensor]:
    """An operation's output on a large batch and the gradients."""
    inputs = tensors(*shapes)
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, torch.linspace(-1, 1, y.numel()).view_as(y))]


CASES = {
    "conv2d": (F.conv2d, (BATCH, 3, 12, 12), (5, 3, 3, 3), (5,)),
    "conv2d_relu_max_pool2d": (F.conv2d_relu_max_pool2d, (BATCH, 3, 12, 12), (5, 3, 3, 3), (5,)),
    "conv2d_relu_max_pool2d, a tile": (F.conv2d_relu_max_pool2d, (64, 6, 14, 14), (16, 6, 5, 5), (16,)),
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2), (BATCH, 3, 12, 12)),
    "linear_relu": (F.linear_relu, (BATCH, 90), (30, 90), (30,)),
    "relu": (F.relu, (BATCH, 1000)),
    "sigmoid": (F.sigmoid, (BATCH, 1000)),
    "softmax": (lambda x: F.softmax(x, 1), (BATCH, 100)),
    "mse_loss": (F.mse_loss, (BATCH, 100), (BATCH, 100)),
    "cross_entropy": (F.cross_entropy, (BATCH, 1000), (BATCH, 1000)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_number_of_threads_changes_no_bit(case: Any) -> None:
    each = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        each.append(results(*case))
    for other in each[1:]:
        assert all(torch.equal(a, b) for a, b in zip(each[0], other, strict=True))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_repetition_changes_no_bit(case: Any) -> None:
    first, *others = [results(*case) for _ in range(3)]
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("batch", (3, BATCH))
def test_many_callers_at_once(batch: int) -> None:
    """Work memory belongs to a thread: callers do not see each other's."""
    torch.manual_seed(0)
    nets = [Net() for _ in range(4)]
    data = [(torch.randn(batch // (i + 1) + 1, 1, 32, 32), torch.randn(batch // (i + 1) + 1, 10)) for i in range(4)]
    expected = [loss_and_gradients(net, *pair) for net, pair in zip(nets, data, strict=True)]
    found: list[Any] = [None] * 4
    barrier = threading.Barrier(4, timeout=60)

    def run(i: int) -> None:
        barrier.wait()
        found[i] = [loss_and_gradients(nets[i], *data[i]) for _ in range(2)]

    callers = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(120)
    for once, several in zip(expected, found, strict=True):
        for other in several:
            torch.testing.assert_close(other, once, rtol=0, atol=0)


def test_results_are_not_work_memory() -> None:
    """A later call must not write over what an earlier one returned."""
    convolve = nn.Conv2d(3, 5, 3)
    with torch.no_grad():
        for batch in (2, BATCH):
            first = convolve(torch.ones(batch, 3, 12, 12))
            kept = first.clone()
            convolve(torch.zeros(batch, 3, 12, 12))
            assert torch.equal(first, kept)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_computes() -> None:
    """Threads do not survive a fork: a child that waited for its parent's would hang, as torch's own operations may."""
    torch.set_num_threads(2)
    arguments = tensors((BATCH, 3, 12, 12), (5, 3, 3, 3), (5,))
    expected = convolved(arguments).numpy()
    locks = _lock, one_blas_thread._lock
    for lock in locks:
        lock.acquire()  # as another thread might have at this moment, which would not live in the child to release it
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if np.array_equal(convolved(arguments).numpy(), expected) else 2
        finally:
            os._exit(status)
    for lock in locks:
        lock.release()
    deadline = time.monotonic() + 60
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(status) == 0
    assert np.array_equal(convolved(arguments).numpy(), expected)


def convolved(arguments: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return F.conv2d(*arguments)


class Convolved(torch.utils.data.Dataset):
    """A data set whose workers convolve."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Tensor:
        with torch.no_grad():
            return F.conv2d(torch.full((BATCH, 1, 6, 6), float(i)), torch.ones(1, 1, 3, 3))[0]


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_data_loader_workers() -> None:
    convolved(tensors((BATCH, 3, 12, 12), (5, 3, 3, 3)))
    loader = torch.utils.data.DataLoader(Convolved(), num_workers=2, timeout=60, multiprocessing_context="fork")
    assert [float(image.mean()) for image in loader] == [0.0, 9.0, 18.0, 27.0]


@pytest.mark.parametrize(("batch", "held"), ((1, False), (16, True)))
def test_blas_is_held_where_it_would_start_threads(monkeypatch: pytest.MonkeyPatch, batch: int, held: bool) -> None:
    limits: list[int] = []
    monkeypatch.setattr("kernels.numpy.blas._set_threads", lambda library, count: limits.append(count))
    layer = nn.Linear(400, 120)
    layer(torch.randn(batch, 400)).sum().backward()
    assert (1 in limits) == held


def test_both_where_no_thread_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy:
        def submit(self, *work: Any) -> Future[Any]:
            return Future()

    monkeypatch.setattr("kernels.numpy.threads._pool", lambda threads: Busy())
    torch.set_num_threads(2)
    assert both(lambda: "first", lambda: "second", WORTH_A_THREAD) == ("first", "second")


def test_both_takes_no_thread_more_than_allowed() -> None:
    torch.set_num_threads(2)
    gate = threading.Barrier(2, timeout=60)  # so that both threads have their share

    def on_which_threads(_: int) -> tuple[int, int]:
        gate.wait()
        return both(lambda: (time.sleep(0.05), threading.get_ident())[1], threading.get_ident, WORTH_A_THREAD)

    first, second = zip(*for_each(range(4), on_which_threads), strict=True)
    assert first == second and len(set(first)) == 2
    (first, _), (second, _) = both(lambda: on_which_threads(0), lambda: on_which_threads(1), WORTH_A_THREAD)
    assert first != second


def test_images_a_power_of_two_apart() -> None:
    """They are copied on their way to having the batch innermost, in several tiles and from a part of a batch."""
    x = torch.randint(-9, 9, (200, 2, 32, 32)).float()
    weight = torch.randint(-9, 9, (3, 2, 3, 3)).float()
    with torch.no_grad():
        for images in (x, x[5:70], x[:, :1].expand(-1, 2, -1, -1)):
            assert torch.equal(F.conv2d(images, weight), torch.nn.functional.conv2d(images, weight))
            assert torch.equal(F.max_pool2d(images, 2), torch.nn.functional.max_pool2d(images, 2))
