"""Every torch operator we register: torch's own operator checks, fakes that tell the truth, and a name in each backend."""

import ast
import importlib.util
import inspect
import itertools
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
import kernels.functional as F
import kernels.nn
import kernels.ops
from kernels.backend import NAMES
from kernels.check.operations import LAYOUTS
from kernels.numpy.tile import Tile

OPERATORS = {
    name.removeprefix("lenet_kernels::"): getattr(torch.ops.lenet_kernels, name.removeprefix("lenet_kernels::")).default
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("lenet_kernels::")
}
CONVOLUTION = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2}
WINDOWS = {"kernel_size": (3, 2), "stride": (2, 2), "padding": (1, 0), "dilation": (1, 2)}
REDUCTIONS = (("none", "sum"), ("none", "mean", "sum"))  # the mean of nothing is NaN, which opcheck finds unequal
SGD = dict.fromkeys(("lr", "momentum", "dampening", "weight_decay"), 0.1) | {"nesterov": False, "maximize": True}


def arguments(n: int) -> dict[str, list[dict[str, Any]]]:
    """For each operator the arguments of some calls, on a batch of n."""
    image, weight, dy = torch.randn(n, 4, 7, 6), torch.randn(6, 2, 3, 2), torch.randn(n, 6, 4, 4)
    rows, matrix = torch.randn(n, 5), torch.randn(3, 5)
    drows, y = torch.randn(n, 3), torch.rand(n, 3)
    convolution = {"input": image, "weight": weight} | CONVOLUTION
    backward = {"dy": dy[:, :, :2, :2], "positions": torch.randint(4, (n, 6, 2, 2), dtype=torch.uint8)}
    positions = torch.zeros(n, 4, 4, 2, dtype=torch.uint8)
    pooled = torch.randn(positions.shape)
    parameters = {"params": [matrix.clone()], "grads": [torch.randn(3, 5)], "backend": ""}
    linear = {"input": rows, "weight": matrix}
    cross_entropy = {"input": drows, "ignore_index": -100, "label_smoothing": 0.1}
    classes, norm = torch.arange(n) % 3, {"norm": torch.rand(2, n), "divisor": torch.tensor(2.0)}
    each: dict[str, list[dict[str, Any]]] = {
        "conv2d_forward": [convolution | {"bias": bias} for bias in (None, torch.randn(6))],
        "conv2d_input_grad": [{"dy": dy, "weight": weight, "input_size": (7, 6)} | CONVOLUTION],
        "conv2d_weight_grad": [
            {"dy": dy, "input": image, "kernel_size": (3, 2), "with_bias": bias} | CONVOLUTION for bias in (False, True)
        ],
        "conv2d_relu_forward": [convolution | {"bias": torch.randn(6)}],
        "conv2d_relu_max_pool2d_forward": [convolution | {"bias": bias} for bias in (None, torch.randn(6))],
        "conv2d_relu_max_pool2d_backward": [
            convolution | backward | {"needed": needed}
            for needed in ([True] * 3, [False, True, False], [True, False, False])
        ],
        "max_pool2d_forward": [{"input": image, "ceil_mode": ceil} | WINDOWS for ceil in (False, True)],
        "max_pool2d_input_grad": [{"dy": pooled, "positions": positions, "input_size": (7, 6)} | WINDOWS],
        "max_pool2d_gather": [{"input": image, "positions": positions} | WINDOWS],
        "linear_forward": [linear | {"bias": None, "activation": activation} for activation in (None, "sigmoid")],
        "linear_input_grad": [{"dy": drows, "weight": matrix}],
        "linear_weight_grad": [{"dy": drows, "input": rows}],
        "linear_backward": [
            linear | {"dy": drows, "y": y, "needed": needed, "activation": activation}
            for needed in ([True] * 3, [False, True, True], [True, False, False])
            for activation in (None, "relu")
        ],
        "relu_forward": [{"input": image}],
        "relu_": [{"input": image}],
        "relu_backward": [{"dy": drows, "y": y}],
        "sigmoid_forward": [{"input": image}],
        "sigmoid_backward": [{"dy": drows, "y": y}],
        "step_forward": [{"input": image}],
        "softmax_forward": [{"input": image, "dim": dim} for dim in (0, 3)],
        "softmax_backward": [{"dy": drows, "y": y, "dim": 1}],
        "mse_loss_forward": [{"input": rows, "target": rows + 1, "reduction": r} for r in REDUCTIONS[n > 0]],
        "mse_loss_backward": [
            {"dloss": torch.tensor(2.0), "input": rows, "target": rows + 1, "reduction": "mean"},
            {"dloss": rows, "input": rows, "target": rows + 1, "reduction": "none"},
        ],
        "cross_entropy_forward": [
            cross_entropy | {"target": target, "weight": w, "reduction": reduction}
            for target, w, reduction in itertools.product((classes, y), (None, torch.rand(3)), REDUCTIONS[n > 0])
        ],
        "cross_entropy_backward": [
            cross_entropy | norm | {"dloss": dloss, "target": target, "weight": torch.rand(3)}
            for dloss, target in itertools.product((torch.tensor(2.0), torch.randn(n)), (classes, y))
        ],
        "sgd": [
            parameters | SGD | {"momentum_buffers": [torch.randn(3, 5)], "lr_tensor": lr, "first": first}
            for lr in (None, torch.tensor(0.5))
            for first in (False, True)
        ],
    }
    return {name: [{"backend": ""} | call for call in calls] for name, calls in each.items()}


