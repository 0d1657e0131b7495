"""What the operations take and refuse: torch decides, for odd values of every argument, odd shapes and huge numbers."""

import inspect
import operator
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as torch_functional
from cases import DTYPES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import kernels.functional
import kernels.nn
import kernels.optim
from kernels.ops.conv2d import checked_geometry


def conv2d_relu(*args: Any, **kwargs: Any) -> Tensor:
    return torch_functional.relu(torch_functional.conv2d(*args, **kwargs))


def conv2d_relu_max_pool2d(*args: Any, **kwargs: Any) -> Tensor:
    return torch_functional.max_pool2d(torch_functional.relu(torch_functional.conv2d(*args, **kwargs)), 2)


def linear_relu(*args: Any, **kwargs: Any) -> Tensor:
    return torch_functional.relu(torch_functional.linear(*args, **kwargs))


NAMES = (
    "conv2d",
    "conv_transpose2d",
    "cross_entropy",
    "linear",
    "max_pool2d",
    "mse_loss",
    "relu",
    "sigmoid",
    "softmax",
)
OURS = SimpleNamespace(F=kernels.functional, nn=kernels.nn, optim=kernels.optim)
TORCHS = SimpleNamespace(
    F=SimpleNamespace(
        **{name: getattr(torch_functional, name) for name in NAMES},
        conv2d_relu=conv2d_relu,
        conv2d_relu_max_pool2d=conv2d_relu_max_pool2d,
        linear_relu=linear_relu,
    ),
    nn=torch.nn,
    optim=torch.optim,
)


class Whole:
    """A number for Python, but none for torch's parser where it asks for the type."""

    def __index__(self) -> int:
        return 1

    def __repr__(self) -> str:
        return "Whole()"


HUGE = (2**31 - 1, 2**31, 2**32 + 1, 2**62, 2**63 - 1, 2**63, 2**70)
NUMBERS = (
    *(1, 2, 0, -1, True, False, 1.0, None, "1", "", "same", "valid", "SAME", "mean", "sum", 1j, object(), int, float),
    *(np.int64(1), np.int64(2), np.uint8(1), np.float64(1), np.float32(1), np.bool_(True), np.array(1), np.array([1])),
    *(
        np.array([1, 1]),
        np.array([], int),
        np.str_("same"),
        torch.float32,
        torch.int64,
        range(1, 3),
        {1},
        {1: 1},
        Whole(),
    ),
    *(torch.tensor(value) for value in (1, 2, 1.0, True, [1], [1.0], [1, 1])),
    *(torch.tensor(1, dtype=dtype) for dtype in (torch.uint8, torch.int32)),
    *(-1 - 2**63, -(2**63), *HUGE, torch.tensor(2**40)),
)
TUPLES = (
    *((), [], (1,), [1], (1, 1), [1, 1], (2, 1), (1, 1, 1), torch.Size([1]), torch.Size([1, 1]), torch.Size([])),
    *(((1, 1),), ((1,), (1,)), (1, None), (None, 1), (1.0, 1), (1, 1.0), ("1", "1"), ("same",), (0, 1), (1, -1)),
    *((True, 1), (1, True), (True,), (np.int64(1), 1), (1, np.int64(1)), [np.int64(2), 2], (np.bool_(True), 1)),
    *(
        (torch.tensor(1), 1),
        (1, torch.tensor(1)),
        (torch.tensor(1.0), 1),
        (1, torch.tensor(1.0)),
        (torch.tensor(True), 1),
    ),
    *((torch.tensor([1]), torch.tensor([1])), (Whole(), 1), (2**31, 1), (1, 2**62), (2**63, 1), (1, 2**63)),
)

IMAGE, WEIGHT, BIAS = (torch.arange(-n / 2, n / 2) % 7 - 3 for n in (2 * 4 * 6 * 7, 4 * 4 * 2 * 2, 4))
IMAGE, WEIGHT = IMAGE.view(2, 4, 6, 7), WEIGHT.view(4, 4, 2, 2)
ROWS, LAYER = torch.ones(2, 7), torch.ones(3, 7)


def parameter() -> list[Tensor]:
    return [torch.ones(1, requires_grad=True)]


