"""torch.func: vmap by rules, tangents, jacobians, per-sample gradients."""

from typing import Any

import pytest
import torch
from models import Net
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import kernels.functional as F
from kernels.ops.arguments import REDUCTIONS
from lenet import LeNet

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.filterwarnings("error:There is a performance drop"),  # what vmap says where it loops
]
B = 3
CONVOLUTION = {"stride": (1, 2), "padding": (1, 0), "dilation": (2, 1), "groups": 2}
TRANSPOSED = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 3), "groups": 2}
CLASSES = torch.tensor([[1, 3], [-100, 0], [2, 2]])
CALLS: dict[str, tuple[Any, tuple[tuple[int, ...], ...]]] = {
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, **CONVOLUTION), ((2, 4, 4, 4), (4, 2, 3, 2), (4,))),
    "conv2d_unbatched": (F.conv2d, ((2, 5, 4), (3, 2, 3, 2), (3,))),
    "conv_transpose2d": (
        lambda x, w, b: F.conv_transpose2d(x, w, b, output_padding=(1, 2), **TRANSPOSED),  # type: ignore[arg-type]
        ((2, 4, 2, 3), (4, 2, 2, 2), (4,)),
    ),
    "conv2d_relu": (lambda x, w, b: F.conv2d_relu(x, w, b, **CONVOLUTION), ((2, 4, 4, 4), (4, 2, 3, 2), (4,))),
    "conv2d_relu_max_pool2d": (
        lambda x, w, b: F.conv2d_relu_max_pool2d(x, w, b, **CONVOLUTION),
        ((2, 4, 6, 4), (4, 2, 3, 2), (4,)),
    ),
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2, 1), ((2, 3, 6, 5),)),
    "linear": (F.linear, ((2, 4), (3, 4), (3,))),
    "linear_relu": (F.linear_relu, ((2, 5, 4), (3, 4), (3,))),
    "relu": (F.relu, ((4, 5),)),
    "sigmoid": (F.sigmoid, ((4, 5),)),
    "step": (F.step, ((4, 5),)),
    "softmax": (lambda x: F.softmax(x, 1), ((2, 3, 4),)),
    "softmax_of_a_number": (lambda x: F.softmax(x, 0), ((),)),
    "mse_loss_mean": (F.mse_loss, ((2, 3), (2, 3))),
    "mse_loss_sum": (lambda x, t: F.mse_loss(x, t, reduction="sum"), ((2, 3), (2, 3))),
    "mse_loss_none": (lambda x, t: F.mse_loss(x, t, reduction="none"), ((2, 3), (2, 3))),
    "cross_entropy": (lambda x: F.cross_entropy(x, CLASSES, label_smoothing=0.1), ((3, 4, 2),)),
    "cross_entropy_of_a_row": (lambda x: F.cross_entropy(x, CLASSES[0, 0], reduction="none"), ((4,),)),
    "cross_entropy_of_probabilities": (
        lambda x, t, w: F.cross_entropy(x, t, w, reduction="none", label_smoothing=0.1),
        ((3, 4, 2), (3, 4, 2), (4,)),
    ),
    "cross_entropy_of_probabilities_mean": (F.cross_entropy, ((3, 4), (3, 4), (4,))),
}
call = pytest.mark.parametrize("name", CALLS)


def arguments(name: str, dtype: torch.dtype = torch.float64) -> tuple[Any, list[Tensor]]:
    function, shapes = CALLS[name]
    return function, [torch.randn(shape, dtype=dtype) for shape in shapes]


def mappings(count: int) -> list[tuple[int | None, ...]]:
    """Which of `count` arguments are mapped: each choice but none at all."""
    return [tuple(0 if i >> k & 1 else None for k in range(count)) for i in range(1, 2**count)]


def looped(function: Any, in_dims: tuple[int | None, ...], tensors: list[Tensor]) -> Any:
    """What vmap must equal: sample after sample."""
    rows = [
        function(*(t if dim is None else t.select(dim, i) for t, dim in zip(tensors, in_dims, strict=True)))
        for i in range(B)
    ]
    return tuple(map(torch.stack, zip(*rows, strict=True))) if isinstance(rows[0], tuple) else torch.stack(rows)


