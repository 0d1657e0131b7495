"""Tools that read a model rather than run it: what they make of ours, and that they have torch's again after unswap."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from judge import Calls
from torch.ao import quantization
from torch.ao.quantization import quantize_fx
from torch.fx.experimental.optimization import fuse
from torch.overrides import TorchFunctionMode

import kernels
import kernels.functional as F
import kernels.nn as nn

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")

QUANTIZED = pytest.mark.skipif(
    torch.backends.quantized.engine == "none", reason="no engine of torch for quantized tensors"
)


def model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(inplace=True),
        torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2)),
        torch.nn.MaxPool2d(2, 1),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 5),
        torch.nn.Sigmoid(),
        torch.nn.Softmax(1),
    ).eval()


def swapped_model() -> torch.nn.Sequential:
    net = model()
    kernels.swap(net)
    return net


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8)


ROWS, IMAGES, KERNEL = torch.randn(3, 4), torch.randn(2, 1, 6, 6), torch.randn(2, 1, 3, 3)
BIAS = torch.randn(1)
CALLS: dict[str, tuple[Callable[[Any], Any], torch.Tensor]] = {
    "conv2d": (lambda x: F.conv2d(x, KERNEL, None, 1, "same"), IMAGES),
    "conv2d_relu": (lambda x: F.conv2d_relu(x, KERNEL, padding=1), IMAGES),
    "conv2d_relu_max_pool2d": (lambda x: F.conv2d_relu_max_pool2d(x, KERNEL, padding=1), IMAGES),
    "conv_transpose2d": (lambda x: F.conv_transpose2d(x, KERNEL[:1], BIAS, 2, 1, 1), IMAGES),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2, 1, ceil_mode=True, return_indices=True), IMAGES),
    "linear": (lambda x: F.linear(ROWS, x), ROWS),
    "linear_relu": (lambda x: F.linear_relu(ROWS, ROWS, x), torch.randn(3)),
    "relu": (lambda x: F.relu(x), ROWS),
    "sigmoid": (lambda x: F.sigmoid(x), ROWS),
    "step": (lambda x: F.step(x), ROWS),
    "softmax": (lambda x: F.softmax(x, 0, dtype=torch.float64), ROWS),
    "mse_loss": (lambda x: F.mse_loss(ROWS, x, reduction="sum", weight=ROWS.abs()), ROWS + 1),
    "cross_entropy": (
        lambda x: F.cross_entropy(ROWS, x, torch.arange(1.0, 5), ignore_index=2, reduction="none", label_smoothing=0.1),
        torch.tensor([1, 2, 3]),
    ),
}  # fmt: skip


def test_every_function_is_traced_below() -> None:
    assert sorted(CALLS) == sorted(F.__all__)


@pytest.mark.parametrize("name", CALLS)
def test_fx_records_a_function_as_one_call(name: str) -> None:
    function, x = CALLS[name]
    traced = torch.fx.symbolic_trace(function)
    (call,) = (node for node in traced.graph.nodes if node.op == "call_function" and "abs" not in node.name)
    assert call.target.__module__.startswith("kernels.ops.")
    torch.testing.assert_close(traced(x), function(x), rtol=0, atol=0)


class Mode(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", CALLS)
def test_a_mode_and_a_subclass_see_our_functions(name: str) -> None:
    class Subclass(torch.Tensor):
        pass

    function, x = CALLS[name]
    with Mode() as mode:
        expected = function(x)
    assert any(getattr(seen, "__module__", "").startswith("kernels.ops.") for seen in mode.seen)
    if x.is_floating_point():
        result = function(x.as_subclass(Subclass))
        torch.testing.assert_close(result, expected, rtol=0, atol=0, check_stride=False)
        assert all(type(r) is Subclass for r in (result if isinstance(result, tuple) else (result,)))


def test_fx_traces_a_swapped_model() -> None:
    net, x = swapped_model(), images()
    traced = torch.fx.symbolic_trace(net)
    with Calls() as calls:
        torch.testing.assert_close(traced(x), net(x), rtol=0, atol=0)
    assert calls.names[: len(calls.names) // 2] == calls.names[len(calls.names) // 2 :]
    assert "conv2d_relu_max_pool2d_forward" in calls.names
    assert sorted(traced.state_dict()) == sorted(net.state_dict())
    assert isinstance(traced.get_submodule("1"), nn.BatchNorm2d)


def test_fx_keeps_a_transposed_convolution_whose_size_is_computed() -> None:
    class Up(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(1, 2, 3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.up(self.up(x)[:, :1], output_size=(4 * x.shape[2] + 4, 4 * x.shape[3] + 3))

    net = Up()
    traced = torch.fx.symbolic_trace(net)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["up", "up"]
    torch.testing.assert_close(traced(IMAGES), net(IMAGES), rtol=0, atol=0)


@pytest.mark.parametrize("name", ("MSELoss", "CrossEntropyLoss", "Step"))
def test_fx_traces_the_other_modules(name: str) -> None:
    module: Any = getattr(nn, name)()
    arguments = (ROWS,) if name == "Step" else (ROWS, ROWS.softmax(1))
    torch.testing.assert_close(torch.fx.symbolic_trace(module)(*arguments), module(*arguments), rtol=0, atol=0)


def test_fuse_and_prepare_fx_leave_ours_as_they_are() -> None:
    x = images()
    expected = swapped_model()(x)
    torch.testing.assert_close(fuse(swapped_model())(x), expected, rtol=0, atol=0)
    prepared = quantize_fx.prepare_fx(swapped_model(), quantization.get_default_qconfig_mapping(), (x,))
    torch.testing.assert_close(prepared(x), expected, rtol=0, atol=0)


def test_a_traced_model_is_saved_and_computes_other_batches() -> None:
    net, file = swapped_model(), io.BytesIO()
    torch.jit.save(torch.jit.trace(net, images()), file)
    file.seek(0)
    loaded, x = torch.jit.load(file), images(5)
    y = loaded(x)
    torch.testing.assert_close(y, net(x), rtol=0, atol=0)
    assert not y.requires_grad  # the table of differences says so


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # that the size of the images is fixed
def test_a_traced_transposed_convolution_computes_other_batches() -> None:
    layer = nn.ConvTranspose2d(1, 2, 3, 2, output_padding=1)
    traced = torch.jit.trace(layer, images())
    x = images(5)
    torch.testing.assert_close(traced(x), layer(x), rtol=0, atol=0)


def test_the_older_onnx_exporter_says_what_to_do() -> None:
    with pytest.raises(
        RuntimeError, match=r"dynamo=True and custom_translation_table=.*TRANSLATIONS.*kernels\.unswap\(model\)"
    ):
        torch.onnx.export(swapped_model(), (images(),), io.BytesIO(), dynamo=False)


def test_the_newer_onnx_exporter_wants_our_table() -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(torch.onnx.OnnxExporterError, match="No ONNX function found for .*lenet_kernels"):
        torch.onnx.export(swapped_model(), (images(),), dynamo=True, verbose=False)
    from kernels.onnx import TRANSLATIONS

    assert torch.onnx.export(
        swapped_model(), (images(),), dynamo=True, verbose=False, custom_translation_table=TRANSLATIONS
    )


@pytest.mark.parametrize("dynamo", (True, False))
def test_onnx_exports_an_unswapped_model_without_a_table(dynamo: bool) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    net, file = swapped_model(), io.BytesIO()
    kernels.unswap(net)
    torch.onnx.export(net, (images(),), file, dynamo=dynamo)
    assert "Conv" in {node.op_type for node in onnx.load_from_string(file.getvalue()).graph.node}


def unswapped_model() -> torch.nn.Sequential:
    net = swapped_model()
    kernels.unswap(net)
    return net


@QUANTIZED
def test_quantize_dynamic_finds_torch_s_modules_only() -> None:
    kinds = [type(quantization.quantize_dynamic(net)[6]) for net in (swapped_model(), unswapped_model())]
    assert kinds == [nn.Linear, torch.ao.nn.quantized.dynamic.Linear]


@QUANTIZED
def test_eager_quantization_finds_torch_s_modules_only() -> None:
    kinds = []
    for net in (swapped_model(), unswapped_model()):
        net[0].padding_mode = "zeros"  # which quantized convolutions ask for
        net.qconfig = quantization.get_default_qconfig()
        prepared = quantization.prepare(net)
        prepared(images())
        kinds.append(type(quantization.convert(prepared)[0]))
    assert kinds == [nn.Conv2d, torch.ao.nn.quantized.Conv2d]


def test_fuse_modules_finds_torch_s_modules_only() -> None:
    with pytest.raises(AssertionError, match=r"did not find fuser method for.*kernels\.nn\.Conv2d"):
        quantization.fuse_modules(swapped_model(), ["0", "1", "2"])
    x = images()
    fused = quantization.fuse_modules(unswapped_model(), ["0", "1", "2"])
    assert isinstance(fused[0], torch.ao.nn.intrinsic.ConvReLU2d)
    torch.testing.assert_close(fused(x), model()(x))


class Logged(torch.Tensor):
    """A subclass of no behaviour of its own."""


@pytest.mark.parametrize("name", ("conv2d", "linear", "relu", "softmax", "mse_loss"))
def test_torch_compile_takes_a_subclass(name: str) -> None:
    function, x = CALLS[name]
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x.as_subclass(Logged)), function(x.as_subclass(Logged)))