def laid_out(call: dict[str, Any], layout: str, *names: str) -> dict[str, Any]:
    """The call with its tensors in another layout, or only the tensors of these names."""
    return call | {name: LAYOUTS[layout](call[name]) for name in names or tensors(call)}


def tensors(call: dict[str, Any]) -> list[str]:
    """The names of the arguments that are tensors."""
    return [name for name, value in call.items() if isinstance(value, Tensor)]


def test_every_operator_is_tested() -> None:
    assert OPERATORS.keys() == arguments(2).keys()


@pytest.mark.parametrize(("n", "layout"), ((0, "contiguous"), (3, "contiguous"), (3, "expanded"), (3, "channels_last")))
@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name: str, n: int, layout: str) -> None:
    for call in arguments(n)[name]:
        opcheck(OPERATORS[name], (), laid_out(call, layout))


@pytest.mark.parametrize("n", (0, 1, 3))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_fakes_have_the_strides_of_results(name: str, layout: str, n: int) -> None:
    for call in arguments(n)[name]:
        compare_fake(name, laid_out(call, layout))
        if len(tensors(call)) > 1:
            for one in tensors(call):
                compare_fake(name, laid_out(call, layout, one))


@pytest.mark.parametrize("layout", ("contiguous", "channels_last"))
@pytest.mark.parametrize("name", OPERATORS)
def test_fakes_have_the_strides_of_a_backends_results(name: str, layout: str, backend: str) -> None:
    for call in arguments(3)[name]:
        compare_fake(name, laid_out(call | {"backend": backend}, layout))


def compare_fake(name: str, call: dict[str, Any]) -> None:
    real = OPERATORS[name](**call)
    with FakeTensorMode() as mode:
        fake = OPERATORS[name](**torch.utils._pytree.tree_map_only(Tensor, mode.from_tensor, call))
    assert description(fake) == description(real)


def description(results: Any) -> list[tuple]:
    """What a fake must know of results; strides only where there are two elements in the dimension."""
    results = results if isinstance(results, tuple) else (results,)
    return [
        (r.shape, [r.stride(d) for d in range(r.dim()) if r.numel() and r.shape[d] > 1], r.dtype, r.device)
        for r in results
        if r is not None
    ]


@pytest.mark.parametrize("package", NAMES)
def test_every_backend_has_every_operator(package: str) -> None:
    """Under its own name: without a GPU a backend cannot be imported, but its __init__.py can be read."""
    spec = importlib.util.find_spec(f"kernels.{package}")
    if spec is None:
        assert "does not contain" in next(b.why_not for b in kernels.backends() if b.name == package)
        return
    body = ast.parse(Path(str(spec.origin)).read_text()).body
    aliases = [alias for node in body if isinstance(node, ast.ImportFrom) for alias in node.names]
    names = {alias.name for alias in aliases if alias.asname in (None, alias.name)}
    for node in body:
        if isinstance(node, ast.Assign):  # a function of arrays of the same name, wrapped
            wrapped = {part.attr for part in ast.walk(node.value) if isinstance(part, ast.Attribute)}
            names |= wrapped & {target.id for target in node.targets if isinstance(target, ast.Name)}
    assert OPERATORS.keys() <= names


@pytest.mark.parametrize("name", OPERATORS)
def test_a_primitive_says_where_its_code_is(name: str) -> None:
    """What a reader finds who follows a call computes nothing: the functions of its name in the backends do."""
    modules = [
        importlib.import_module(f"kernels.ops.{file.name}") for file in pkgutil.iter_modules(kernels.ops.__path__)
    ]
    (docstring,) = {vars(module)[name].__doc__ for module in modules if name in vars(module)}
    said = re.search(r"Its code: (\w+) in kernels/\{([\w,]+)\}/(\w+)\.py\.$", inspect.cleandoc(docstring))
    assert said and (said[1], said[2]) == (name, ",".join(NAMES))
    for package in NAMES:
        if importlib.util.find_spec(f"kernels.{package}"):
            file = Path(kernels.__file__).parent / package / f"{said[3]}.py"
            assert name in {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_a_traceback_leads_from_the_module_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """nn, operation, torch, backend: each frame says which operation it is of, and none comes back up."""

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Tile, "convolve", fail)
    with pytest.raises(ZeroDivisionError) as raised:
        kernels.nn.Conv2d(1, 2, 3)(torch.randn(2, 1, 5, 5))
    root = Path(kernels.__file__).parent
    frames = [(Path(entry.path), entry.name) for entry in raised.traceback]
    ours = [(path.relative_to(root).as_posix(), name) for path, name in frames if path.is_relative_to(root)]
    assert ours[:6] == [
        ("nn/__init__.py", "forward"),
        ("ops/conv2d.py", "conv2d"),
        ("integration/autograd.py", "apply_Conv2d"),
        ("integration/primitive.py", "conv2d_forward"),
        ("numpy/arrays.py", "conv2d_forward_on_arrays"),
        ("numpy/conv2d.py", "conv2d_forward"),
    ]
    assert all(path.startswith("numpy/") for path, _ in ours[6:])


