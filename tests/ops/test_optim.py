"""optim.SGD step for step beside torch.optim.SGD."""

import itertools
from typing import Any

import pytest
import torch
from cases import generator_of
from judge import Calls
from torch import Tensor

import kernels.optim as optim

pytestmark = pytest.mark.usefixtures("poisoned")

SHAPES = ((4, 3, 2), (5,), ())
OPTIONS = [
    {"momentum": m, "dampening": d, "weight_decay": w, "nesterov": n, "maximize": x}
    for m, d, w, n, x in itertools.product((0.0, 0.9), (0.0, 0.3), (0.0, 0.1), (False, True), (False, True))
    if not n or (m and not d)
]


def parameters(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = generator_of(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in SHAPES]


def give_gradients(params: list[Tensor], step: int) -> None:
    """The last parameter has none before the third step."""
    generator = generator_of(step)
    for i, p in enumerate(params):
        grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        p.grad = grad if i < len(params) - 1 or step > 1 else None


class Pair:
    """The same parameters under our SGD and torch's."""

    def __init__(self, params: Any = parameters, **options: Any) -> None:
        self.params = params(), params()
        self.optimisers = optim.SGD(self.params[0], **options), torch.optim.SGD(self.params[1], **options)

    def step(self, number: int) -> None:
        for params, optimiser in zip(self.params, self.optimisers, strict=True):
            give_gradients(params, number)
            optimiser.step()

    def check(self, **tolerance: float) -> None:
        states = [[o.state[p] for p in params] for params, o in zip(self.params, self.optimisers, strict=True)]
        torch.testing.assert_close(*self.params, **tolerance)
        torch.testing.assert_close(*states, **tolerance)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(name for name, on in options.items() if on))
def test_steps(options: dict[str, Any]) -> None:
    pair = Pair(lr=0.1, **options)
    for number in range(5):
        pair.step(number)
        pair.check()


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32), ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    """Ours rounds once a step, torch's after every operation: each is within a few roundings of the exact step."""
    pair = Pair(lambda: parameters(dtype), lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True)
    for number in range(3):
        pair.step(number)
    pair.check(rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("momentum", (0.0, 0.9))
def test_dtypes_of_one_group(momentum: float) -> None:
    """float64 keeps its range beside what is computed in float32."""
    values = {torch.float64: 1e300, torch.bfloat16: 1.0, torch.float32: 1.0}
    pair = Pair(
        lambda: [torch.full((4,), v, dtype=d).requires_grad_() for d, v in values.items()], lr=0.1, momentum=momentum
    )
    for number in (2, 3):
        pair.step(number)
    pair.check()


@pytest.mark.parametrize("stride", (lambda t: t.t(), lambda t: t[:, ::2], lambda t: t[1:]))
def test_parameters_that_are_not_contiguous(stride: Any) -> None:
    pair = Pair(lambda: [stride(torch.ones(4, 6, dtype=torch.float64)).requires_grad_()], lr=0.1, momentum=0.9)
    for number in (2, 3):
        pair.step(number)
        pair.check()


def test_many_parameters_of_all_sizes_and_dtypes() -> None:
    sizes = [size for i in range(36) for size in (0, i + 1, 16 * i, 1000 + i)]
    dtypes = (torch.float32, torch.float64)
    pair = Pair(lambda: [torch.ones(n, dtype=dtypes[n % 2]).requires_grad_() for n in sizes], lr=0.1, momentum=0.9)
    for number in (2, 3):
        pair.step(number)
    pair.check()


def test_gradient_in_another_memory_order() -> None:
    pair = Pair(
        lambda: [torch.ones(4, 6).requires_grad_(), torch.ones(2, 3, 4, 5).requires_grad_()], lr=0.1, momentum=0.9
    )
    for number in (2, 3):
        for params, optimiser in zip(pair.params, pair.optimisers, strict=True):
            give_gradients(params, number)
            params[0].grad = params[0].grad.t().contiguous().t()
            params[1].grad = params[1].grad.contiguous(memory_format=torch.channels_last)
            optimiser.step()
    pair.check()


def test_groups_with_options_of_their_own() -> None:
    pair = Pair(lr=0.1)
    for optimiser, added in zip(pair.optimisers, (parameters(), parameters()), strict=True):
        optimiser.add_param_group({"params": added, "momentum": 0.5, "weight_decay": 0.2, "lr": 0.5})
    pair.params = tuple([p for group in o.param_groups for p in group["params"]] for o in pair.optimisers)
    for number in range(4):
        pair.step(number)
        pair.check()


def test_learning_rate_in_a_tensor() -> None:
    pair = Pair(lr=torch.tensor(0.25, dtype=torch.float64), momentum=0.9)
    for number in range(3):
        for optimiser in pair.optimisers:
            optimiser.param_groups[0]["lr"].mul_(0.5)
        pair.step(number)
        pair.check()


@pytest.mark.parametrize(
    "schedule",
    (
        lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.1),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.5, total_steps=6),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 6),
    ),
    ids=("StepLR", "OneCycleLR", "CosineAnnealingLR"),
)
def test_schedulers(schedule: Any) -> None:
    pair = Pair(lr=0.1, momentum=0.9)
    schedulers = [schedule(optimiser) for optimiser in pair.optimisers]
    for number in range(5):
        pair.step(number)
        pair.check()
        for scheduler in schedulers:
            scheduler.step()


