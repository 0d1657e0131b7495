"""kernels.FusedStep and FusedForward beside an eager loop on torch.nn, in float64 and under the one tolerance rule."""

import copy
import importlib.util
from collections.abc import Callable
from typing import Any

import devices
import pytest
import torch
from network_judge import check_scores, parameters
from network_judge import check_step as judge_step
from torch import Tensor, nn

import kernels
import kernels.nn as ours
import kernels.optim as optim
from kernels.integration.layers import layers_of
from kernels.ops.network import Network
from lenet import LeNet

THEIRS = {"mse": nn.functional.mse_loss, "cross_entropy": nn.functional.cross_entropy}


@pytest.fixture(autouse=True)
def network(backend: str, poisoned: None) -> None:
    if importlib.util.find_spec(f"kernels.{backend}.network") is None:
        pytest.skip(f"kernels.{backend} runs no whole network")


def simulated(backend: str) -> bool:
    return backend != "numpy" and not devices.GPU


def few(backend: str, n: int) -> None:
    """Leaves many images to backends that are not simulated."""
    if n > 5 and simulated(backend):
        pytest.skip("takes minutes where the GPU is simulated")


def lenet(channels: int = 1, classes: int = 10, padding: int = 0, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(channels, 6, 5, padding=padding, bias=bias), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5, bias=bias), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120, bias), nn.ReLU(), nn.Linear(120, 84, bias), nn.ReLU(), nn.Linear(84, classes, bias)),
    )


def small(bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), bias=bias), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4, bias)
    )


def two(features: int = 4) -> nn.Sequential:
    """Windows of an even number of rows, or columns, padded."""
    return nn.Sequential(
        *(nn.Conv2d(1, 3, (2, 4), padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(3, features, (3, 2), padding=(1, 0)), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        nn.Linear(2 * features, 3),
    )


LARGE = ("LeNet", "28x28", "3x32x32", "20 classes", "no biases")
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "LeNet": (lenet, (1, 32, 32)),
    "28x28": (lambda: lenet(padding=2), (1, 28, 28)),
    "3x32x32": (lambda: lenet(channels=3), (3, 32, 32)),
    "20 classes": (lambda: lenet(classes=20), (1, 32, 32)),
    "no biases": (lambda: lenet(bias=False), (1, 32, 32)),
    "one convolution": (small, (2, 9, 8)),
    "one convolution, no biases": (lambda: small(bias=False), (2, 8, 7)),
    "two convolutions": (two, (1, 8, 8)),
    "two convolutions, many features": (lambda: two(17), (1, 8, 8)),
    "no convolution": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (2, 3, 2)),
    "three layers": (
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3, bias=False)
        ),
        (2, 3, 2),
    ),
    "nested, padding in one direction": (
        lambda: nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 5, 3, padding=(0, 1)), nn.ReLU(), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(5, 7, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            nn.Sequential(nn.Linear(14, 3)),
        ),
        (1, 7, 10),
    ),
}  # fmt: skip


def named(*names: str) -> list[Any]:
    """Parameters of a test."""
    return [pytest.param(name, marks=pytest.mark.large if name in LARGE else ()) for name in names]


def batch(
    shape: tuple[int, ...], classes: int, n: int, loss: str, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    images, labels = torch.randn(n, *shape, dtype=dtype), torch.randint(classes, (n,))
    return images, torch.eye(classes, dtype=dtype)[labels] if loss == "mse" else labels


def read(model: nn.Module, images: Tensor) -> Network:
    """What is judged in the model's place; of these images it has the model's scores."""
    network = layers_of(model, "read").network()
    check_scores(network, images, copy.deepcopy(model).double()(images.double()))
    return network


def check_step(model: nn.Module, optimizer: Any, step: Any, images: Tensor, targets: Tensor) -> None:
    """Takes a step, which is judged by a step of torch."""
    network = read(model, images)
    params = parameters(network)
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}

    def buffers() -> list[Tensor | None]:
        return [optimizer.state.get(p, {}).get("momentum_buffer") for p in params]

    judge_step(
        *(network, images, targets, [groups[p] for p in params], buffers()),
        lambda: (step(images, targets), step.correct, buffers()),
    )


def check(
    model: nn.Module,
    shape: tuple[int, ...],
    n: int,
    loss: str,
    steps: int = 2,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> None:
    """Steps on batches of n images, and the scores after them."""
    model.to(dtype)
    optimizer = optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9} | options)
    step = kernels.FusedStep(model, loss, optimizer=optimizer)
    classes = len(list(model.modules())[-1].weight)
    with pytest.MonkeyPatch.context() as patch:  # the way of NaN would hide what is wrong on the quick one
        patch.setattr("kernels.numpy.network.Operations", None)
        for _ in range(steps):
            images, targets = batch(shape, classes, n, loss, dtype)
            check_step(model, optimizer, step, images, targets)
        check_scores(read(model, images), images, kernels.FusedForward(model)(images))


