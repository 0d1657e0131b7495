"""Checkpoints: one file that holds a training run, from its settings to its weights."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lenet.errors import LenetError
from lenet.files import write_file
from lenet.model import LeNet
from lenet.settings import Settings

FORMAT = "lenet checkpoint 1"


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content`, tensors and plain values, so that torch.load(path, weights_only=True) reads it back."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    write_file(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU. LenetError: no such file, not a checkpoint, damaged."""
    if not path.exists():
        raise LenetError(f"{path}: no such checkpoint; `lenet train` makes one")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each kind of damage makes torch.load raise another kind of error
        raise LenetError(f"{path}: not a checkpoint, or a damaged one ({type(error).__name__})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise LenetError(f"{path}: not a checkpoint of `lenet train`")
    return content


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Turn what goes wrong while the content of the checkpoint `path` is put to use into a LenetError."""
    try:
        yield
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise LenetError(f"{path}: a checkpoint of another network or version ({error})") from error


def settings_of(checkpoint: dict[str, Any], path: Path) -> Settings:
    """The settings of the run in `checkpoint`, read from `path`."""
    with restoring(path):
        return Settings(**checkpoint["settings"])


def load_trained(path: Path, device: torch.device) -> tuple[LeNet, Settings]:
    """The network of the checkpoint or safetensors file `path`, on `device`, and the settings it was trained with."""
    from lenet.export import load_safetensors

    model = LeNet()
    with restoring(path):
        if path.suffix == ".safetensors":
            weights, settings = load_safetensors(path)
        else:
            checkpoint = load_checkpoint(path)
            weights, settings = checkpoint["model"], settings_of(checkpoint, path)
        model.load_state_dict(weights)
    return model.to(device), settings
