"""Models exported to ONNX: onnxruntime computes what our kernels do, at every batch size."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from models import Net
from torch import Tensor

import kernels
import kernels.functional as F
import kernels.nn as nn
from kernels.ops.arguments import REDUCTIONS
from kernels.ops.linear import ACTIVATIONS, activated_linear
from lenet import LeNet

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from torch.onnx._internal.exporter._registration import ONNXRegistry  # noqa: E402

from kernels.onnx import TRANSLATIONS  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the exporter's, about its own parts
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
PRIMITIVES = torch.ops.lenet_kernels
N = torch.export.Dim("n")


@pytest.fixture(scope="module", autouse=True)
def one_registry() -> Iterator[None]:
    """The exporter's table of all operators is made once: to make it takes longer than to export a model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


class Function(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        return self.function(x) if y is None else self.function(x, y)


class Exported:
    """A model in ONNX, run by onnxruntime; the dimensions `free` of each input are not fixed."""

    def __init__(self, model: nn.Module, *inputs: Tensor, free: dict[int, Any] | None = None) -> None:
        program = torch.onnx.export(
            model.eval(),
            inputs,
            dynamo=True,
            verbose=False,
            dynamic_shapes=(free or {0: N},) * len(inputs),
            custom_translation_table=TRANSLATIONS,
        )
        assert program is not None
        nodes = program.model_proto.graph.node
        assert {node.domain for node in nodes} == {""}, "standard operators only"
        self.operators = [node.op_type for node in nodes]
        self.session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        names = [input.name for input in self.session.get_inputs()]
        arrays = {name: input.numpy() for name, input in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(output) for output in self.session.run(None, arrays))


@torch.no_grad()
def compare(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, inputs: int = 1) -> Exported:
    """Exports the model at a batch of 2, compares outputs at other batch sizes; inputs are whole numbers, with ties."""

    def batch(n: int) -> list[Tensor]:
        return [torch.randint(-4, 5, (n, *shape)).to(dtype) for _ in range(inputs)]

    exported = Exported(model, *batch(2))
    for n in (1, 2, 5):
        tensors = batch(n)
        expected = model(*tensors)
        expected = expected if isinstance(expected, tuple) else (expected,)
        torch.testing.assert_close(exported(*tensors), expected)
    return exported


WEIGHT, BIAS = torch.linspace(-1, 1, 4 * 2 * 3 * 2).view(4, 2, 3, 2), torch.linspace(-1, 1, 4)
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all but groups": {"stride": (1, 2), "padding": (2, 1), "dilation": (2, 1)},
    "same": {"padding": "same"},
    "groups": {"groups": 2, "weight": WEIGHT[:, :1]},
    "no bias": {"bias": None},
}


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_conv2d(options: dict[str, Any]) -> None:
    options = {"weight": WEIGHT, "bias": BIAS} | options
    compare(
        Function(
            lambda x: (F.conv2d(x, **options), *(f(x, **options) for f in (F.conv2d_relu, F.conv2d_relu_max_pool2d)))
        ),
        (2, 8, 9),
    )


TRANSPOSED: dict[str, Any] = {"stride": (2, 1), "padding": (1, 0), "output_padding": (1, 2), "dilation": (1, 3)}


def test_conv_transpose2d() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        grouped = F.conv_transpose2d(x, WEIGHT, torch.ones(4), groups=2, stride=3, padding=1, output_padding=2)
        return grouped, F.conv_transpose2d(x, WEIGHT, BIAS[:2], **TRANSPOSED)

    exported = compare(Function(function), (4, 5, 6))
    assert exported.operators.count("ConvTranspose") == 2 and "Slice" not in exported.operators
    exported = Exported(Function(function), torch.ones(2, 4, 5, 6), free={0: N, 2: torch.export.Dim("h", min=2)})
    for shape in ((1, 4, 4, 6), (3, 4, 9, 6)):
        x = torch.randn(shape)
        torch.testing.assert_close(exported(x), function(x))


def test_one_image() -> None:
    exported = Exported(Function(lambda x: F.conv2d_relu_max_pool2d(x, WEIGHT)), torch.ones(2, 8, 9), free={1: N})
    x = torch.randn(2, 12, 9)
    torch.testing.assert_close(exported(x)[0], F.conv2d_relu_max_pool2d(x, WEIGHT))


def test_positions_of_the_fused_operation() -> None:
    """The byte a window: the place of its maximum, 255 where ReLU leaves nothing."""
    weight = torch.randint(-2, 3, (4, 2, 3, 2)).float()
    geometry = ((1, 1), (0, 0), (1, 1), 1, "")
    compare(Function(lambda x: PRIMITIVES.conv2d_relu_max_pool2d_forward(x, weight, None, *geometry)), (2, 8, 9))