@pytest.mark.parametrize("loss", THEIRS)
@pytest.mark.parametrize("name", named(*NETWORKS))
def test_networks(backend: str, name: str, loss: str) -> None:
    make, shape = NETWORKS[name]
    check(make(), shape, 2, loss, steps=1 if simulated(backend) else 2)


@pytest.mark.parametrize("loss", THEIRS)
@pytest.mark.parametrize("n", (1, 2, 63, 64, 65, 257))
@pytest.mark.parametrize("name", named("LeNet", "one convolution"))
def test_batch_sizes(backend: str, name: str, n: int, loss: str) -> None:
    few(backend, n)
    make, shape = NETWORKS[name]
    check(make(), shape, n, loss, steps=1 if simulated(backend) else 2)


@pytest.mark.parametrize("loss", THEIRS)
@pytest.mark.parametrize("n", (3, 257))
def test_float64(backend: str, n: int, loss: str) -> None:
    if backend != "numpy":
        forward, images = kernels.FusedForward(small().double()), batch((2, 9, 8), 4, 3, loss, torch.float64)[0]
        with pytest.raises(RuntimeError, match="runs whole networks in torch.float32, got torch.float64"):
            forward(images)
        return
    make, shape = NETWORKS["LeNet"]
    check(make(), shape, n, loss, dtype=torch.float64)


@pytest.mark.parametrize(
    "options",
    (
        {"momentum": 0.0},
        {"momentum": 0.0, "weight_decay": 0.1, "maximize": True},
        {"dampening": 0.3, "weight_decay": 0.1},
        {"nesterov": True, "weight_decay": 0.1},
        {"nesterov": True, "maximize": True},
        {"dampening": 1.5, "maximize": True},
    ),
    ids=str,
)
def test_settings_of_the_optimizer(backend: str, options: dict[str, Any]) -> None:
    make, shape = NETWORKS["one convolution"]
    check(make(), shape, 3, "mse", steps=3, **options)


@pytest.mark.parametrize("SGD", (optim.SGD, torch.optim.SGD))
def test_groups(backend: str, SGD: Any) -> None:
    """Of any number, each with settings of its own; parameters of other models may be there, too."""
    model = small()
    weights = [p for p in model.parameters() if p.dim() > 1]
    biases = [p for p in model.parameters() if p.dim() == 1]
    other = torch.zeros(3, requires_grad=True)
    optimizer = SGD(
        [{"params": weights[::-1], "momentum": 0.5, "weight_decay": 0.1}, {"params": [other, *biases], "lr": 0.3}],
        lr=0.1,
    )
    step = kernels.FusedStep(model, optimizer=optimizer)
    for _ in range(3):
        check_step(model, optimizer, step, *batch((2, 9, 8), 4, 3, "mse"))
    assert not other.any()


class Loops:
    """The same model twice, under an eager loop of torch and under FusedStep, on the same batches."""

    def __init__(self, dtype: torch.dtype = torch.float32, loss: str = "mse", **options: Any) -> None:
        self.loss, self.dtype = loss, dtype
        self.models = [small().to(dtype) for _ in range(2)]
        self.models[1].load_state_dict(self.models[0].state_dict())
        self.optimizers = [
            optim.SGD(model.parameters(), **{"lr": 0.1} | copy.deepcopy(options)) for model in self.models
        ]
        self.step = kernels.FusedStep(self.models[1], loss, optimizer=self.optimizers[1])

    def eager(self, images: Tensor, targets: Tensor, which: int = 0) -> Tensor:
        self.optimizers[which].zero_grad()
        loss = THEIRS[self.loss](self.models[which](images), targets)
        loss.backward()
        self.optimizers[which].step()
        return loss.detach()

    def batch(self, n: int = 3) -> tuple[Tensor, Tensor]:
        return batch((2, 9, 8), 4, n, self.loss, self.dtype)

    def check(self) -> None:
        """Parameters and buffers, by torch's own rule: roundings of several steps add up."""
        torch.testing.assert_close(*(list(model.parameters()) for model in self.models))
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        assert states[0]["param_groups"] == states[1]["param_groups"]
        torch.testing.assert_close(states[0]["state"], states[1]["state"])


