"""A trained network in a file: ONNX, which runs without torch; safetensors, its weights alone; or a checkpoint."""

import json
import logging
import warnings
from dataclasses import asdict
from pathlib import Path

import torch

import kernels
from lenet.compute import computing
from lenet.files import write_file
from lenet.messages import LenetError
from lenet.model import LeNet
from lenet.run import load_checkpoint, restoring, settings_of
from lenet.settings import Settings

NEAR = 1e-4  # of the largest score: float32 sums in another order differ by less, another network by more


def load_trained(path: Path, device: torch.device) -> tuple[LeNet, Settings]:
    """The network of the checkpoint or safetensors file `path`, on `device`, and the settings it was trained with."""
    model = LeNet()
    with restoring(path):
        if path.suffix == ".safetensors":
            weights, settings = load_safetensors(path)
        else:
            checkpoint = load_checkpoint(path)
            weights, settings = checkpoint["model"], settings_of(checkpoint, path)
        model.load_state_dict(weights)
    return model.to(device), settings


def export(checkpoint: Path, path: Path) -> None:
    """Write the network of `checkpoint` to `path`, in the format of its ending, .onnx or .safetensors.

    LenetError: another ending, no such folder or checkpoint, or the ONNX network computes something else.
    """
    if path.suffix not in FORMATS:
        raise LenetError(f"{path}: the ending decides the format; it must be one of {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise LenetError(f"{path}: there is no folder {path.parent}")
    with computing("numpy", "cpu") as where:
        model, settings = load_trained(checkpoint, where)
        write_file(path, FORMATS[path.suffix](model.eval(), settings))


def as_onnx(model: LeNet, settings: Settings) -> bytes:
    """The network in ONNX: `images` (n, 1, 32, 32) float32 for any n, `scores` (n, 10); checked with onnxruntime."""
    import kernels.onnx

    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they speak of the exporter's own parts
            program = torch.onnx.export(
                model,
                (torch.zeros(2, 1, 32, 32),),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["scores"],
                dynamic_shapes=({0: torch.export.Dim("n")},),
                custom_translation_table=kernels.onnx.TRANSLATIONS,
            )
    finally:
        exporter.setLevel(level)
    assert program is not None
    program.model.metadata_props.update(metadata(settings))
    content = program.model_proto.SerializeToString()
    check_onnx(content, model)
    return content


@torch.no_grad()
def check_onnx(content: bytes, model: LeNet) -> None:
    """LenetError unless the ONNX network `content` has the scores of `model` on random images."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    for n in (1, 7):
        images = torch.randn(n, 1, 32, 32, generator=generator)
        scores = model(images)
        (found,) = session.run(["scores"], {"images": images.numpy()})
        difference = (torch.from_numpy(found) - scores).abs().max() / scores.abs().max()
        if not difference <= NEAR:
            raise LenetError(
                f"the ONNX network's scores differ from ours by {difference:.1e} of the largest; not written"
            )


def as_safetensors(model: LeNet, settings: Settings) -> bytes:
    """The weights, with torch's names, and the settings of the run as metadata."""
    import safetensors.torch

    return safetensors.torch.save(model.state_dict(), {"format": "pt", **metadata(settings)})


def load_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], Settings]:
    """The weights and the settings of a file that `as_safetensors` made. LenetError: it is none, or damaged."""
    import safetensors

    try:
        with safetensors.safe_open(path, "pt") as file:
            weights, found = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    except safetensors.SafetensorError as error:
        raise LenetError(f"{path}: not a safetensors file, or a damaged one ({error})") from error
    if not found or "settings" not in found:
        raise LenetError(f"{path}: not a network that `lenet export` wrote")
    with restoring(path):
        return weights, Settings(**json.loads(found["settings"]))


def metadata(settings: Settings) -> dict[str, str]:
    return {"lenet-kernels": kernels.__version__, "settings": json.dumps(asdict(settings))}


FORMATS = {".onnx": as_onnx, ".safetensors": as_safetensors}
