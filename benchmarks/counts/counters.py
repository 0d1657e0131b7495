"""Counts what the kernels of a LeNet training step do, in the simulator ptxsim: no GPU, and no times.

    python -m benchmarks.counts --backend triton --backend cupy --batch 64

The kernels are compiled for sm_80, the whole network's for sm_90 too, and run as PTX. Shares are of warp instructions issued; bytes are distinct ones that
the launches of an operation touch, against the compulsory: each of its inputs and outputs once. Sectors of global memory
and wavefronts of shared memory are against the ideal: the fewest that hold the bytes which the threads move. Of the whole network's kernels, whose blocks wait for each
other, the longest path is counted as well: of each phase between two waits the warp instructions of the block that
issues most, added up. It depends on how many blocks the GPU holds; GPUS names them.
"""

import contextlib
import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from unittest import mock

import pandas as pd
import torch
import typer
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import kernels
import kernels.flops
from benchmarks.bench_lenet import torch_lenet
from benchmarks.command import BACKENDS, RESULTS, Out, one_of
from benchmarks.exercise import training_step
from benchmarks.report import console
from kernels.check.run import precision
from kernels.integration.layers import layers_of
from kernels.ops.network import Update
from lenet import LeNet


class Row(NamedTuple):
    """One operation of the step; ratios are empty where there is nothing to divide by."""

    backend: str
    batch: int
    operation: str
    launches: int
    warp_instructions: int
    fma_share: float  # FMA and tensor core instructions of all
    multiply_adds: int  # useful: those of the formula
    issued_per_useful: float
    bytes: int
    bytes_per_compulsory: float
    sectors_per_ideal: float  # of global loads and stores
    wavefronts_per_ideal: float  # of shared memory


class Watch(TorchDispatchMode):
    """Counts every operator of ours in a `with` block; `device` records the launches."""

    def __init__(self, backend: str, batch: int, device: Any) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self._label, self._device = (backend, batch), device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._device.clear()
        results = func(*args, **kwargs or {})
        if func.namespace == "lenet_kernels":
            name = func._opname
            tensors = [value for value in tree_leaves((args, results)) if isinstance(value, Tensor)]
            compulsory = sum(distinct_bytes(tensor) for tensor in {id(t): t for t in tensors}.values())
            if name == "sgd":
                compulsory += sum(distinct_bytes(tensor) for tensor in (*args[0], *args[2]))  # written too
            counters = [launch.counters for launch in self._device.launches]
            self.rows.append(row(*self._label, name, counters, compulsory, multiply_adds(func, args, results)))
        return results


def row(backend: str, batch: int, name: str, counters: list[Any], compulsory: int, useful_fmas: int) -> Row:
    """The sums over an operation's launches."""

    def total(attribute: str) -> int:
        return sum(getattr(c, attribute) for c in counters)

    def ratio(above: float, below: float) -> float:
        return above / below if below else math.nan

    instructions = total("warp_instructions")
    fmas = sum(c.by_class.get(kind, 0) for c in counters for kind in ("fma", "tensor"))
    touched = total("bytes_read") + total("bytes_written")
    sectors = total("global_load_sectors") + total("global_store_sectors")
    return Row(
        backend, batch, name, len(counters), instructions,
        ratio(fmas, instructions), useful_fmas, ratio((total("total_flops") + total("total_tensor_flops")) / 2, useful_fmas),
        touched, ratio(touched, compulsory), ratio(sectors, total("ideal_sectors")),
        ratio(total("shared_wavefronts"), total("ideal_wavefronts")),
    )  # fmt: skip