@pytest.mark.parametrize("loss", THEIRS)
@pytest.mark.parametrize("ordered", (False, True))
def test_run_is_step_by_step(backend: str, loss: str, ordered: bool) -> None:
    """Bit for bit; the last batch is smaller, images may come twice or not at all."""
    images, targets = batch((2, 9, 8), 4, 7, loss)
    order = torch.tensor([6, 0, 3, 3, 5, 1, 2, 0]) if ordered else None
    results = []
    for whole in (True, False):
        torch.manual_seed(1)
        model = small()
        step = kernels.FusedStep(model, loss, optimizer=optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
        if whole:
            losses, correct = step.run(images, targets, 3, order=order), step.correct
        else:
            rows = range(7) if order is None else order.tolist()
            taken = [
                (step(images[b], targets[b]), step.correct) for b in (rows[i : i + 3] for i in range(0, len(rows), 3))
            ]
            losses, correct = (torch.stack(each) for each in zip(*taken, strict=True))
        results.append([losses, correct, *model.parameters()])
    assert results[0][0].shape == (3,) and results[0][1].dtype == torch.int64
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_no_images(backend: str) -> None:
    loops = Loops()
    before = [p.detach().clone() for p in loops.models[1].parameters()]
    images, targets = loops.batch(0)
    assert loops.step.run(images, targets, 4).shape == loops.step.correct.shape == (0,)
    assert loops.step.run(*loops.batch(), 4, order=torch.empty(0, dtype=torch.int64)).shape == (0,)
    assert kernels.FusedForward(loops.models[1])(images).shape == (0, 4)
    torch.testing.assert_close(list(loops.models[1].parameters()), before, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="at least one image"):
        loops.step(images, targets)


def test_taking_turns_with_the_eager_loop(backend: str) -> None:
    """And a checkpoint in between, loaded into another model and optimizer."""
    loops = Loops(momentum=0.9)
    for i in range(6):
        images, targets = loops.batch()
        loops.eager(images, targets)
        if i % 2:
            loops.eager(images, targets, 1)
        else:
            loops.step(images, targets)
        if i == 2:
            model, optimizer = small(), optim.SGD(small().parameters(), lr=0.5)
            model.load_state_dict(loops.models[1].state_dict())
            optimizer = optim.SGD(model.parameters(), lr=0.5)
            optimizer.load_state_dict(loops.optimizers[1].state_dict())
            loops.models[1], loops.optimizers[1] = model, optimizer
            loops.step = kernels.FusedStep(model, optimizer=optimizer)
        loops.check()


def test_gradients_are_left_alone(backend: str) -> None:
    loops = Loops()
    weight = loops.models[1][0].weight
    weight.grad = torch.ones_like(weight)
    loops.step(*loops.batch())
    assert weight.grad.eq(1).all() and loops.models[1][0].bias.grad is None


@pytest.mark.parametrize("tensor", (False, True))
@pytest.mark.parametrize(
    "schedule",
    (
        lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.5, total_steps=12, cycle_momentum=False),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.5, total_steps=12),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    ),
    ids=("StepLR", "OneCycleLR", "OneCycleLR with momentum", "LambdaLR"),
)
@pytest.mark.filterwarnings("error")
def test_schedulers(backend: str, schedule: Any, tensor: bool) -> None:
    """Outside, after each step, and inside a run, where momentum may change, too."""
    lr = torch.tensor(0.25) if tensor else 0.25
    loops = Loops(lr=lr, momentum=0.9)
    schedulers = [schedule(optimizer) for optimizer in loops.optimizers]
    for n in (2, 3):
        images, targets = loops.batch(2 * n)
        for i in range(0, 2 * n, 2):
            loops.eager(images[i : i + 2], targets[i : i + 2])
            schedulers[0].step()
        loops.step.run(images, targets, 2, scheduler=schedulers[1])
        loops.check()
        assert schedulers[0].state_dict() == schedulers[1].state_dict()
    images, targets = loops.batch()
    loops.eager(images, targets)
    loops.step(images, targets)
    for scheduler in schedulers:
        scheduler.step()
    loops.check()


def test_settings_are_read_at_each_call(backend: str) -> None:
    loops = Loops()
    for change in ({"lr": 0.2}, {"momentum": 0.5}, {"momentum": 0.0, "weight_decay": 0.1}, {"maximize": True}):
        for optimizer in loops.optimizers:
            optimizer.param_groups[0].update(change)
        images, targets = loops.batch()
        loops.eager(images, targets)
        loops.step(images, targets)
        loops.check()