def test_state_dict_goes_both_ways() -> None:
    pair = Pair(lr=0.1, momentum=0.9, nesterov=True)
    for number in range(3):
        pair.step(number)
    ours, theirs = (optimiser.state_dict() for optimiser in pair.optimisers)
    assert ours["param_groups"] == theirs["param_groups"]
    pair.optimisers[0].load_state_dict(theirs)
    pair.optimisers[1].load_state_dict(ours)
    for number in range(3, 6):
        pair.step(number)
        pair.check()


def test_closure() -> None:
    results = []
    for SGD in (optim.SGD, torch.optim.SGD):
        p = torch.tensor([2.0], requires_grad=True)
        optimiser = SGD([p], lr=0.1)

        def closure(p: Tensor = p, optimiser: Any = optimiser) -> Tensor:
            optimiser.zero_grad()
            loss = (p * p).sum()
            loss.backward()
            return loss

        results += [optimiser.step(closure).item(), p.item()]
    assert results[:2] == results[2:]


def test_hooks_run() -> None:
    p = torch.ones(1, requires_grad=True)
    optimiser, calls = optim.SGD([p], lr=0.1), []
    optimiser.register_step_pre_hook(lambda *_: calls.append("before"))
    optimiser.register_step_post_hook(lambda *_: calls.append("after"))
    optimiser.step()
    assert calls == ["before", "after"]


def test_a_changed_parameter_is_noticed_by_autograd() -> None:
    p = torch.ones(2, requires_grad=True)
    loss = (p * p).sum()
    loss.backward(retain_graph=True)
    optim.SGD([p], lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_one_call_for_all_parameters() -> None:
    params = parameters()
    optimiser = optim.SGD(params, lr=0.1, momentum=0.9)
    for number in (2, 3):
        give_gradients(params, number)
        with Calls() as calls:
            optimiser.step()
        assert calls.names == ["sgd"]


@pytest.mark.parametrize(
    "options", ({"lr": -1}, {"momentum": -1}, {"weight_decay": -1}, {"nesterov": True}, {"lr": torch.ones(2)}), ids=str
)
def test_errors_are_torch_s(options: dict[str, Any]) -> None:
    for SGD in (optim.SGD, torch.optim.SGD):
        with pytest.raises(ValueError):
            SGD(parameters(), **options)


@pytest.mark.parametrize("options", OPTIONS[::3], ids=str)
def test_a_differentiable_step(options: dict[str, Any]) -> None:
    """As torch's own tests look at it: what two steps make of a parameter is a function of it and of the gradients."""

    def after_two_steps(SGD: Any) -> Any:
        def run(p: Tensor, *grads: Tensor) -> Tensor:
            p = p.clone()
            optimiser = SGD([p], lr=0.1, differentiable=True, **options)
            for grad in grads:
                p.grad = grad
                optimiser.step()
            return p

        return run

    inputs = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    if not options["momentum"]:  # the buffer that torch makes in the first step is no function of the gradient
        assert torch.autograd.gradcheck(after_two_steps(optim.SGD), inputs)
    results = [after_two_steps(SGD)(*inputs) for SGD in (optim.SGD, torch.optim.SGD)]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(torch.autograd.grad(r.sum(), inputs, materialize_grads=True) for r in results))


@pytest.mark.parametrize("place", (0, 2), ids=("first", "last"))
@pytest.mark.parametrize("options", ({}, {"momentum": 0.9}, {"maximize": True}), ids=str)
def test_sparse_gradients(options: dict[str, Any], place: int) -> None:
    """Beside dense ones, of the same group and of another."""
    pair = Pair(lambda: [torch.ones(4, 3).requires_grad_() for _ in range(3)], lr=0.1, **options)
    for params, optimiser in zip(pair.params, pair.optimisers, strict=True):
        optimiser.add_param_group({"params": [torch.ones(4).requires_grad_()]})
        params.append(optimiser.param_groups[1]["params"][0])
    for number in (2, 3):
        for params, optimiser in zip(pair.params, pair.optimisers, strict=True):
            give_gradients(params, number)
            grad: Any = params[place].grad
            params[place].grad = grad.mul(torch.tensor([[1.0], [0.0], [2.0], [0.0]])).to_sparse(1)
            optimiser.step()
        pair.check()


def test_everything_else_is_torch_s() -> None:
    assert optim.Adam is torch.optim.Adam
    assert optim.lr_scheduler is torch.optim.lr_scheduler
    assert issubclass(optim.SGD, torch.optim.SGD)
    with pytest.raises(AttributeError):
        optim.NoSuchThing  # noqa: B018


def test_parameters_of_one_group_on_two_devices() -> None:
    def parameter(device: str) -> Tensor:
        p = torch.ones(3, device=device, requires_grad=True)
        p.grad = torch.full((3,), 2.0, device=device)
        return p

    params = [parameter(device) for device in ("meta", "cpu", "meta")]
    optimiser = optim.SGD(params, lr=0.5, momentum=0.9)
    for expected in (0.0, -1.9):
        optimiser.step()
        torch.testing.assert_close(params[1].detach(), torch.full((3,), expected))
    assert [optimiser.state[p]["momentum_buffer"].device.type for p in params] == ["meta", "cpu", "meta"]


@pytest.mark.parametrize("set_to_none", (False, True))
def test_zero_grad(set_to_none: bool) -> None:
    params = parameters()
    give_gradients(params, 0)
    optim.SGD(params, lr=0.1).zero_grad(set_to_none)
    assert [p.grad is None for p in params] == [set_to_none, set_to_none, True]
    assert not any(p.grad.any() for p in params if p.grad is not None)


def test_profiler_sees_zero_grad() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optim.SGD(parameters(), lr=0.1).zero_grad()
    assert any("zero_grad" in event.name for event in profile.events())
