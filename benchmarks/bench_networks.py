"""Seven small networks before and after `swap`: MLP, VGG, ResNet, MobileNet, UNet, DCGAN (generator and discriminator in a row), ViT.

Forward and backward in training mode, and the forward pass alone in evaluation mode. Loss and optimiser are left out.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import kernels
from benchmarks.case import SWAPPED, TORCH, Case, Step, Work, contenders, flops, label, size
from benchmarks.networks import NETWORKS, input_size

BATCHES = (32,)
DIFFERENT = 2  # images: among many there is always one where rounding decides which value is the maximum


def training(model: nn.Module, images: Tensor, dy: Tensor) -> Step:
    """A step returns the output and the gradients of the weights: those of many biases are zero but for rounding."""
    model.train()
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]

    def step() -> list[Tensor]:
        y = model(images)
        return [y, *torch.autograd.grad(y, weights, dy)]

    return step


def inference(model: nn.Module, images: Tensor, dy: Tensor) -> Step:
    model.eval()
    return torch.no_grad()(lambda: model(images))


def cases(n: int, backends: Sequence[str]) -> list[Case]:
    return [case for name, make in NETWORKS.items() for case in cases_of(name, make, n, backends)]


def cases_of(name: str, make: Callable[[], nn.Module], n: int, backends: Sequence[str]) -> list[Case]:
    torch.manual_seed(0)
    images = torch.randn(DIFFERENT, *input_size(name))[torch.arange(n) % DIFFERENT]
    start = make()
    weights = {key: value.clone() for key, value in start.state_dict().items()}
    dy = torch.randn(start(images).shape)

    def model(swapped: bool = False) -> nn.Module:
        model = make()
        model.load_state_dict(weights)
        if swapped:
            kernels.swap(model)
        return model

    def case(part: str, run: Callable[..., Step], passes: int) -> Case:
        factories: dict[str, Callable[[], Step]] = {TORCH: lambda: run(model(), images, dy)}
        for backend in backends:
            factories[label(backend, SWAPPED)] = lambda: run(model(swapped=True), images, dy)
        reference = run(model().double(), images.double(), dy.double())
        work = Work(size((images, dy)) + passes * size(weights.values()), flops(run(model(), images, dy)))
        return Case(name, part, n, contenders(factories), reference, work)

    return [case("forward and backward", training, 2), case("forward", inference, 1)]