@pytest.mark.parametrize(
    "options",
    ({}, {"dampening": 0.3}, {"nesterov": True}, {"maximize": True}, {"weight_decay": 0.1}),
    ids=str,
)
def test_where_momentum_buffers_lie_changes_no_bit(backend: str, options: dict[str, Any]) -> None:
    """Side by side, as the first step makes them, there in another order or with gaps; each apart; at their memory's end."""
    results = []
    for layout in ("made", "apart", "at the end", "turned", "spread"):
        torch.manual_seed(1)
        model = small()
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, **options)
        step = kernels.FusedStep(model, optimizer=optimizer)
        step(*batch((2, 9, 8), 4, 3, "mse"))
        buffers = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
        memory = buffers[0].untyped_storage()
        used = buffers[-1].storage_offset() + buffers[-1].numel()
        short = buffers[0].as_strided((used,), (1,)).clone()
        long = torch.zeros(2 * used)
        assert all(b.untyped_storage().data_ptr() == memory.data_ptr() for b in buffers)
        for p, b in zip(model.parameters(), buffers, strict=True):
            if layout == "apart":
                optimizer.state[p]["momentum_buffer"] = b.clone()
            elif layout == "at the end":
                optimizer.state[p]["momentum_buffer"] = short.as_strided(b.shape, b.stride(), b.storage_offset())
            elif layout == "turned":
                strides = torch.empty(b.shape[::-1]).permute(*reversed(range(b.dim()))).stride()
                optimizer.state[p]["momentum_buffer"] = b.as_strided(b.shape, strides).copy_(b.clone())
            elif layout == "spread":
                other = long.as_strided(b.shape, b.stride(), 2 * b.storage_offset()).copy_(b)
                optimizer.state[p]["momentum_buffer"] = other
        for _ in range(2):
            step(*batch((2, 9, 8), 4, 3, "mse"))
        results.append([*model.parameters(), *(optimizer.state[p]["momentum_buffer"] for p in model.parameters())])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_hooks_of_the_optimizer_see_every_step(backend: str) -> None:
    loops, calls = Loops(momentum=0.9), []
    plain = Loops(momentum=0.9)
    plain.models[1].load_state_dict(loops.models[1].state_dict())
    weight = loops.models[1][0].weight
    loops.optimizers[1].register_step_pre_hook(lambda *_: calls.append(weight.detach().clone()))
    loops.optimizers[1].register_step_post_hook(lambda *_: calls.append(weight.detach().clone()))
    images, targets = loops.batch(5)
    assert torch.equal(loops.step.run(images, targets, 2), plain.step.run(images, targets, 2))
    assert torch.equal(loops.step.correct, plain.step.correct)
    assert len(calls) == 6 and torch.equal(calls[1], calls[2]) and torch.equal(calls[3], calls[4])
    assert not torch.equal(calls[0], calls[1]) and torch.equal(calls[-1], plain.models[1][0].weight)


def test_autograd_notices(backend: str) -> None:
    loops = Loops(momentum=0.9)
    loops.step(*loops.batch())
    weight = loops.models[1][0].weight
    buffer = loops.optimizers[1].state[weight]["momentum_buffer"]
    versions = weight._version, buffer._version
    y = (weight * weight).sum()
    loss = loops.step(*loops.batch())
    assert weight._version > versions[0] and buffer._version > versions[1] and not loss.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_memory_order_of_images_and_targets(backend: str) -> None:
    loops = Loops()
    images, targets = loops.batch()
    results = [loops.step(images, targets)]
    loops.models[1].load_state_dict(loops.models[0].state_dict())
    strange = images.to(memory_format=torch.channels_last), targets.t().contiguous().t()
    results.append(loops.step(*strange))
    assert torch.equal(*results)


@pytest.mark.parametrize("loss", THEIRS)
@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf))
@pytest.mark.parametrize("where", ("images", "weight", "bias", "targets"))
def test_values_that_are_not_finite(backend: str, where: str, value: float, loss: str) -> None:
    """They go where they go in torch, and nowhere else."""
    if (where, loss) == ("targets", "cross_entropy"):
        pytest.skip("labels are finite")
    model = nn.Sequential(*small()[:4], nn.Linear(27, 5), nn.ReLU(), nn.Linear(5, 4))
    images, targets = batch((2, 9, 8), 4, 3, loss)
    with torch.no_grad():
        place = {"images": images, "targets": targets, "weight": model[4].weight, "bias": model[0].bias}[where]
        place.view(-1)[1] = value
    check_step_of(model, images, targets, loss)