ARGUMENTS: dict[str, Callable[[Any, Any], Any]] = {
    **{
        f"{name} {argument}": lambda library, value, name=name, argument=argument: getattr(library.F, name)(
            **{"input": IMAGE, "weight": WEIGHT, "bias": BIAS} | {argument: value}
        )
        for name in ("conv2d", "conv2d_relu", "conv2d_relu_max_pool2d")
        for argument in ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    },
    **{
        f"conv_transpose2d {argument}": lambda library, value, argument=argument: library.F.conv_transpose2d(
            **{"input": IMAGE, "weight": WEIGHT, "bias": BIAS, "stride": 3} | {argument: value}
        )
        for argument in ("input", "weight", "bias", "stride", "padding", "output_padding", "dilation", "groups")
    },
    **{
        f"max_pool2d {argument}": lambda library, value, argument=argument: library.F.max_pool2d(
            **{"input": IMAGE, "kernel_size": 2} | {argument: value}
        )
        for argument in ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    },
    **{
        f"{name} {argument}": lambda library, value, name=name, argument=argument: getattr(library.F, name)(
            **{"input": ROWS, "weight": LAYER, "bias": torch.ones(3)} | {argument: value}
        )
        for name in ("linear", "linear_relu")
        for argument in ("input", "weight", "bias")
    },
    **{
        f"mse_loss {argument}": lambda library, value, argument=argument: library.F.mse_loss(
            **{"input": IMAGE, "target": IMAGE + 1} | {argument: value}
        )
        for argument in ("input", "target", "reduction", "size_average", "reduce", "weight")
    },
    **{
        f"cross_entropy {argument}": lambda library, value, argument=argument: library.F.cross_entropy(
            **{"input": IMAGE, "target": IMAGE[:, 0].abs().long()} | {argument: value}
        )
        for argument in ("input", "target", "weight", "ignore_index", "reduction", "size_average", "reduce")
    },
    "cross_entropy label_smoothing": lambda library, value: library.F.cross_entropy(
        IMAGE, IMAGE.softmax(1), label_smoothing=value
    ),
    "softmax input": lambda library, value: library.F.softmax(value, 0),
    "softmax dim": lambda library, value: library.F.softmax(IMAGE, value),
    "softmax dtype": lambda library, value: library.F.softmax(IMAGE, 1, dtype=value),
    "relu input": lambda library, value: library.F.relu(value),
    "relu inplace": lambda library, value: library.F.relu(IMAGE.clone(), value),
    "sigmoid input": lambda library, value: library.F.sigmoid(value),
    "Conv2d kernel_size": lambda library, value: fixed(library.nn.Conv2d(4, 2, value))(IMAGE),
    "Conv2d stride": lambda library, value: fixed(library.nn.Conv2d(4, 2, 2, stride=value))(IMAGE),
    "Conv2d padding": lambda library, value: fixed(library.nn.Conv2d(4, 2, 2, padding=value))(IMAGE),
    "Conv2d groups": lambda library, value: fixed(library.nn.Conv2d(4, 2, 2, groups=value))(IMAGE),
    "Conv2d padding_mode": lambda library, value: fixed(library.nn.Conv2d(4, 2, 2, padding_mode=value))(IMAGE),
    "MaxPool2d kernel_size": lambda library, value: library.nn.MaxPool2d(value)(IMAGE),
    "MaxPool2d stride": lambda library, value: library.nn.MaxPool2d(2, value)(IMAGE),
    "MaxPool2d ceil_mode": lambda library, value: library.nn.MaxPool2d(2, ceil_mode=value)(IMAGE),
    "Linear bias": lambda library, value: fixed(library.nn.Linear(7, 3, value))(ROWS),
    "Softmax dim": lambda library, value: library.nn.Softmax(value)(IMAGE),
    "MSELoss reduction": lambda library, value: library.nn.MSELoss(reduction=value)(IMAGE, IMAGE + 1),
    **{
        f"SGD {argument}": lambda library, value, argument=argument: library.optim.SGD(
            **{"params": parameter()} | {argument: value}
        ).param_groups[0][argument]
        for argument in ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize", "foreach", "fused")
    },
    "SGD params": lambda library, value: len(library.optim.SGD(value).param_groups),
}


