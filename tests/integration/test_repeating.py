"""A call like an earlier one starts the kernels that its launcher would start anew, with the same arguments, and nothing else.

Nothing runs: what stands in for Triton's and CuPy's loaders writes down what is launched.
"""

import contextlib
import gc
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo  # its import, else at the first recording, keeps the frames that it comes from
from test_primitive import OPERATORS, arguments
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import kernels.ops
from kernels.backend import load
from kernels.check.operations import LAYOUTS
from kernels.integration import dispatcher, primitive, repeating
from kernels.integration.repeating import Repeated, recording
from kernels.optim import SGD

ADDRESSES = (
    1 << 23
)  # and above are integers that are addresses: sizes are small here, and Debian's Python has its heap so low


class Launches:
    """What was launched: kernels as their loader knows them, with their arguments."""

    def __init__(self) -> None:
        self.made: list[tuple[Any, Any]] = []

    def of(self, launcher: Callable[..., Any], call: tuple[Any, ...]) -> Any:
        """The results and launches of a call, as one description in which memory goes by whose it is."""
        self.made.clear()
        results = launcher(*call)
        given = results if isinstance(results, tuple) else () if results is None else (results,)
        owners = [*tensors(call), *given]
        others = [number for number in flat([values for _, values in self.made]) if is_address(number)]
        others = [number for number in others if owner(number, owners) is None]

        def named(value: Any) -> Any:
            if isinstance(value, tuple | list):
                return [named(each) for each in value]
            if is_address(value):
                return owner(value, owners) or ("other", value - others[0])
            return value.tobytes() if hasattr(value, "tobytes") else value

        described = None if results is None else [(r.shape, r.stride(), r.dtype, r.device) for r in given]
        return described, [(kernel, named(values)) for kernel, values in self.made]


def is_address(value: Any) -> bool:
    return type(value) is int and value > ADDRESSES


def owner(address: int, tensors: list[Tensor]) -> tuple[int, int] | None:
    """Which of the tensors has the address, and how far from its first element."""
    for number, tensor in enumerate(tensors):
        storage = tensor.untyped_storage()
        if storage.data_ptr() <= address < storage.data_ptr() + max(storage.nbytes(), 1):
            return number, address - tensor.data_ptr()
    return None


def flat(values: Any) -> list[Any]:
    return [each for value in values for each in (flat(value) if isinstance(value, tuple | list) else [value])]


def tensors(call: tuple[Any, ...]) -> list[Tensor]:
    return [value for value in flat(call) if isinstance(value, Tensor)]


class Driver:
    """Stands in for Triton's: the current device is what a test says."""

    device = 3_000_000

    def get_current_device(self) -> int:
        return self.device

    def get_current_target(self) -> Any:
        return SimpleNamespace(backend="cuda", arch=90, warp_size=32)


class Compiled:
    """Stands in for what Triton compiles: for the device, dtypes and alignment it meets at first."""

    def __init__(self, launches: Launches, name: str, options: dict[str, Any], args: tuple[Any, ...]) -> None:
        self.launches = launches
        pointers = [(each.dtype, each.data_ptr() % 16) for each in flat(args) if isinstance(each, Tensor)]
        self.compiled_for = name, sorted(options.items()), Driver.device, pointers

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args: self.launches.made.append(((self.compiled_for, Driver.device, grid[0]), args))