@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf))
@pytest.mark.parametrize("where", ("images", "weight", "targets"))
def test_values_that_are_not_finite_in_two_convolutions(backend: str, where: str, value: float) -> None:
    """Where a window ends they end, forward and backward."""
    model = two()
    images, targets = batch((1, 8, 8), 3, 2, "mse")
    with torch.no_grad():
        place = {"images": images[0, 0, 1], "targets": targets[0], "weight": model[3].weight[0, 0]}[where]
        place.view(-1)[1] = value
    check_step_of(model, images, targets, "mse")


@pytest.mark.parametrize("features", (4, 17))
@pytest.mark.parametrize("at", (0, 4))
def test_an_infinite_gradient_stays_under_its_window(backend: str, at: int, features: int) -> None:
    """The only one that is not dropped; what is under it gets infinities, and nothing gets NaN."""
    model = two(features)
    images, targets = torch.full((1, 1, 8, 8), 0.5), torch.zeros(1, 3)
    images[:, :, at : at + 4, 4:] = 9
    targets[0, 1] = -torch.inf
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.abs() + 0.1)
        model[0].bias.zero_()
        scores = model[3](model[2](model[1](model[0](images))))
        model[3].bias[1:] = -scores.max() - 9
        model[3].bias[0] -= scores[0, 0].flatten().topk(2).values.mean()
    assert (model[:6](images) > 0).sum() == 1
    check_step_of(model, images, targets, "mse")


def test_relu_stops_an_infinite_pixel(backend: str) -> None:
    """So the loss and the scores are finite, whatever else the pixel is multiplied by."""
    model = two()
    images, targets = batch((1, 8, 8), 3, 2, "mse")
    images[0, 0, 1, 1] = -torch.inf
    with torch.no_grad():
        for p in model.parameters():
            p.abs_()
    assert model(images).isfinite().all()
    check_scores(read(model, images), images, kernels.FusedForward(model)(images))
    check_step_of(model, images, targets, "mse")


def check_step_of(model: nn.Module, images: Tensor, targets: Tensor, loss: str) -> None:
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step = kernels.FusedStep(model, loss, optimizer=optimizer)
    check_step(model, optimizer, step, images, targets)


@pytest.mark.parametrize("loss", THEIRS)
def test_large_scores(backend: str, loss: str) -> None:
    """exp of them overflows."""
    model = small()
    with torch.no_grad():
        model[4].weight.mul_(1e4)
    check_step_of(model, *batch((2, 9, 8), 4, 3, loss), loss)


@pytest.mark.parametrize("loss", THEIRS)
def test_equal_values(backend: str, loss: str) -> None:
    """Of equal pixels in a window the first is the largest, of equal scores the first is the answer."""
    model = small()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.mul(8).round().div(8))
        model[4].weight[:] = model[4].weight[0]
        model[4].bias.fill_(0.5)
    images, targets = batch((2, 9, 8), 4, 5, loss)
    check_step_of(model, images.round().clamp(0, 1), targets, loss)


def test_the_number_of_threads_changes_no_bit(backend: str) -> None:
    if backend != "numpy":
        pytest.skip("the others have no threads")
    before, results = torch.get_num_threads(), []
    make, shape = NETWORKS["LeNet"]
    images, targets = batch(shape, 10, 300, "mse")
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        model = make()
        step = kernels.FusedStep(model, optimizer=optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
        losses = step.run(images, targets, 257)
        results.append([losses, kernels.FusedForward(model)(images), *model.parameters()])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_parts_are_added(backend: str) -> None:
    """More images than PARTS parts of TILE images."""
    few(backend, 1100)
    check(small(), (2, 9, 8), 1100, "mse")


def test_large_images(backend: str) -> None:
    """A tile has one of them."""
    if backend != "numpy":
        pytest.skip("the others have no tiles of images")
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2 * 99 * 99, 3)),
    )
    check(model, (3, 400, 400), 3, "mse", steps=1)