def fixed(module: torch.nn.Module) -> torch.nn.Module:
    for p in module.parameters():
        torch.nn.init.constant_(p, 0.5)
    return module


def results(call: Callable[[Any, Any], Any], library: Any, value: Any) -> Any:
    """What the call gives, or the error that it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return call(library, value)
        except Exception as error:
            return error


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, Exception):
        assert isinstance(ours, type(theirs)), f"torch raises {type(theirs).__name__}: {theirs}; ours: {ours!r}"
    else:
        assert not isinstance(ours, Exception), f"torch takes it; ours: {ours!r}"
        if isinstance(theirs, Tensor | tuple):
            torch.testing.assert_close(ours, theirs, equal_nan=True)


def is_told_apart(argument: str, value: Any, theirs: Any) -> bool:
    """Whether ours are another on purpose; each is a row of test_differences.py."""
    if isinstance(theirs, RuntimeError) and ("INTERNAL ASSERT" in str(theirs) or "scalar.isIntegral" in str(theirs)):
        return True  # an accident of torch's parser
    return argument.lower() == "softmax dim" and isinstance(theirs, TypeError) and is_whole(value)


def is_whole(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    try:
        return operator.index(value) >= 0
    except TypeError:
        return False


def is_huge(value: Any) -> bool:
    numbers = value if isinstance(value, tuple | list) else (value,)
    return any(isinstance(number, int) and number > 2**20 for number in numbers)


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_odd_values(argument: str) -> None:
    """Values of the wrong type, out of bounds, or of a type that torch takes for an int."""
    call = ARGUMENTS[argument]
    values = NUMBERS if argument.startswith("SGD") else NUMBERS + TUPLES
    if argument == "Conv2d kernel_size":
        values = tuple(
            value for value in values if not is_huge(value)
        )  # the weight would be, and memory may be promised
    for value in values:
        ours, theirs = (results(call, library, value) for library in (OURS, TORCHS))
        if isinstance(theirs, AttributeError):  # torch's where it has no check
            theirs = TypeError(str(theirs))
        if argument.lower() == "softmax dim" and isinstance(
            value, str
        ):  # a dimension's name to older versions of torch
            assert isinstance(ours, TypeError), f"{argument}={value!r}: {ours!r}"
            continue
        if is_told_apart(argument, value, theirs):
            assert isinstance(ours, Tensor) or str(ours) == str(theirs), f"{argument}={value!r}: {ours!r}"
            continue
        try:
            assert_same(ours, theirs)
        except AssertionError as error:
            raise AssertionError(f"{argument}={value!r}: {error}") from error
        if isinstance(ours, Exception) and argument[0].islower() and "ambiguous" not in str(ours):  # truth of an array
            assert str(ours).startswith(f"{argument.split()[0]}: expected "), f"{argument}={value!r}: {ours}"
            assert ", got " in str(ours)


@st.composite
def shapes_near(draw: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape, or one with another length, a dimension less or a dimension more."""
    place = draw(st.integers(0, len(shape)))
    lengths = draw(st.sampled_from([(), (), (), (0,), (1,), (2,), (5,)]))
    keep = draw(st.booleans()) or not lengths
    return (*shape[:place], *lengths, *shape[place if keep else place + 1 :]) if lengths else shape