class Seen(TorchDispatchMode):
    """The operators that reach torch's dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(operator))
        return operator(*args, **(kwargs or {}))


def test_a_mode_sees_the_operators() -> None:
    x, weight = torch.randn(2, 3, requires_grad=True), torch.randn(4, 3)
    with Seen() as seen:
        F.linear(x, weight).sum().backward()
    assert {"lenet_kernels.linear_forward.default", "lenet_kernels.linear_backward.default"} <= set(seen.names)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_a_trace_keeps_the_operators() -> None:
    x, other = torch.randn(2, 3), torch.randn(2, 3)
    with torch.no_grad():
        traced = torch.jit.trace(F.relu, (x,))
    assert torch.equal(traced(other), other.relu())


def test_a_tensor_subclass_answers_for_the_operators() -> None:
    class Answering(Tensor):
        @classmethod
        def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return torch.full((3,), 7.0) if operator is OPERATORS["relu_forward"] else NotImplemented

    with torch.no_grad():
        assert torch.equal(F.relu(torch.randn(3).as_subclass(Answering)), torch.full((3,), 7.0))


def test_a_lazily_negated_tensor() -> None:
    x = torch.ones(3, dtype=torch.complex64).mul(1j).conj().imag
    assert x.is_neg()
    assert torch.equal(F.relu(-x), torch.ones(3))
    assert torch.equal(F.relu(x), torch.zeros(3))


EXOTIC = {
    "sparse_coo": lambda t: t.to_sparse(),
    "sparse_csr": lambda t: t.to_sparse_csr() if t.dim() == 2 else t.to_sparse(),
    "mkldnn": lambda t: t.to_mkldnn(),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.quint8),
    "nested": lambda t: torch.nested.nested_tensor([t, t]),
}
CALLS: dict[str, tuple[Any, tuple[tuple[int, ...], ...]]] = {
    "conv2d": (F.conv2d, ((1, 2, 4, 4), (3, 2, 2, 2), (3,))),
    "conv2d_relu": (F.conv2d_relu, ((1, 2, 4, 4), (3, 2, 2, 2), (3,))),
    "conv2d_relu_max_pool2d": (F.conv2d_relu_max_pool2d, ((1, 2, 4, 4), (3, 2, 2, 2), (3,))),
    "conv_transpose2d": (F.conv_transpose2d, ((1, 2, 4, 4), (2, 3, 2, 2))),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), ((1, 2, 4, 4),)),
    "linear": (F.linear, ((2, 3), (4, 3), (4,))),
    "mse_loss": (F.mse_loss, ((2, 3), (2, 3))),
    "cross_entropy": (F.cross_entropy, ((2, 3), (2, 3), (3,))),
    "relu": (F.relu, ((2, 3),)),
    "relu in place": (lambda x: F.relu(x, inplace=True), ((2, 3),)),
    "sigmoid": (F.sigmoid, ((2, 3),)),
    "step": (F.step, ((2, 3),)),
    "softmax": (lambda x: F.softmax(x, 1), ((2, 3),)),
}


@pytest.mark.filterwarnings("ignore:.*(beta|prototype|deprecated)")
@pytest.mark.parametrize("kind", EXOTIC)
@pytest.mark.parametrize("name", CALLS)
def test_tensors_without_plain_memory(name: str, kind: str) -> None:
    """Each argument in turn: torch's dispatcher says that we have nothing for them, or an argument check does."""
    function, shapes = CALLS[name]
    for i in range(len(shapes)):
        tensors = [torch.randn(shape) for shape in shapes]
        try:
            tensors[i] = EXOTIC[kind](tensors[i])
        except RuntimeError:
            continue  # mkldnn has no vectors
        error = NotImplementedError if kind in ("sparse_coo", "sparse_csr", "mkldnn") else RuntimeError
        with pytest.raises(error) as raised:
            function(*tensors)
        assert "\n" not in str(raised.value)


def test_tensors_that_torch_resolves_when_it_must() -> None:
    """Zeros without memory, and numbers of the other sign than those in memory."""
    for name, (function, shapes) in CALLS.items():
        for i in range(len(shapes)):
            tensors = [torch.randn(shape) for shape in shapes]
            for lazy, resolved in (
                (torch._efficientzerotensor(shapes[i]), torch.zeros(shapes[i])),
                (torch._neg_view(tensors[i]), -tensors[i]),
            ):
                results = [function(*tensors[:i], t, *tensors[i + 1 :]) for t in (lazy, resolved)]
                torch.testing.assert_close(*results, msg=name)