def samples(tensors: list[Tensor], in_dims: tuple[int | None, ...]) -> list[Tensor]:
    return [
        t if dim is None else torch.randn(B, *t.shape, dtype=t.dtype).movedim(0, dim)
        for t, dim in zip(tensors, in_dims, strict=True)
    ]


@call
def test_vmap_equals_a_loop(name: str) -> None:
    function, tensors = arguments(name)
    for in_dims in mappings(len(tensors)):
        mapped = samples(tensors, in_dims)
        torch.testing.assert_close(vmap(function, in_dims)(*mapped), looped(function, in_dims, mapped))


@call
def test_vmap_of_gradients_equals_a_loop(name: str) -> None:
    function, tensors = arguments(name)
    everything = tuple(range(len(tensors)))
    gradients = grad(lambda *ts: (function(*ts) ** 2).sum(), everything)
    for in_dims in mappings(len(tensors)):
        mapped = samples(tensors, in_dims)
        torch.testing.assert_close(vmap(gradients, in_dims)(*mapped), looped(gradients, in_dims, mapped))


def test_a_mapped_dimension_may_lie_anywhere_and_maps_may_nest() -> None:
    x, w = torch.randn(2, 4, 6, 5, 3), torch.randn(5, 6, 2, 4, 3, 2)
    once = vmap(F.conv2d, (4, None), out_dims=1)(x, w[0, :, 0])
    assert torch.equal(once, torch.stack([F.conv2d(x[..., i], w[0, :, 0]) for i in range(3)], 1))
    twice = vmap(vmap(F.conv2d, (4, None)), (None, 0))(x, w[:, :, 0])
    loop = torch.stack([torch.stack([F.conv2d(x[..., i], w[j, :, 0]) for i in range(3)]) for j in range(5)])
    torch.testing.assert_close(twice, loop)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_mapped_classes_and_weights_equal_a_loop(reduction: str) -> None:
    """Each sample has its own classes, of which some are ignored, or its own weights, or both."""
    x, classes = torch.randn(4, 3, 2, dtype=torch.float64), torch.tensor([[0, 2], [1, -1], [2, 2], [-1, 1]])
    tensors = [x, classes, torch.rand(3, dtype=torch.float64)]

    def loss(x: Tensor, classes: Tensor, weight: Tensor) -> Tensor:
        options = {"ignore_index": -1, "reduction": reduction, "label_smoothing": 0.1}
        return F.cross_entropy(x, classes, weight, **options)

    gradient = grad(lambda *ts: (loss(*ts) ** 2).sum())
    for in_dims in mappings(3):
        mapped = [
            t if d is None else torch.stack([t, t.flip(0), t.roll(1, 0)]) for t, d in zip(tensors, in_dims, strict=True)
        ]
        for function in (loss, gradient):
            torch.testing.assert_close(vmap(function, in_dims)(*mapped), looped(function, in_dims, mapped))


@call
def test_tangents(name: str) -> None:
    """Forward-mode against finite differences, alone and over reverse mode."""
    function, tensors = arguments(name)
    inputs = [t.requires_grad_() for t in tensors]
    assert gradcheck(function, inputs, check_forward_ad=True)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True)


@call
def test_mapped_tangents_equal_a_loop(name: str) -> None:
    """vmap of jvp and jvp of vmap."""
    function, tensors = arguments(name)
    for in_dims in mappings(len(tensors)):
        x = samples(tensors, in_dims)
        dx = samples(tensors, in_dims)

        def tangent(*both: Tensor) -> Any:
            return jvp(function, both[: len(tensors)], both[len(tensors) :])

        expected = looped(tangent, in_dims * 2, x + dx)
        torch.testing.assert_close(vmap(tangent, in_dims * 2)(*x, *dx), expected)
        torch.testing.assert_close(jvp(vmap(function, in_dims), tuple(x), tuple(dx)), expected)