@pytest.mark.parametrize(
    ("windows", "size"),
    (
        ((2,), (8, 9)),
        ((3, 2, 1), (9, 8)),
        (((3, 2), (2, 3), (1, 0)), (10, 7)),
        ((1, 3), (9, 11)),  # with ceil_mode a last window would begin outside
        ((3, (1, 2), (1, 0)), (8, 8)),
        ((17, 1), (18, 19)),  # positions that do not fit into a byte
    ),
    ids=str,
)
def test_max_pool2d(windows: tuple[Any, ...], size: tuple[int, int]) -> None:
    def pool(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            y for ceil in (False, True) for y in F.max_pool2d(x, *windows, ceil_mode=ceil, return_indices=True)
        )

    compare(Function(pool), (3, *size))


def test_max_pool2d_dilated() -> None:
    compare(Function(lambda x: F.max_pool2d(x, (3, 2), 2, 1, (2, 3), return_indices=True)), (3, 9, 10))


def test_images_of_any_size() -> None:
    def function(x: Tensor) -> Any:
        return F.max_pool2d(F.conv2d(x, WEIGHT, BIAS, padding=1), 3, 2, 1, return_indices=True)

    free = {0: N, 2: torch.export.Dim("h", min=4), 3: torch.export.Dim("w", min=4)}
    exported = Exported(Function(function), torch.ones(2, 2, 8, 9), free=free)
    for shape in ((1, 2, 7, 12), (3, 2, 20, 5)):
        x = torch.randn(shape)
        torch.testing.assert_close(exported(x), function(x))


def test_ceil_mode_and_images_of_any_size() -> None:
    """What could only be right for some sizes is not exported."""
    pool = Function(lambda x: F.max_pool2d(x, 2, ceil_mode=True))
    with pytest.raises(torch.onnx.OnnxExporterError) as error:
        Exported(pool, torch.ones(2, 2, 8, 9), free={0: N, 2: torch.export.Dim("h", min=4)})
    assert "ceil_mode needs images of a fixed size" in repr(error.getrepr(chain=True))


@pytest.mark.parametrize("shape", ((3,), (4, 3)))
def test_linear(shape: tuple[int, ...]) -> None:
    weight = torch.randint(-2, 3, (4, 3)).float()
    layers = list(itertools.product((BIAS, None), (None, *ACTIVATIONS)))
    compare(Function(lambda x: tuple(activated_linear("linear", x, weight, *layer) for layer in layers)), shape)


@pytest.mark.parametrize("dtype", (torch.float16, torch.float32, torch.float64), ids=str)
def test_activations(dtype: torch.dtype) -> None:
    compare(Function(lambda x: (F.relu(x), F.sigmoid(x), F.step(x), F.softmax(x, 1), F.softmax(x, 2))), (5, 3), dtype)


@pytest.mark.filterwarnings("ignore:# The axis name")  # of two inputs with one batch size
def test_mse_loss() -> None:
    compare(Function(lambda x, y: tuple(F.mse_loss(x, y, reduction=r) for r in REDUCTIONS)), (5,), inputs=2)


@pytest.mark.filterwarnings("ignore:# The axis name")
@pytest.mark.parametrize("smoothing", (0.0, 0.1))
def test_cross_entropy(smoothing: float) -> None:
    """Of probabilities and of classes, of which one is ignored and one weighs nothing."""
    weight = torch.tensor([0.0, 1.0, 2.0, 3.0, 0.5])

    def losses(x: Tensor, y: Tensor) -> Iterator[Tensor]:
        classes = y.argmax(1)
        for target, w, reduction in itertools.product((y.softmax(1), classes), (None, weight), REDUCTIONS):
            ignore_index = 1 if target is classes else -100
            options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": smoothing}
            yield F.cross_entropy(x, target, w, **options)

    compare(Function(lambda x, y: tuple(losses(x, y))), (5, 2), inputs=2)


def test_every_forward_primitive_has_a_translation() -> None:
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("lenet_kernels::")}
    forward = {name for name in names if name.endswith("_forward")} | {"lenet_kernels::conv2d_input_grad"}
    assert forward == {operator.name() for operator in TRANSLATIONS}


LAYERS = ["Conv", "Relu", "MaxPool", "Conv", "Relu", "MaxPool", "Reshape", "Gemm", "Relu", "Gemm", "Relu", "Gemm"]


@pytest.mark.parametrize("make", (LeNet, Net))
def test_lenet(make: type[nn.Module]) -> None:
    """Fused operations become a layer of operators each, and what only their gradients need is not in the graph."""
    operators = compare(make(), (1, 32, 32)).operators
    assert [operator for operator in operators if operator in LAYERS] == LAYERS
    assert not {"Mod", "Div", "Range"} & set(operators), "arithmetic of positions"


def test_a_swapped_model() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding="same", padding_mode="reflect"),
        torch.nn.Sigmoid(),
        torch.nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        torch.nn.BatchNorm2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * 5 * 5, 6),
        torch.nn.ReLU(),
        torch.nn.Softmax(1),
    )
    assert len(kernels.swap(model).replaced) == 7
    compare(model.eval(), (1, 9, 9))
