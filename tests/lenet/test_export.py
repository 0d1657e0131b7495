"""`lenet export`: other programs compute what ours does, and a file that would not is not written."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lenet_helpers import Outcome, refused, same, weights

from lenet.data import load
from lenet.model import LeNet
from lenet.train import scores_of

Cli = Callable[..., Outcome]


@pytest.fixture
def checkpoint(trained: Path) -> Path:
    return trained / "checkpoint.pt"


def settings(checkpoint: Path) -> dict[str, object]:
    return torch.load(checkpoint, weights_only=True)["settings"]


def test_onnx(cli: Cli, tmp_path: Path, checkpoint: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    file = tmp_path / "lenet.onnx"
    assert cli("export", file, "--checkpoint", checkpoint) == (0, f"the network of {checkpoint} is in {file}\n", "")
    session = onnxruntime.InferenceSession(file)
    model, images = LeNet(), load("digits").test_images
    model.load_state_dict(weights(checkpoint.parent))
    for some in (images, images[:1]):
        (scores,) = session.run(["scores"], {"images": some.numpy()})
        torch.testing.assert_close(torch.from_numpy(scores), scores_of(model, some))
    assert json.loads(session.get_modelmeta().custom_metadata_map["settings"]) == settings(checkpoint)
    assert list(tmp_path.iterdir()) == [file]


def test_onnx_that_computes_something_else(
    cli: Cli, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    translations = pytest.importorskip("kernels.onnx", exc_type=ImportError)
    pytest.importorskip("onnxruntime")
    file = tmp_path / "lenet.onnx"
    file.write_text("precious")
    monkeypatch.setitem(translations.ACTIVATIONS, "relu", translations.sigmoid_forward)
    refused(cli("export", file, "--checkpoint", checkpoint), "scores differ", "not written")
    assert file.read_text() == "precious" and list(tmp_path.iterdir()) == [file]


def test_safetensors(cli: Cli, tmp_path: Path, checkpoint: Path) -> None:
    """Bit for bit the weights; and what reads a checkpoint to use it reads this file."""
    safetensors = pytest.importorskip("safetensors")
    file = tmp_path / "lenet.safetensors"
    assert cli("export", file, "--checkpoint", checkpoint).status == 0
    with safetensors.safe_open(file, "pt") as content:
        assert same({name: content.get_tensor(name) for name in content.keys()}, weights(checkpoint.parent))
        assert json.loads(content.metadata()["settings"]) == settings(checkpoint)
    evaluated = cli("evaluate", "--checkpoint", file)
    assert evaluated.status == 0 and evaluated == cli("evaluate", "--checkpoint", checkpoint)


@pytest.mark.parametrize(
    "kind", ("missing", "empty", "text", "halved", "another network", "no settings", "new settings")
)
def test_bad_safetensors(cli: Cli, tmp_path: Path, checkpoint: Path, kind: str) -> None:
    pytest.importorskip("safetensors")
    from safetensors.torch import save

    file = tmp_path / "lenet.safetensors"
    assert cli("export", file, "--checkpoint", checkpoint).status == 0
    content, model = file.read_bytes(), LeNet().state_dict()
    known = json.dumps(settings(checkpoint))
    file.write_bytes(
        {
            "missing": b"",
            "empty": b"",
            "text": b"not weights\n" * 20,
            "halved": content[: len(content) // 2],
            "another network": save({"fc.weight": torch.zeros(3)}, {"settings": known}),
            "no settings": save(model),
            "new settings": save(model, {"settings": json.dumps(settings(checkpoint) | {"colour": "red"})}),
        }[kind]
    )
    if kind == "missing":
        file.unlink()
    refused(cli("evaluate", "--checkpoint", file), file)


def test_other_endings(cli: Cli, tmp_path: Path, checkpoint: Path) -> None:
    refused(cli("export", tmp_path / "lenet.pt", "--checkpoint", checkpoint), "lenet.pt", ".onnx, .safetensors")
    assert not list(tmp_path.iterdir())


def test_no_such_folder(cli: Cli, tmp_path: Path, checkpoint: Path) -> None:
    pytest.importorskip("safetensors")
    refused(cli("export", tmp_path / "gone" / "lenet.safetensors", "--checkpoint", checkpoint), tmp_path / "gone")


def test_no_checkpoint(cli: Cli, tmp_path: Path) -> None:
    refused(cli("export", tmp_path / "a.onnx", "--checkpoint", tmp_path / "gone.pt"), "gone.pt: no such checkpoint")


@pytest.mark.parametrize("missing", ("onnx_ir", "onnxruntime", "safetensors"))
def test_a_package_is_missing(
    cli: Cli, tmp_path: Path, checkpoint: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.delitem(sys.modules, "kernels.onnx", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    ending = "safetensors" if missing == "safetensors" else "onnx"
    refused(cli("export", tmp_path / f"a.{ending}", "--checkpoint", checkpoint), missing, "lenet-kernels[export]")
    assert not list(tmp_path.iterdir())