@pytest.mark.parametrize(
    ("function", "shapes"),
    (
        (F.conv2d, ((2, 1, 4, 4), (3, 1, 2, 2))),
        (F.conv2d_relu_max_pool2d, ((2, 1, 4, 4), (3, 1, 2, 2))),
        (lambda x, w: F.max_pool2d(x * w, 2), ((2, 1, 4, 4), ())),
        (F.linear, ((2, 4), (3, 4))),
    ),
    ids=("conv2d", "conv2d_relu_max_pool2d", "max_pool2d", "linear"),
)
@pytest.mark.parametrize("in_dims", ((0, None), (None, 0), (0, 0)))
def test_vmap_of_a_result_that_is_written_to_in_place(function: Any, shapes: Any, in_dims: Any) -> None:
    def in_place(x: Tensor, w: Tensor) -> Tensor:
        return F.relu(function(x, w), inplace=True)

    x, w = (torch.randn([*[B] * (dim == 0), *shape]) for shape, dim in zip(shapes, in_dims, strict=True))
    for mapped in ([x, w.requires_grad_()], [x.requires_grad_(), w]):
        results = vmap(in_place, in_dims)(*mapped), looped(in_place, in_dims, mapped)
        torch.testing.assert_close(*results)
        torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), mapped, allow_unused=True) for y in results))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's older vmap knows no rules of others
@call
def test_a_batch_of_gradients(name: str) -> None:
    function, tensors = arguments(name)
    inputs = [t.requires_grad_() for t in tensors]
    y = function(*inputs)
    dy = torch.randn(B, *y.shape, dtype=y.dtype)
    mapped = torch.autograd.grad(y, inputs, dy, retain_graph=True, is_grads_batched=True)
    loop = zip(*(torch.autograd.grad(y, inputs, dy[i], retain_graph=True) for i in range(B)), strict=True)
    torch.testing.assert_close(mapped, tuple(map(torch.stack, loop)))


def test_tangents_without_recording() -> None:
    x, dx = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    with torch.no_grad(), forward_ad.dual_level():
        _, tangent = forward_ad.unpack_dual(F.sigmoid(forward_ad.make_dual(x, dx)))
    torch.testing.assert_close(tangent, jvp(torch.sigmoid, (x,), (dx,))[1])


@pytest.mark.parametrize("jacobian", (jacrev, jacfwd, hessian))
def test_jacobians_equal_torch_s(jacobian: Any) -> None:
    x, w, b = (torch.randn(s, dtype=torch.float64) for s in ((1, 2, 4, 4), (2, 2, 3, 3), (2,)))

    def network(functional: Any) -> Any:
        return lambda *ts: functional.softmax(functional.sigmoid(functional.conv2d(*ts)).flatten(1), 1)

    for place in (0, 1, 2):
        ours, theirs = (jacobian(network(f), place)(x, w, b) for f in (F, torch.nn.functional))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("make", (LeNet, Net), ids=("fused", "separate"))
def test_per_sample_gradients_of_lenet(make: Any) -> None:
    net = make().double()
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    x, target = torch.randn(4, 1, 32, 32, dtype=torch.float64), torch.randn(4, 10, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(functional_call(net, parameters, x[None]), target[None])

    mapped = vmap(grad(loss), (None, 0, 0))(parameters, x, target)
    for i in range(len(x)):
        single = grad(loss)(parameters, x[i], target[i])
        torch.testing.assert_close({name: g[i] for name, g in mapped.items()}, single)


def test_an_ensemble_of_networks() -> None:
    nets = [LeNet().double() for _ in range(3)]
    parameters, _ = torch.func.stack_module_state(nets)
    x = torch.randn(5, 1, 32, 32, dtype=torch.float64)
    together = vmap(lambda p: functional_call(nets[0], p, x))(parameters)
    torch.testing.assert_close(together, torch.stack([net(x) for net in nets]))


def test_what_leaves_a_transform_is_an_ordinary_tensor() -> None:
    kept = []

    def loss(x: Tensor) -> Tensor:
        kept.append(x * 2)
        return F.relu(x).sum()

    x = torch.randn(3)
    grad(loss)(x)
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            assert torch.equal(F.relu(kept[0]), torch.relu(2 * x))


def test_a_pullback_is_differentiated_after_its_transform() -> None:
    """What vjp saved is still wrapped then: autograd has to see the tensors inside."""
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    weight, dy = torch.randn(4, 3, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)

    def second(linear: Any, sigmoid: Any) -> Tensor:
        _, pull_back = vjp(lambda x: sigmoid(linear(x, weight)), x)
        (dx,) = pull_back(dy)
        return torch.autograd.grad(dx.square().sum(), x)[0]

    torch.testing.assert_close(second(F.linear, F.sigmoid), second(torch.nn.functional.linear, torch.sigmoid))