@pytest.mark.large
@pytest.mark.parametrize(
    "model",
    (
        LeNet,
        lambda: nn.Sequential(
            ours.Conv2d(1, 6, 5), ours.ReLU(), ours.MaxPool2d(2), ours.Conv2d(6, 16, 5), nn.ReLU(True), nn.MaxPool2d(2, 2),
            nn.Flatten(), ours.LinearReLU(400, 120), ours.Linear(120, 84, activation="relu"), ours.Linear(84, 10),
        ),
    ),
    ids=("lenet.LeNet", "our modules"),
)  # fmt: skip
def test_models(backend: str, model: Any) -> None:
    """That say the same as `lenet()`."""
    images, targets = batch((1, 32, 32), 10, 2, "mse")
    results = []
    for make in (lenet, model):
        torch.manual_seed(1)
        network = make()
        step = kernels.FusedStep(network, optimizer=optim.SGD(network.parameters(), lr=0.1))
        results.append([step(images, targets), *network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_same_padding(backend: str) -> None:
    model = small()
    model[0] = nn.Conv2d(2, 3, 3, padding="same")
    model[4] = nn.Linear(48, 4)
    check(model, (2, 9, 8), 2, "mse")


def changed(index: int, module: nn.Module) -> nn.Sequential:
    model = small()
    model[index] = module
    return model


class Subclass(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def with_hook(register: str, index: int | None = 0) -> nn.Module:
    model = small()
    getattr(model if index is None else model[index], register)(lambda *_: None)
    return model


def replaced() -> nn.Module:
    model = small()
    model[1].forward = lambda x: x
    return model


def tied() -> nn.Module:
    layer = nn.Linear(12, 12)
    return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer)


def of_another_shape() -> nn.Module:
    model = small()
    model[0].weight.data = torch.ones(3, 2, 3, 3)
    return model


def of_two_dtypes() -> nn.Module:
    model = small()
    model[4].double()
    return model


def transposed() -> nn.Module:
    model = small()
    model[4].weight.data = model[4].weight.data.t().contiguous().t()
    return model


MODELS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no module": (lambda: 3, TypeError, "expected model to be a torch.nn.Module, got int"),
    "no sequence": (lambda: nn.Linear(2, 2), TypeError, "nn.Sequential, or to have a method as_sequential .* got Linear"),
    "sigmoid": (lambda: changed(1, nn.Sigmoid()), TypeError, "layer '1', after a Conv2d, to be ReLU, got Sigmoid"),
    "no pooling": (lambda: changed(2, nn.ReLU()), TypeError, "layer '2', .* to be MaxPool2d, got ReLU"),
    "no flatten": (lambda: changed(3, nn.Linear(2, 2)), TypeError, "layer '3', .* to be Conv2d or Flatten, got Linear"),
    "subclass": (lambda: changed(0, Subclass(2, 3, 3)), TypeError, "layer '0', after the input, .* got Subclass"),
    "nested": (lambda: changed(0, nn.Sequential(nn.Tanh())), TypeError, "layer '0.0'.* got Tanh"),
    "ends with ReLU": (lambda: nn.Sequential(*small(), nn.ReLU()), TypeError, "end with a Linear, .* the ReLU of a Linear"),
    "ends with activation": (lambda: changed(4, ours.LinearReLU(27, 4)), TypeError, "end with a Linear"),
    "empty": (nn.Sequential, TypeError, "end with a Linear, .* the input"),
    "activation": (lambda: changed(4, ours.Linear(2, 2, activation="sigmoid")), ValueError, "layer '4'.* 'sigmoid'"),
    "stride": (lambda: changed(0, nn.Conv2d(2, 3, 3, stride=2)), ValueError, r"layer '0' \(Conv2d\) .* stride 1, got \(2, 2\)"),
    "dilation": (lambda: changed(0, nn.Conv2d(2, 3, 3, dilation=(1, 2))), ValueError, r"dilation 1, got \(1, 2\)"),
    "groups": (lambda: changed(0, nn.Conv2d(2, 4, 3, groups=2)), ValueError, "groups 1, got 2"),
    "padding mode": (lambda: changed(0, nn.Conv2d(2, 3, 3, padding_mode="circular", padding=1)), ValueError, "'circular'"),
    "same": (lambda: changed(0, nn.Conv2d(2, 3, 2, padding="same")), ValueError, r"odd size .* got \(2, 2\)"),
    "window": (lambda: changed(2, nn.MaxPool2d(3)), ValueError, r"layer '2' \(MaxPool2d\) .* kernel_size 2, got 3"),
    "pool stride": (lambda: changed(2, nn.MaxPool2d(2, 1)), ValueError, "stride 2, got 1"),
    "pool padding": (lambda: changed(2, nn.MaxPool2d(2, padding=1)), ValueError, "padding 0, got 1"),
    "pool dilation": (lambda: changed(2, nn.MaxPool2d(2, dilation=2)), ValueError, "dilation 1, got 2"),
    "ceil mode": (lambda: changed(2, nn.MaxPool2d(2, ceil_mode=True)), ValueError, "ceil_mode False, got True"),
    "indices": (lambda: changed(2, nn.MaxPool2d(2, return_indices=True)), ValueError, "return_indices False"),
    "flatten": (lambda: changed(3, nn.Flatten(0)), ValueError, r"layer '3' \(Flatten\) .* start_dim 1, got 0"),
    "hook": (lambda: with_hook("register_forward_hook"), ValueError, "layer '0' has hooks"),
    "pre-hook": (lambda: with_hook("register_forward_pre_hook", 2), ValueError, "layer '2' has hooks"),
    "backward hook": (lambda: with_hook("register_full_backward_hook", None), ValueError, "model has hooks"),
    "forward": (replaced, ValueError, "forward of layer '1' was replaced"),
    "tied": (tied, ValueError, "layer '3' shares a parameter"),
    "float16": (lambda: small().half(), NotImplementedError, "layer '0' to be float32 or float64, got torch.float16"),
    "shape": (of_another_shape, RuntimeError, r"shape \(3, 2, 3, 2\), got shape \(3, 2, 3, 3\)"),
    "two dtypes": (of_two_dtypes, RuntimeError, "layer '0' to be torch.float64 on .* got torch.float32"),
    "not contiguous": (transposed, RuntimeError, r"layer '4' to have a contiguous parameter of shape \(4, 27\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_models_that_are_refused(backend: str, name: str) -> None:
    make, error, match = MODELS[name]
    model = make()
    with pytest.raises(error, match=f"^FusedForward: .*{match}"):
        kernels.FusedForward(model)
    with pytest.raises(error, match=f"^FusedStep: .*{match}"):
        kernels.FusedStep(model, optimizer=optim.SGD([torch.ones(1, requires_grad=True)]))


def test_hooks_of_all_modules_are_refused(backend: str) -> None:
    forward = kernels.FusedForward(small())
    hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(ValueError, match="hooks of all modules"):
            forward(torch.ones(1, 2, 9, 8))
    finally:
        hook.remove()


def test_optimizers_that_are_refused(backend: str) -> None:
    model = small()
    *some, last = model.parameters()
    frozen = small()
    frozen[0].bias.requires_grad_(False)
    for target, optimizer, error, match in (
        (model, torch.optim.Adam(model.parameters()), TypeError, "SGD or torch.optim.SGD, got Adam"),
        (model, optim.SGD(some), ValueError, "parameters of layer '4'"),
        (model, optim.SGD(model.parameters(), differentiable=True), ValueError, "differentiable"),
        (frozen, optim.SGD(frozen.parameters()), ValueError, "layer '0' to require grad"),
    ):
        with pytest.raises(error, match=f"^FusedStep: .*{match}"):
            kernels.FusedStep(target, optimizer=optimizer)
    with pytest.raises(ValueError, match="loss to be one of mse, cross_entropy, got 'l1'"):
        kernels.FusedStep(model, "l1", optimizer=optim.SGD(model.parameters()))


def test_what_has_changed_since(backend: str) -> None:
    """Parameters that took the place of others, and what the optimizer does not know."""
    loops = Loops()
    new = small()
    loops.models[1].load_state_dict(new.state_dict(), assign=True)
    forward = kernels.FusedForward(loops.models[1])
    images, targets = loops.batch()
    assert torch.equal(forward(images), kernels.FusedForward(new)(images))
    with pytest.raises(ValueError, match="layer '0'"):
        loops.step(images, targets)
    loops.models[1].double()
    with pytest.raises(RuntimeError, match="images to be torch.float64"):
        forward(images)


CALLS: dict[str, tuple[Callable[[Tensor, Tensor], Any], str, type[Exception], str]] = {
    "no tensor": (lambda x, t: (3, t), "mse", TypeError, "images to be a Tensor, got int"),
    "three dimensions": (lambda x, t: (x[0], t), "mse", RuntimeError, r"\(N, C, H, W\), got \(2, 9, 8\)"),
    "channels": (lambda x, t: (x[:, :1], t), "mse", RuntimeError, "layer '0' to get 2 channels, got 1"),
    "size": (lambda x, t: (x[..., :6], t), "mse", RuntimeError, "layer '4' to get 27 features, got 18"),
    "small": (lambda x, t: (x[..., :2], t), "mse", RuntimeError, "too small for layer '0'"),
    "dtype": (lambda x, t: (x.double(), t), "mse", RuntimeError, "images to be torch.float32 .* got torch.float64"),
    "device": (lambda x, t: (x.to("meta"), t), "mse", RuntimeError, "images .* got torch.float32 on meta"),
    "sparse": (lambda x, t: (x.to_sparse(), t), "mse", NotImplementedError, "images to be a strided tensor, got"),
    "sparse target": (
        lambda x, t: (x, t.to_sparse()),
        "mse",
        NotImplementedError,
        "targets to be a strided tensor, got",
    ),
    "requires grad": (lambda x, t: (x.requires_grad_(), t), "mse", RuntimeError, "not to require grad"),
    "no target": (lambda x, t: (x, None), "mse", TypeError, "targets to be a Tensor, got NoneType"),
    "target's dtype": (lambda x, t: (x, t.double()), "mse", RuntimeError, "targets of mse to be torch.float32"),
    "labels for mse": (lambda x, t: (x, t.argmax(1)), "mse", RuntimeError, "targets of mse .* got torch.int64"),
    "target's shape": (lambda x, t: (x, t[:, :2]), "mse", RuntimeError, r"shape \(3, 4\), got \(3, 2\)"),
    "fewer targets": (lambda x, t: (x, t[:2]), "mse", RuntimeError, r"shape \(3, 4\), got \(2, 4\)"),
    "probabilities": (lambda x, t: (x, t.float()), "cross_entropy", RuntimeError, "to be torch.int64"),
    "fewer labels": (lambda x, t: (x, t[:2]), "cross_entropy", ValueError, r"shape \(3,\), got \(2,\)"),
    "target's device": (lambda x, t: (x, t.to("meta")), "mse", RuntimeError, "targets .* on meta"),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_are_refused(backend: str, name: str) -> None:
    make, loss, error, match = CALLS[name]
    model = small()
    step = kernels.FusedStep(model, loss, optimizer=optim.SGD(model.parameters(), lr=0.1))
    arguments = make(*batch((2, 9, 8), 4, 3, loss))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=f"^FusedStep: .*{match}"):
        step(*arguments)
    with pytest.raises(error, match=f"^FusedStep: .*{match}"):
        step.run(*arguments, 2)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


def test_layers_that_do_not_fit_each_other(backend: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(RuntimeError, match="layer '3' to get 4 features, got 5"):
        kernels.FusedForward(model)(torch.ones(2, 1, 2, 3))


def test_runs_that_are_refused(backend: str) -> None:
    loops = Loops()
    images, targets = loops.batch()
    for arguments, error, match in (
        ((0,), ValueError, "batch_size to be at least 1, got 0"),
        ((1.5,), TypeError, "batch_size to be an int"),
        ((2, [0, 1]), TypeError, "order to be a Tensor, got list"),
        ((2, torch.ones(2)), IndexError, "order to be int64 of one dimension, got torch.float32"),
        ((2, torch.zeros(1, 1, dtype=torch.int64)), IndexError, "one dimension"),
        ((2, torch.zeros(1, dtype=torch.int64, device="meta")), RuntimeError, "order to be on the device"),
        ((2, None, 3), TypeError, "scheduler to be an LRScheduler, got int"),
    ):
        with pytest.raises(error, match=f"^FusedStep: .*{match}"):
            loops.step.run(images, targets, *arguments)


@pytest.mark.parametrize("wrong", (-1, 4, -100))
def test_indices_out_of_range(backend: str, wrong: int) -> None:
    """The CPU looks at every one before it begins; a GPU would have to be waited for."""
    if backend != "numpy":
        pytest.skip("kernels do not look at values")
    loops = Loops(loss="cross_entropy")
    images, labels = loops.batch(4)
    before = copy.deepcopy(loops.models[1].state_dict())
    with pytest.raises(IndexError, match=f"order to be from 0 to 3, got {wrong}"):
        loops.step.run(images, labels, 1, order=torch.tensor([0, 1, wrong]))
    labels[2] = wrong
    with pytest.raises(IndexError, match=f"targets to be from 0 to 3, got {wrong}"):
        loops.step.run(images, labels, 1)
    torch.testing.assert_close(dict(loops.models[1].state_dict()), dict(before), rtol=0, atol=0)


def test_autocast_is_refused(backend: str) -> None:
    loops = Loops()
    with torch.autocast(loops.models[1][0].weight.device.type, torch.bfloat16):
        with pytest.raises(RuntimeError, match="does not run under autocast"):
            loops.step(*loops.batch())


@pytest.mark.parametrize("mode", (torch.no_grad, torch.inference_mode))
def test_without_gradients(backend: str, mode: Any) -> None:
    loops = Loops(momentum=0.9)
    images, targets = loops.batch()
    loops.eager(images, targets)
    with mode():
        loops.step(images, targets)
        scores = kernels.FusedForward(loops.models[1])(images)
    loops.check()
    assert not scores.requires_grad


def test_no_backend_for_a_device() -> None:
    with kernels.use_backend(None), pytest.raises(RuntimeError, match="no backend runs on 'meta'"):
        kernels.FusedForward(small().to("meta"))
