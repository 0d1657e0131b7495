"""torch.distributed around our modules: two processes on the CPU, which talk over gloo."""

import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import kernels

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")


def child(rank: int, work: Callable[..., None], meeting_place: str, *args: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{meeting_place}", rank=rank, world_size=2)
    work(rank, *args)
    dist.destroy_process_group()
    gc.collect()  # what holds the group, as FSDP's states do in a circle, so that gloo's threads end before Python does


@pytest.fixture
def in_two_processes(tmp_path: Path) -> Callable[..., None]:
    """Runs `work(rank, *args)` with ranks 0 and 1; what one raises fails the test."""

    def run(work: Callable[..., None], *args: Any) -> None:
        torch.multiprocessing.spawn(child, (work, str(tmp_path / "meeting-place"), *args), nprocs=2)

    return run


def small_net(memory_format: torch.memory_format = torch.contiguous_format) -> nn.Sequential:
    """A network of torch's modules, swapped; float64, so that another order of sums shows in the last digits only."""
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 1), nn.Sigmoid(), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(6 * 3 * 3, 5))
    kernels.swap(net)
    return net.to(torch.float64).to(memory_format=memory_format)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(6, 1, 8, 8, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)


def data_parallel(rank: int, *memory_formats: torch.memory_format) -> None:
    warnings.simplefilter("error")  # DistributedDataParallel warns of gradients with other strides than their buckets
    for memory_format in memory_formats:
        compare_data_parallel(rank, small_net(memory_format))


def compare_data_parallel(rank: int, net: nn.Sequential) -> None:
    x, target = batch()
    kernels.functional.mse_loss(net(x), target).backward()
    expected = [p.grad.clone() for p in net.parameters()]
    parallel = DistributedDataParallel(net)
    for _ in range(2):  # the second time the buckets are there
        net.zero_grad()
        kernels.functional.mse_loss(parallel(x[rank::2]), target[rank::2]).backward()
        torch.testing.assert_close([p.grad for p in net.parameters()], expected)
        assert [p.grad.stride() for p in net.parameters()] == [p.stride() for p in net.parameters()]


def test_data_parallel_gradients(in_two_processes: Callable[..., None]) -> None:
    """Those of one process with the whole batch, and torch has nothing to warn of."""
    in_two_processes(data_parallel, torch.contiguous_format, torch.channels_last)


def sharded(rank: int, *optimizers: type[torch.optim.Optimizer]) -> None:
    for sgd in optimizers:
        compare_sharded(rank, sgd)


def compare_sharded(rank: int, sgd: type[torch.optim.Optimizer]) -> None:
    from torch.distributed.fsdp import fully_shard

    whole, shards = small_net(), small_net()
    shards.load_state_dict(whole.state_dict())
    for layer in shards:
        if next(layer.parameters(), None) is not None:
            fully_shard(layer)
    fully_shard(shards)
    x, target = batch()
    for net, part in ((whole, slice(None)), (shards, slice(rank, None, 2))):
        optimizer = sgd(net.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            kernels.functional.mse_loss(net(x[part]), target[part]).backward()
            optimizer.step()
    assert any(p.to_local().shape != p.shape for p in shards.parameters())
    torch.testing.assert_close([p.full_tensor() for p in shards.parameters()], list(whole.parameters()))


def test_fully_sharded(in_two_processes: Callable[..., None]) -> None:
    """Two steps of a swapped model under FSDP2 are those of the model in one piece, with torch's SGD and with ours."""
    in_two_processes(sharded, torch.optim.SGD, kernels.optim.SGD)