def distinct_bytes(tensor: Tensor) -> int:
    """The bytes of a tensor's elements, those of an expanded dimension once."""
    lengths = [length for length, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return math.prod(lengths) * tensor.element_size()


def multiply_adds(func: Any, args: Any, results: Any) -> int:
    """Those that the formula of an operator has, as torch counts them; 0 where counting them makes no sense."""
    formula = flop_registry.get(func.overloadpacket)
    return formula(*args, out_val=results) // 2 if formula else 0


@contextlib.contextmanager
def ideals() -> Iterator[None]:
    """Lets the simulator's counters say, too, how few sectors and wavefronts could hold the bytes that accesses move."""
    from ptxsim.native import PROFILE_FIELDS

    simulator = importlib.import_module("ptxsim.launch")

    class Counters(simulator.Counters):  # type: ignore[name-defined,misc]
        ideal_sectors = ideal_wavefronts = 0.0

        @classmethod
        def from_profile(cls, instructions: list[Any], profile: Any, *traffic: Any) -> Any:
            counters = super().from_profile(instructions, profile, *traffic)
            for instruction, values in zip(instructions, profile.tolist(), strict=True):
                count = dict(zip(PROFILE_FIELDS, values, strict=True))
                for requests, size, ideal in (
                    (count["global_requests"], 32, "ideal_sectors"),
                    (count["shared_requests"], 128, "ideal_wavefronts"),
                ):
                    if requests:
                        least = max(requests, count["lanes"] * bytes_of_lane(instruction) / size)
                        setattr(counters, ideal, getattr(counters, ideal) + least)
            return counters

    with mock.patch.object(simulator, "Counters", Counters):
        yield


def bytes_of_lane(access: Any) -> int:
    """What an instruction of PTX moves to or from memory for a thread."""
    if access.opcode == "cp":
        return int(access.operands[2], 0)  # Triton writes 0x10
    vector = next((int(m[1:]) for m in access.modifiers if m in ("v2", "v4", "x2", "x4")), 1)
    bits = 32 if access.opcode.endswith("matrix") else int(access.modifiers[-1][1:])
    return vector * bits // 8


GPUS = {"A100 SXM": 80, "H100 SXM": 90}  # and the architecture that the simulator has for it


@contextlib.contextmanager
def simulator(backend: str, arch: int = 80) -> Iterator[Any]:
    """The simulator's device, with the backend's launchers on it."""
    import ptxsim.cuda
    from ptxsim.limits import architecture

    gpu = architecture(arch)
    if backend == "triton":
        network = importlib.import_module("kernels.triton.network")
        programs = network.PROGRAMS * gpu.multiprocessors
        with mock.patch.object(network, "programs", lambda like: programs), ptxsim.triton_device(arch=arch) as device:
            yield device
        return
    import cupy

    from kernels.cupy import launch

    limits = launch.Limits(arch, gpu.multiprocessors, gpu.shared_of_block, gpu.shared)
    with (
        mock.patch.object(cupy, "RawModule", type("RawModule", (ptxsim.cuda.RawModule,), {})),  # modules are kept by it
        mock.patch.object(launch, "limits", lambda like: limits),
        mock.patch.object(launch, "address", lambda tensor: ptxsim.register(tensor).data_ptr()),
        ptxsim.cuda.cuda_device(arch=arch) as device,
    ):
        yield device


def count(backend: str, batch: int) -> list[Row]:
    """The operations of the second training step, which has momentum."""
    torch.manual_seed(0)
    with ideals(), simulator(backend) as device, kernels.use_backend(backend), precision(tf32=False):  # for all alike
        step = training_step(batch)
        with Watch(backend, batch, device) as watch:
            step()
    return watch.rows


def count_network(backend: str, batch: int, gpu: str) -> list[dict[str, Any]]:
    """The second training step and the forward pass as one launch each, where the backend has them: a Row and more.

    Products are TF32 where torch's switches allow it.
    """
    if importlib.util.find_spec(f"kernels.{backend}.network") is None:
        return []
    launchers = importlib.import_module(f"kernels.{backend}.network")
    torch.manual_seed(0)
    net = LeNet().requires_grad_(False)
    network = layers_of(net, "benchmarks.counts").network()
    images, targets = torch.randn(batch, 1, 32, 32), torch.rand(batch, 10)
    updates = [
        Update(p, torch.zeros_like(p), 0.01, None, 0.9, 0.0, 0.0, nesterov=False, maximize=False, first=False)
        for p in net.parameters()
    ]
    read, written = sum(map(distinct_bytes, (images, *net.parameters()))), sum(map(distinct_bytes, net.parameters()))
    calls: dict[str, tuple[Callable[[], Any], int]] = {
        "network_forward": (lambda: launchers.network_forward(network, images), read + 4 * 10 * batch),
        "network_step": (
            lambda: launchers.network_step(network, images, targets, "mse", updates, None, batch),
            read + distinct_bytes(targets) + 3 * written + 12,  # a loss and a number of images come out
        ),
    }
    rows = []
    with ideals(), simulator(backend, GPUS[gpu]) as device:
        for name, (call, compulsory) in calls.items():
            device.clear()
            call()
            (launch,) = device.launches
            counted = row(backend, batch, name, [launch.counters], compulsory, useful(batch, name == "network_step"))
            path = {
                "blocks": math.prod(launch.grid),
                "phases": launch.counters.phases,
                "longest_path": launch.counters.longest_path,
            }
            rows.append({"gpu": gpu, **counted._asdict(), **path})
    return rows


def useful(batch: int, training: bool) -> int:
    """The multiply-adds of LeNet's formulas, without a gradient of the images."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        y = torch_lenet()(torch.empty(batch, 1, 32, 32))
        if training:
            y.sum().backward()
    return int(counter.get_total_flops() // 2)


def main(
    backend: Annotated[
        list[str] | None, typer.Option(callback=one_of(BACKENDS), help="triton or cupy; both by default")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="a batch size; repeat it for several")] = None,
    out: Out = RESULTS / "counters",
) -> None:
    """Prints a row an operation, and writes them to OUT/lenet.csv; those of the network as one launch to OUT/network.csv."""
    cases = [(name, n) for n in batch or (64, 1024) for name in backend or ("triton", "cupy")]
    write(pd.DataFrame([row for case in cases for row in count(*case)]), out / "lenet.csv")
    with precision(tf32=False):
        networks = pd.DataFrame([row for gpu in GPUS for case in cases for row in count_network(*case, gpu)])
    write(networks, out / "network.csv")


def write(counts: pd.DataFrame, file: Path) -> None:
    """Prints a table, and writes it to the file."""
    table = Table(*counts.columns)
    for each in counts.itertuples(index=False):
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in each))
    console.print(table)
    counts.to_csv(file, index=False, float_format="%.4g")