@st.composite
def tensors_near(draw: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    shape, dtype = draw(shapes_near(shape)), draw(st.sampled_from([dtype] * 9 + [torch.float32]))
    values = torch.arange(torch.Size(shape).numel()) % 5 - 2
    return values.view(shape).to(dtype).requires_grad_(draw(st.booleans()))


numbers = st.sampled_from((1, 1, 2, 2, 3, 0, -1))
pairs = st.one_of(numbers, st.tuples(numbers, numbers), st.tuples(numbers), st.sampled_from([(), [], (1, 1, 1)]))


@st.composite
def calls(draw: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """A function, its arguments and keyword arguments; about one in two is wrong."""
    name, dtype = (
        draw(st.sampled_from(NAMES + ("conv2d_relu", "conv2d_relu_max_pool2d", "linear_relu"))),
        draw(st.sampled_from(DTYPES)),
    )
    n, c, o, groups = (draw(st.sampled_from(lengths)) for lengths in ((2, 1, 0), (1, 2, 0), (1, 2), (1, 1, 2)))
    kwargs: dict[str, Any] = {}
    if name.startswith("conv2d"):
        shapes: Any = ((n, groups * c, 5, 6), (groups * o, c, 2, 2), (groups * o,))
        kwargs = draw(st.fixed_dictionaries({}, optional={"stride": pairs, "padding": pairs, "dilation": pairs}))
        kwargs |= {"groups": groups} if groups > 1 else draw(st.fixed_dictionaries({}, optional={"groups": numbers}))
    elif name == "conv_transpose2d":
        shapes = ((n, groups * c, 5, 6), (groups * c, o, 2, 2), (groups * o,))
        optional = {"stride": pairs, "padding": pairs, "output_padding": pairs, "dilation": pairs}
        kwargs = draw(st.fixed_dictionaries({}, optional=optional))
        kwargs |= {"groups": groups} if groups > 1 else draw(st.fixed_dictionaries({}, optional={"groups": numbers}))
    elif name.startswith("linear"):
        shapes = (draw(st.sampled_from(((n, c), (c,), (n, 3, c), (2, 0, c)))), (o, c), (o,))
    elif name == "cross_entropy":
        rows = draw(st.sampled_from(((n, 2), (2,), (n, 2, 3), (n, 2, 3, 3))))
        shapes = (rows, draw(st.sampled_from((rows, rows[:1] + rows[2:]))))
        kwargs = {"reduction": draw(st.sampled_from(("mean", "sum", "none", "all")))}
        kwargs |= draw(st.fixed_dictionaries({}, optional={"ignore_index": numbers, "label_smoothing": st.just(0.5)}))
    elif name == "mse_loss":
        shapes = ((n, c, 3),) * 2
        kwargs = {"reduction": draw(st.sampled_from(("mean", "sum", "none", "all")))}
    else:
        shapes = ((n, o, 5, 6),)
    if name.startswith(("conv", "linear")) and draw(st.booleans()):
        shapes = shapes[:2]
    args = tuple(draw(tensors_near(shape, dtype)) for shape in shapes)
    if name == "cross_entropy" and (args[0].shape != args[1].shape or draw(st.booleans())):
        args = args[0], args[1].detach().abs().long() % 2, *args[2:]
    if name == "softmax":
        args += (draw(st.integers(-5, 4)),)
    if name == "max_pool2d":
        args += (draw(pairs),)
        kwargs = draw(st.fixed_dictionaries({}, optional={"stride": pairs, "padding": pairs, "dilation": pairs}))
        kwargs |= {"ceil_mode": draw(st.booleans()), "return_indices": draw(st.booleans())}
    return name, args, kwargs


def outcome(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The outputs and the gradients, or the error."""
    args = tuple(a.detach().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            y = function(*args, **kwargs)
        except Exception as error:
            return error
    first = y[0] if isinstance(y, tuple) else y
    leaves = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
    try:
        gradients = torch.autograd.grad(first, leaves, torch.ones_like(first), allow_unused=True) if leaves else ()
    except RuntimeError as error:
        return error
    zeros = (torch.zeros_like(leaf) for leaf in leaves)
    return y, tuple(zero if g is None else g for g, zero in zip(gradients, zeros, strict=True))


@settings(max_examples=400)
@given(calls())
def test_odd_shapes(call: tuple[str, tuple[Any, ...], dict[str, Any]]) -> None:
    name, args, kwargs = call
    if name == "cross_entropy" and args[0].dim() == 1 and args[1].shape == (1,):
        return  # a row of test_differences.py
    ours, theirs = (outcome(getattr(library.F, name), args, kwargs) for library in (OURS, TORCHS))
    input, *others = (a for a in args if isinstance(a, Tensor))
    bias_broadcasts = name.startswith("linear") and "expected bias to have shape" in str(ours)
    one_map = name.startswith("linear") and others[0].dim() == 1
    if bias_broadcasts or one_map or (input.numel() == 0 and isinstance(ours, RuntimeError)):
        return  # rows of test_differences.py
    if isinstance(theirs, RuntimeError) and str(theirs).startswith("Found dtype"):
        return  # torch 2.11 has no derivative of a loss of two dtypes
    if isinstance(ours, Exception) or isinstance(theirs, Exception):
        assert_same(ours, theirs)
    else:
        low = {torch.float16: 1e-2, torch.bfloat16: 1e-1}.get(input.dtype, 1e-5)
        torch.testing.assert_close(ours, theirs, rtol=low, atol=low, equal_nan=True)


LIMITED = """
    import resource
    import torch, kernels.functional as F
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
    x, w, one = torch.ones(2, 3, 20, 20, requires_grad=True), torch.ones(4, 3, 2, 2), torch.ones(4, 3, 1, 1)

    def results(n, d):
        y = [F.conv2d(x, w, stride=n), F.conv2d(x, w, stride=(n, 1), padding=3), F.conv2d(x, w, stride=n, dilation=19)]
        y.append(F.conv2d(x, one, stride=2, dilation=d))
        return *y, *torch.autograd.grad(sum(r.sum() for r in y), x), *F.max_pool2d(x, 2, min(n, 2**31 - 1), 0, 1, True, True)

    def transposed(x, w, **arguments):
        return F.conv_transpose2d(x, w.transpose(0, 1), **arguments)

    for huge in HUGE:
        assert all(map(torch.equal, results(huge, huge), results(26, 1))), huge
        for arguments in {"padding": huge}, {"dilation": huge}, {"groups": huge}, {"padding": (huge, 0), "stride": huge}:
            for function in F.conv2d, F.conv2d_relu_max_pool2d, transposed:
                try:
                    function(x, w, **arguments)
                except RuntimeError as error:
                    assert ": expected " in str(error), error
                else:
                    raise AssertionError(arguments)
    for side in 10**5, 2**31 - 1:
        try:
            F.max_pool2d(x, side, padding=side // 2)
        except RuntimeError as error:
            assert "expected padding to leave at most" in str(error), error
        else:
            raise AssertionError(side)
"""


def test_huge_numbers_take_no_memory() -> None:
    """In a process of its own with little memory and time beyond what it takes to load torch."""
    huge = ("HUGE", str(tuple(n for n in HUGE if 2**31 <= n < 2**63)))
    script = textwrap.dedent(LIMITED).replace(*huge).replace("MEMORY", str(4 << 30))
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_symbolic_dim() -> None:
    """make_fx gives softmax a SymInt, which becomes a constant of the graph, as in torch's softmax."""

    def run(x: Tensor, like: Tensor) -> Tensor:
        return kernels.functional.softmax(x, like.shape[0] - 2)

    x = torch.randn(4, 5)
    graph = make_fx(run, tracing_mode="symbolic")(x, torch.ones(3))
    torch.testing.assert_close(graph(x, torch.ones(3)), x.softmax(1))


def test_symbolic_sizes() -> None:
    """A convolution remembers what it found of sizes, but for SymInts, which have no hash."""
    x, weight = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    graph = make_fx(lambda *tensors: kernels.functional.conv2d(*tensors), tracing_mode="symbolic")(x, weight)
    torch.testing.assert_close(graph(x, weight), torch_functional.conv2d(x, weight))


def test_sizes_of_a_trace_are_not_remembered() -> None:
    """In torch.jit.trace a size is a tensor of that trace, which must not be kept: a cache would keep it alive."""
    kept = inspect.getclosurevars(checked_geometry).nonlocals["remember"]
    x, weight = torch.randn(2, 3, 9, 11, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    before = kept.cache_info().currsize
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(lambda x: kernels.functional.conv2d(x, weight), x, check_trace=False)
    assert kept.cache_info().currsize == before
    torch.testing.assert_close(traced(x), torch_functional.conv2d(x, weight))


def test_numbers_that_are_equal_but_of_another_type_are_still_refused() -> None:
    """Though the sizes were seen before with ints."""
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    for one in (1, (1, 1)):
        kernels.functional.conv2d(x, weight, None, one, 1, one)
    for one in (True, 1.0, (1.0, 1), (True, 1)):
        for options in ({"stride": one}, {"padding": one}, {"dilation": one}):
            with pytest.raises(TypeError):
                kernels.functional.conv2d(x, weight, **options)  # type: ignore[arg-type]