@pytest.fixture(params=("triton", "cupy"))
def stand_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Launches]]:
    """A GPU backend whose loader writes down what is launched, and the list in which it does."""
    loader, launches = pytest.importorskip(request.param), Launches()
    if request.param == "triton":
        import kernels.triton as package

        def run(kernel: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> Compiled:
            compiled = Compiled(launches, kernel.fn.__name__, options, args)
            compiled[grid](*map(by_address, args))
            return compiled

        monkeypatch.setattr(type(package.softmax.softmax_kernel), "run", run)
        monkeypatch.setattr(loader.runtime.driver, "_active", Driver())
    else:
        import kernels.cupy as package

        def module(code: str, options: tuple[str, ...]) -> Any:
            def get_function(name: str) -> Callable[..., None]:
                def start(grid: Any, block: Any, values: Any, shared_mem: int) -> None:
                    launches.made.append(((name, len(code), options, grid, block, shared_mem), values))

                return start

            return SimpleNamespace(get_function=get_function)

        monkeypatch.setattr(loader, "RawModule", module)
    yield package, launches


def by_address(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.data_ptr()
    return tuple(map(by_address, value)) if type(value) is tuple else value


def launcher_of(package: Any, name: str) -> tuple[Callable[..., Any], Repeated]:
    """A backend's launcher, and the same with its calls repeated."""
    launcher = getattr(package, name)
    return launcher, Repeated(launcher, OPERATORS[name]._schema, package.launch)


def repetitions(launcher: Repeated) -> list[Callable[..., Any]]:
    """Those of its calls that were recorded to the end."""
    return [call for call in launcher._calls.values() if call not in (None, launcher._call_launcher)]


def positional(name: str, call: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments as a launcher takes them."""
    values = [call[argument.name] for argument in OPERATORS[name]._schema.arguments[:-1]]
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)


def changed(call: tuple[Any, ...], change: Callable[[Tensor], Tensor], only: int | None = None) -> tuple[Any, ...]:
    """The call with its tensors, or only number `only`, changed."""
    numbers = itertools.count()

    def each(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(each, value))
        if not isinstance(value, Tensor) or only not in (next(numbers), None):
            return value
        return change(value)

    return each(call)


def to(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda t: t.to(dtype) if t.is_floating_point() else t


def further(t: Tensor) -> Tensor:
    """The tensor in the same memory order, two elements behind an aligned address: eight bytes of float32, 16 of float64."""
    n = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)) + 1
    return torch.empty(n + 2, dtype=t.dtype)[2:].as_strided(t.shape, t.stride()).copy_(t)


def moved(t: Tensor) -> Tensor:
    """The tensor in other memory, where its address has the same remainders."""
    return torch.empty(0, dtype=t.dtype).set_(t.untyped_storage().clone(), t.storage_offset(), t.shape, t.stride())


CALLS = [(name, positional(name, call)) for name in OPERATORS for call in arguments(3)[name]]
n = 3000  # rows: sums so long that they are split
rows, many, images = (torch.randn(n, 5), torch.randn(n, 7)), torch.randn(n, 20), torch.randn(40, 3, 30, 30)
dy = torch.randn(40, 6, 28, 28)
several = tuple(torch.randn(5, k % 9) for k in range(70))  # more than one launch of CuPy's takes, some without elements
CALLS += [
    *(
        ("linear_backward", (rows[0], rows[0], rows[1], torch.randn(5, 7), needed, "relu"))
        for needed in ((True, True, True), (False, True, False), (True, False, True))
    ),
    ("mse_loss_forward", (many, many + 1, "mean")),
    ("cross_entropy_forward", (many, torch.arange(n) % 9, None, "mean", 0, 0.1)),
    ("conv2d_weight_grad", (dy, images, (3, 3), True, (1, 1), (0, 0), (1, 1), 1)),
    ("sgd", (several, several, (), 0.1, None, 0.0, 0.0, 0.0, False, False, False)),
    ("sgd", (several[:7],) * 3 + (0.1, None, 0.9, 0.0, 0.0, True, False, False)),
]


@pytest.mark.parametrize(("name", "call"), CALLS, ids=[name for name, _ in CALLS])
def test_a_call_launches_what_its_launcher_would(name: str, call: tuple[Any, ...], stand_in: Any) -> None:
    """The first with a key, the second, which is recorded, and repetitions, in other memory each time.

    Then as often with one thing changed: dtype, alignment, or the memory order of one of the tensors.
    """
    package, launches = stand_in
    launcher, repeated = launcher_of(package, name)
    count = len(tensors(call))
    variants = [call, double := changed(call, to(torch.float64))]
    variants += [changed(of, further, each) for of in (call, double) for each in range(count)]
    if name != "sgd":  # which takes one memory order
        layouts = ("transposed", "sliced", "expanded", "shifted", "channels_last")
        variants += [changed(call, LAYOUTS[layout], each) for layout in layouts for each in range(count)]
    kept = []
    for variant in variants:
        for _ in range(3):
            kept.append(changed(variant, moved))
            assert launches.of(repeated, kept[-1]) == launches.of(launcher, kept[-1])
    assert repetitions(repeated)


@pytest.mark.parametrize("name", ("linear_backward", "conv2d_relu_max_pool2d_backward", "sgd"))
def test_a_repeated_call_computes_the_same(name: str, backend: str) -> None:
    """On whatever runs the backend's kernels here."""
    package, call = load(backend), positional(name, arguments(3)[name][0])
    launcher = getattr(package, name)
    if not hasattr(package, "repeated") or package.repeated(launcher, OPERATORS[name]._schema) is launcher:
        pytest.skip("nothing is repeated here")
    repeated = primitive.Implementations(torch.get_default_device().type)[name, backend]
    for factor in (1, 2, 3, 4):
        one = changed(call, lambda t, factor=factor: t * factor)
        other = changed(one, torch.clone)
        assert_close((repeated(*one), tensors(one)), (launcher(*other), tensors(other)), rtol=0, atol=0)


def test_settings_and_gradients_of_sgd_may_change(stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    package, launches = stand_in
    launcher, repeated = launcher_of(package, "sgd")

    def both(*call: Any) -> None:
        assert launches.of(repeated, call) == launches.of(launcher, call)

    monkeypatch.setitem(primitive.on_cpu, ("sgd", ""), both)
    parameters = [torch.randn(shape).requires_grad_() for shape in ((3, 5), (7,), (40, 50))]
    optimiser = SGD(parameters, lr=0.1, momentum=0.9)
    settings = {"lr": 0.2, "momentum": 0.8, "dampening": 0.1, "weight_decay": 1e-4, "nesterov": True, "maximize": True}
    rates = {"lr": torch.tensor(0.1)}, {"lr": torch.tensor(0.1, dtype=torch.float64)}
    changes = ({}, *({name: value} for name, value in settings.items()), *rates, {"lr": 0.3}, {"lr": 1})
    changes += ({"lr": 0.3, "momentum": 0.3}, {"lr": 0.4})  # one object, then two
    for change, missing in itertools.product(changes, (None, 0, 2)):
        optimiser.param_groups[0].update(change)
        for _ in range(4):  # of which the first may fill the momentum buffers
            for number, parameter in enumerate(parameters):
                parameter.grad = None if number == missing else torch.randn_like(parameter)
            optimiser.step()
    assert len(repetitions(repeated)) == 3 * (len(changes) - 4)  # a rate that is a number may be any


def test_a_number_that_a_launcher_computes_with_is_not_repeated() -> None:
    backend = Backend()

    def launcher(params: tuple[Tensor, ...], *others: Any) -> None:
        backend.launch(params[0], 2 * others[2])

    repeated = Repeated(launcher, OPERATORS["sgd"]._schema, backend)
    for rate in (0.1, 0.2, 0.3, 0.4):
        repeated((x := torch.randn(3),), (x,), (), rate, None, 0.0, 0.0, 0.0, False, False, False)
        assert backend.started[-1] == (x.data_ptr(), 2 * rate)


def test_one_tensor_given_twice_is_known_by_its_place(stand_in: Any) -> None:
    package, launches = stand_in
    launcher, repeated = launcher_of(package, "relu_backward")
    one, other = torch.randn(5), torch.randn(5)
    for call in ((one, one), (one, one), (one, other), (other, one)):
        assert launches.of(repeated, call) == launches.of(launcher, call)
    assert len(repetitions(repeated)) == 1


def test_other_arguments_are_told_apart(stand_in: Any) -> None:
    package, launches = stand_in
    launcher, repeated = launcher_of(package, "linear_backward")
    for needed, activation in itertools.product(((True, True, True), (True, False, False)), ("relu", "sigmoid")):
        call = (*rows[:1] * 2, rows[1], torch.randn(5, 7), needed, activation)
        for _ in range(3):
            assert launches.of(repeated, call) == launches.of(launcher, call)
    assert len(repetitions(repeated)) == 4


def test_switches_and_devices_are_told_apart(stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What TF32 is allowed to round, and Triton's current device, may change between two calls."""
    package, launches = stand_in
    calls = {
        "linear_forward": (torch.randn(64, 64), torch.randn(64, 64), None, None),
        "conv2d_forward": (torch.randn(8, 64, 9, 9), torch.randn(64, 64, 3, 3), None, (1, 1), (0, 0), (1, 1), 1),
    }
    for name, call in calls.items():
        launcher, repeated = launcher_of(package, name)
        described = []
        for tf32, device in itertools.product((False, True), (1, 2)):
            monkeypatch.setattr(Driver, "device", device)
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32), matmul_precision(tf32):
                for _ in range(3):
                    described.append(launches.of(launcher, call))
                    assert launches.of(repeated, call) == described[-1]
        assert len({str(each) for each in described}) == (4 if package.__name__ == "kernels.triton" else 1)


@contextlib.contextmanager
def matmul_precision(tf32: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


class Backend:
    """Where a launcher of a test's own starts its kernels: with an address and a number."""

    def __init__(self) -> None:
        self.started: list[tuple[Any, ...]] = []

    def state(self) -> str:
        return ""

    def address(self, tensor: Tensor) -> int:
        return tensor.data_ptr()

    def launch(self, *values: Any) -> None:
        self.started.append(by_address(values))
        if current := recording():
            current.launched(lambda *values: self.started.append(values), values)


ELSEWHERE = torch.zeros(4)
UNREPEATABLE: dict[str, Callable[[Backend, Tensor], Any]] = {
    "computes with torch": lambda b, x: x + 1,
    "reads a value": lambda b, x: b.launch(x, x[0].item()),
    "writes with torch": lambda b, x: b.launch(x.add_(1)),
    "returns its input": lambda b, x: x,
    "returns a part of what it allocates": lambda b, x: x.new_empty(8)[4:],
    "returns memory that results share": lambda b, x: ((y := x.new_empty(8)), y.view(2, 4)),
    "returns a tensor from elsewhere": lambda b, x: ELSEWHERE,
    "launches on a tensor from elsewhere": lambda b, x: b.launch(ELSEWHERE),
}


@pytest.mark.parametrize("launcher", UNREPEATABLE.values(), ids=UNREPEATABLE.keys())
def test_what_does_more_than_launch_is_not_repeated(launcher: Callable[[Backend, Tensor], Any]) -> None:
    backend, calls = Backend(), []
    repeated = Repeated(lambda x: calls.append(x) or launcher(backend, x), OPERATORS["relu_forward"]._schema, backend)
    for _ in range(5):
        repeated(torch.randn(4))
    assert len(calls) == 5


def test_results_are_new_and_laid_out_as_the_launcher_s() -> None:
    backend = Backend()
    repeated = Repeated(lambda x: x.new_empty((3, 2)).t(), OPERATORS["relu_forward"]._schema, backend)
    results = [repeated(torch.randn(4)) for _ in range(4)]
    assert {(y.shape, y.stride()) for y in results} == {((2, 3), (1, 2))}
    assert len({y.data_ptr() for y in results}) == 4
    assert len(repetitions(repeated)) == 1


@pytest.mark.usefixtures("poisoned")
def test_where_memory_is_poisoned_that_of_a_repeated_call_is() -> None:
    repeated = Repeated(lambda x: torch.empty_like(x), OPERATORS["relu_forward"]._schema, Backend())
    for _ in range(4):
        assert repeated(torch.ones(3)).isnan().all()


def test_addresses_of_views_follow_what_they_are_views_of() -> None:
    backend = Backend()

    def launcher(x: Tensor) -> None:
        partials = x.new_empty(10)
        backend.launch(x[1:], partials, partials[4:][2:], (x, partials[1:]))

    repeated = Repeated(launcher, OPERATORS["relu_forward"]._schema, backend)
    for _ in range(4):
        x = torch.randn(6)
        repeated(x)
    first, second, third, pair = backend.started[-1]
    assert (first, third, pair) == (x.data_ptr() + 4, second + 24, (x.data_ptr(), second + 4))
    assert len(repetitions(repeated)) == 1


@pytest.mark.parametrize(("name", "call"), CALLS, ids=[name for name, _ in CALLS])
def test_a_repeated_call_only_allocates_and_launches(name: str, call: tuple[Any, ...], stand_in: Any) -> None:
    """So a CUDA graph may capture it: torch computes nothing, copies nothing and reads nothing back."""
    _, repeated = launcher_of(stand_in[0], name)
    repeated(*call)
    repeated(*call)
    assert repetitions(repeated)
    with Watch() as watch:
        repeated(*call)
    assert watch.seen <= set(repeating.ALLOCATIONS)


class Watch(TorchDispatchMode):
    """Keeps what torch is asked for, and where the tensors lie that it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[Any] = set()
        self.addresses: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func)
        result = func(*args, **kwargs or {})
        self.addresses.append(result.data_ptr())
        return result


@pytest.mark.parametrize("name", ("linear_backward", "conv2d_relu_max_pool2d_backward"))
def test_a_training_step_allocates_nothing_that_nobody_gets(name: str, stand_in: Any) -> None:
    """Each tensor is a result, or a kernel gets it."""
    package, launches = stand_in
    _, repeated = launcher_of(package, name)
    for call in (positional(name, each) for each in arguments(3)[name]):
        repeated(*call)
        repeated(*call)
        launches.made.clear()
        with Watch() as watch:
            results = repeated(*call)
        of_kernels = [value for value in flat([values for _, values in launches.made]) if is_address(value)]
        others = Counter(address for address in watch.addresses if address not in of_kernels)
        assert others <= Counter(result.data_ptr() for result in results)  # 0 where there are no elements


@pytest.mark.parametrize("name", ("linear_backward", "conv2d_relu_max_pool2d_backward", "sgd"))
def test_what_is_recorded_keeps_no_memory(name: str, stand_in: Any) -> None:
    _, repeated = launcher_of(stand_in[0], name)
    call = positional(name, arguments(3)[name][0])
    counts = []
    for _ in range(3):
        repeated(*call)
        counts.append(living_tensors())
    assert repetitions(repeated)
    assert counts == counts[:1] * 3


def living_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


def test_kept_calls_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeating, "MOST", 5)
    repeated = Repeated(torch.Tensor.numel, OPERATORS["relu_forward"]._schema, Backend())
    for n in range(1, 40):
        repeated(torch.zeros(n))
        assert 0 < len(repeated._calls) <= 5


def test_a_recording_has_the_launches_of_its_thread_alone() -> None:
    backend = Backend()

    def launcher(x: Tensor) -> Tensor:
        if recording():
            thread = threading.Thread(target=backend.launch, args=(ELSEWHERE,))
            thread.start()
            thread.join()
        backend.launch(x)
        return torch.empty_like(x)

    repeated = Repeated(launcher, OPERATORS["relu_forward"]._schema, backend)
    for _ in range(3):
        x = torch.randn(4)
        repeated(x)
    assert backend.started[-1] == (x.data_ptr(),)
    assert len(repetitions(repeated)) == 1


def test_an_error_ends_the_recording() -> None:
    def launcher(x: Tensor) -> Tensor:
        raise RuntimeError("no memory")

    repeated = Repeated(launcher, OPERATORS["relu_forward"]._schema, Backend())
    for _ in range(3):
        with pytest.raises(RuntimeError, match="no memory"):
            repeated(torch.ones(4))
    assert recording() is None


class OnGPU(Tensor):
    """Stands in for a tensor on GPU 1; those of the class below are on GPU 2."""

    is_cuda, is_cpu = True, False

    def get_device(self) -> int:
        return 1


class OnOther(OnGPU):
    def get_device(self) -> int:
        return 2


def test_tensors_of_two_devices_are_told_apart() -> None:
    backend = Backend()
    repeated = Repeated(lambda x: backend.launch(x, x.get_device()), OPERATORS["relu_forward"]._schema, backend)
    for kind in (OnGPU, OnGPU, OnGPU, OnOther, OnOther, OnOther, OnGPU):
        x = torch.ones(3).as_subclass(kind)
        repeated(x)
        assert backend.started[-1] == (x.data_ptr(), x.get_device())
    assert len(repetitions(repeated)) == 2


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Two GPUs, of which 0 is torch's current one; `calls` has the current one at each call of a launcher."""
    state = SimpleNamespace(current=0, calls=[])

    @contextlib.contextmanager
    def device(number: int) -> Iterator[None]:
        state.current, before = number, state.current
        yield
        state.current = before

    monkeypatch.setattr(torch.cuda, "current_device", lambda: state.current)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(dispatcher, "ORDINARY", dispatcher.ORDINARY | {OnGPU})
    package = SimpleNamespace(relu_forward=lambda x: state.calls.append(state.current))
    package.repeated = lambda launcher, schema: Repeated(launcher, schema, Backend())
    monkeypatch.setattr(primitive, "resolve", lambda name, device_type: package)
    monkeypatch.setattr(primitive, "on_cuda", primitive.Implementations("cuda"))
    return state


def test_a_gpu_s_tensor_takes_the_short_way_to_its_device(gpu: SimpleNamespace) -> None:
    x = torch.ones(3).as_subclass(OnGPU)
    assert not dispatcher.needs_dispatcher((x, ""))
    kernels.ops.activations.relu_forward(x, "")
    gpu.current = 1
    kernels.ops.activations.relu_forward(x, "")
    assert (gpu.calls, gpu.current) == ([1, 1], 1)


@pytest.mark.parametrize(
    "x",
    (torch.ones(3, dtype=torch.complex64).conj().imag, torch._efficientzerotensor(3)),
    ids=("negated when it is read", "zero without memory"),
)
def test_a_gpu_s_tensor_without_ordinary_memory_needs_the_dispatcher(x: Tensor, gpu: SimpleNamespace) -> None:
    assert dispatcher.needs_dispatcher((x.as_subclass(OnGPU), ""))


class WithoutMemory(OnGPU):
    """A tensor that has no address, as a sparse one, and answers torch's dispatcher with itself."""

    def data_ptr(self) -> int:
        raise RuntimeError("Cannot access data pointer of Tensor that doesn't have storage")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0]


def test_a_gpu_s_tensor_without_memory_goes_to_the_dispatcher_when_it_is_looked_at(
    gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "ORDINARY", dispatcher.ORDINARY | {WithoutMemory})
    x = torch.Tensor._make_wrapper_subclass(WithoutMemory, (3,))
    assert not dispatcher.needs_dispatcher((x, ""))
    assert kernels.ops.activations.relu_forward(x, "") is x
    assert gpu.calls == []
