"""A model whose layers compute by the package of a Hub repository, in a process that lacks ours: test_hub.py runs this.

    python hub_model.py imported|kernelized VARIANT RESULTS

`imported` takes the package as it lies there, `kernelized` by Hugging Face's distribution `kernels`. VARIANT is the folder of
a build; RESULTS becomes a list of each layer's name, arguments, results, and the gradient of its output.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ARGUMENTS = {  # of the function in torch.nn.functional that a layer calls, after its tensors
    "Conv2d": ("weight", "bias", "stride", "padding", "dilation", "groups"),
    "MaxPool2d": ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "Linear": ("weight", "bias"),
    "ReLU": ("inplace",),
    "Softmax": ("dim",),
    "MSELoss": ("reduction",),
}
Record = tuple[str, list[Any], dict[str, Any], Tensor, list[Tensor]]


class Model(nn.Module):
    """Every layer that the package has, most of them with settings that are not torch's default."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, groups=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
            nn.Conv2d(4, 6, (2, 3), stride=2, dilation=(1, 2), bias=False),
            nn.Flatten(),
            nn.Linear(6 * 2, 5),
            nn.Softmax(dim=1),
        )
        self.loss = nn.MSELoss(reduction="sum")

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        return self.loss(self.layers(images), targets)


def main(way: str, variant: Path, results: Path) -> None:
    torch.manual_seed(0)
    model = Model().to(DEVICE)
    batch = torch.randn(2, 2, 9, 8, device=DEVICE, requires_grad=True), torch.rand(2, 5, device=DEVICE)
    if way == "kernelized":
        kernelize(model, variant)
    else:
        sys.modules["kernels"] = None  # type: ignore[assignment]  # to import it is an error
        take_forwards(model, imported("some_name", variant))
    torch.save(record(model, batch), results)
    check_padding_mode(model.layers[0])
    if way == "kernelized":
        check_compiled(model, batch)


def imported(name: str, variant: Path) -> ModuleType:
    """The package in that folder, under a name."""
    spec = importlib.util.spec_from_file_location(name, variant / "__init__.py")
    package = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules[name] = package
    spec.loader.exec_module(package)  # type: ignore[union-attr]
    return package


def take_forwards(model: Model, package: ModuleType) -> None:
    for module in layers_of(model):
        layer = getattr(package.layers, type(module).__name__)
        module.forward = MethodType(layer.forward, module)


def kernelize(model: Model, variant: Path) -> None:
    """As the Hub's users do, with a package that their library takes to be whole, and without network."""
    from kernels._rust import Build, Digest, DigestAlgorithm, Metadata
    from kernels.variants import get_variants_local

    import kernels

    sys.addaudithook(refuse_network)
    repository = variant.parents[1]
    Build.open(repository)
    assert {variant.variant_str for variant in get_variants_local(repository / "build")} == {"torch-cuda", "torch-rocm"}
    metadata = Metadata.read_from_file(variant / "metadata.json")
    metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, variant))

    mapping = {}
    for kind in (getattr(nn, name) for name in ARGUMENTS):
        name = kind.__name__
        kernels.replace_kernel_forward_from_hub(kind, name, condition=lambda module, kind=kind: type(module) is kind)
        mapping[name] = {DEVICE: kernels.LocalLayerRepository(variant, layer_name=name)}
    with kernels.use_kernel_mapping(mapping):
        mode = kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE
        kernels.kernelize(model, mode=mode, device=DEVICE, use_fallback=kernels.KernelizeFallback.NONE)
    assert all(metadata.id in module.forward.__func__.__module__ for module in layers_of(model))


def refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(f"the network is used: {event}{arguments}")


def layers_of(model: Model) -> Iterator[nn.Module]:
    return (module for module in model.modules() if type(module).__name__ in ARGUMENTS)


def record(model: Model, batch: tuple[Tensor, Tensor]) -> list[Record]:
    """What each layer was given and made of it in a step of training."""
    calls = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for tensor in (*inputs, output):
            if tensor.requires_grad:
                tensor.retain_grad()
        calls.append((module, inputs, output))

    hooks = [module.register_forward_hook(keep) for module in layers_of(model)]
    model(*batch).backward()
    for hook in hooks:
        hook.remove()
    return [recorded(*call) for call in calls]


def recorded(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Record:
    name = type(module).__name__
    settings = {argument: getattr(module, argument) for argument in ARGUMENTS[name]}
    tensors = [*inputs, *(value for value in settings.values() if isinstance(value, Tensor))]
    gradients = [tensor.grad for tensor in tensors if tensor.requires_grad]
    args = [tensor.detach().cpu().requires_grad_(tensor.requires_grad) for tensor in tensors]
    results = [tensor.detach().cpu() for tensor in (output, *gradients)]
    kwargs = {argument: value for argument, value in settings.items() if not isinstance(value, Tensor)}
    return name, args, kwargs, output.grad.cpu(), results


def check_padding_mode(convolution: Any) -> None:
    """Padding of another mode than zeros comes before the convolution."""
    images = torch.randn(1, 2, 5, 5, device=DEVICE)
    padded = nn.functional.pad(images, (1, 1, 1, 1), mode="circular")
    inside = convolution(padded)[:, :, 1:-1, 1:-1]
    convolution.padding_mode = "circular"
    assert torch.equal(convolution(images), inside)
    convolution.padding_mode = "zeros"


def check_compiled(model: Model, batch: tuple[Tensor, Tensor]) -> None:
    """torch.compile makes one graph of it, with eager's numbers."""
    leaves = (batch[0], *model.parameters())
    eager, compiled = (
        (loss, *torch.autograd.grad(loss, leaves))
        for loss in (model(*batch), torch.compile(model, fullgraph=True)(*batch))
    )
    assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))


if __name__ == "__main__":
    if DEVICE == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
        sys.path.append(str(Path(__file__).parents[1]))
        from interpreter import quicken

        quicken()
    main(sys.argv[1], *map(Path, sys.argv[2:]))
