"""What is compared: a case is one computation, and its contenders compute it on the same values."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import kernels
from kernels.backend import NAMES

Step = Callable[[], Tensor | Sequence[Tensor]]
TORCH, OURS, SWAPPED, FUSED = "torch eager", "ours", "ours, by swap", "ours, fused"
COMPILED, REDUCED = "torch.compile", "torch.compile, reduce-overhead"
GRAPH = ", CUDA graph"
BATCHES = (1, 64, 1024, 4096)
RESNET_BATCH = 64  # the one at which the layers of a ResNet are compared, too


class Work(NamedTuple):
    """What a computation has to do at least: its inputs and outputs in bytes, its products and sums of matrices."""

    bytes: int
    flops: int


class Case(NamedTuple):
    """One computation; each call of a contender does it once and returns the values that are checked."""

    name: str
    part: str
    batch: int | None  # None where the computation does not depend on it
    contenders: dict[str, Step]  # the first is torch eager: others are compared with it
    reference: Step  # torch in float64
    work: Work
    checked_step: int = 1  # the call whose values are checked


def random(*shape: int) -> Tensor:
    """A leaf of normal values in steps of 1/8: float32 sums of their products are exact, so that no rounding decides
    which of two values is the maximum, and float64 is a fair judge of gradients behind a max-pool.
    """
    return torch.randn(shape).mul(8).round().div(8).requires_grad_()


def label(backend: str, contender: str = OURS) -> str:
    """The name of a contender of ours: on the CPU there is no backend but NumPy's."""
    return contender if backend == "numpy" else f"{contender}, {backend}"


def fused_backends(backends: Sequence[str], dtype: torch.dtype) -> list[str]:
    """Those that run a whole network of the dtype as one call."""
    return [name for name in backends if dtype == torch.float32 or (dtype, name) == (torch.float64, "numpy")]


def using(contender: str) -> contextlib.AbstractContextManager[Any]:
    """A block in which our operations run on the backend that a contender's name names."""
    return kernels.use_backend(next((name for name in NAMES if f", {name}" in contender), None))


def contenders(factories: dict[str, Callable[[], Step]]) -> dict[str, Step]:
    """The steps that the factories make, each with its backend in use; one of torch's that fails is left out."""
    steps = {}
    for name, factory in factories.items():
        with using(name), attempt(name):
            steps[name] = factory()
    return steps


@contextlib.contextmanager
def attempt(name: str) -> Any:
    """A block that may fail for torch.compile and for CUDA graphs of torch; what fails of ours is an error."""
    try:
        yield
    except Exception as error:
        if name == TORCH or name.startswith(OURS):
            raise
        warnings.warn(f"{name} is left out, it does not work here: {error}", stacklevel=3)


@functools.cache
def compiles() -> bool:
    """Whether torch.compile works here: it needs a compiler."""
    try:
        torch.compile(torch.relu)(torch.ones(2))
    except Exception as error:
        warnings.warn(f"torch.compile is left out, it does not work here: {error}", stacklevel=2)
        return False
    return True


def compilers() -> dict[str, Callable[..., Any]]:
    """torch.compile in the modes to compare, by the contenders' names."""
    if not compiles():
        return {}
    torch.compiler.reset()  # each batch size is compiled for itself, not as one more of a range
    modes = {COMPILED: "default"} | ({REDUCED: "reduce-overhead"} if on_gpu() else {})
    return {name: functools.partial(torch.compile, dynamic=False, mode=mode) for name, mode in modes.items()}


def on_gpu() -> bool:
    """Whether new tensors, and so the contenders', lie on a GPU."""
    return torch.get_default_device().type == "cuda"


def graphed(step: Step) -> Step:
    """The step as a CUDA graph: a call replays what the fourth one launched."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        values = step()

    def replay() -> Tensor | Sequence[Tensor]:
        graph.replay()
        return values

    return replay


def flops(step: Step) -> int:
    """Those of a step's convolutions and matrix products, as torch counts them: two for a multiply-add."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def operation(
    name: str,
    theirs: Callable[..., Any],
    ours: Callable[..., Any],
    backends: Sequence[str],
    *inputs: Tensor,
    **arguments: Any,
) -> list[Case]:
    """The forward pass, recorded as in training, and the backward pass alone of an operation on `inputs`.

    The gradients are those of the inputs, parameters included, that require one. torch.compile and CUDA graphs take part
    in the forward pass alone: a backward pass of theirs belongs to a forward pass of theirs, as in a training step.
    """
    exact_inputs = [i.detach().double().requires_grad_(i.requires_grad) for i in inputs]
    y = theirs(*inputs, **arguments)
    dy = random(*y.shape).detach()
    leaves = [i for i in inputs if i.requires_grad]

    def forward(function: Callable[..., Any], inputs: Sequence[Tensor]) -> Step:
        return lambda: function(*inputs, **arguments)

    def backward(function: Callable[..., Any], inputs: Sequence[Tensor]) -> Step:
        y = function(*inputs, **arguments)
        leaves = [i for i in inputs if i.requires_grad]
        dy_like_y = dy.to(y.dtype)
        return lambda: torch.autograd.grad(y, leaves, dy_like_y, retain_graph=True)

    def case(make: Callable[..., Step], moved: Iterable[Tensor], more: dict[str, Callable[[], Step]]) -> Case:
        factories = {TORCH: lambda: make(theirs, inputs)} | {label(b): lambda: make(ours, inputs) for b in backends}
        work = Work(size(moved), flops(make(theirs, inputs)))
        reference = make(theirs, exact_inputs)
        return Case(name, make.__name__, inputs[0].shape[0], contenders(factories | more), reference, work)

    more: dict[str, Callable[[], Step]] = {
        mode: lambda compiler=compiler: forward(compiler(theirs), inputs) for mode, compiler in compilers().items()
    }
    if on_gpu():
        for contender, function in ({TORCH: theirs} | {label(b): ours for b in backends}).items():
            more[contender + GRAPH] = lambda function=function: graphed(forward(function, inputs))
    return [case(forward, (*inputs, y), more), case(backward, (*inputs, *leaves, y), {})]
