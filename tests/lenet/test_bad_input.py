"""Whatever is wrong with the input: one clear line, exit status 2, nothing damaged."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lenet_helpers import FILES, Outcome, idx, refused
from PIL import Image

import kernels

Cli = Callable[..., Outcome]
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["nonsense"], "nonsense"),
        (["train", "--nonsense"], "--nonsense"),
        (["train", "--batch-size", "0"], "--batch-size"),
        (["train", "--batch-size", "many"], "--batch-size"),
        (["train", "--epochs", "0"], "--epochs"),
        (["train", "--epochs", "1.5"], "--epochs"),
        (["train", "--lr", "-1"], "--lr"),
        (["train", "--lr", "fast"], "--lr"),
        (["train", "--momentum", "-0.1"], "--momentum"),
        (["train", "--seed", "-1"], "--seed"),
        (["train", "--schedule", "random"], "--schedule"),
        (["train", "--loss", "hinge"], "--loss"),
        (["train", "--amp", "fp8"], "--amp"),
        (["train", "--log-level", "loud"], "--log-level"),
        (["train", "--data", "nowhere"], "nowhere"),
        (["train", "--data", "mnist", "--data-dir", "nowhere"], "nowhere: no such folder"),
        (["train", "--data", "digits", "--data-dir", "."], "--data-dir"),
        (["train", "--backend", "abacus"], "abacus"),
        (["train", "--device", "abacus"], "abacus"),
        (["train", "--device", "cpu", "--cuda-graph"], "--cuda-graph needs a GPU"),
        (["train", "--device", "meta"], "meta"),
        (
            ["train", "--device", "tpu"],
            "--device tpu: the kernels run on cpu, cuda, and one of several GPUs such as cuda:1\n",
        ),
        (["train", "--device", "cuda:99"], "cuda:99"),
        (["tune", "--trials", "0"], "--trials"),
        (["evaluate"], "no such checkpoint"),
        (["predict"], "IMAGE"),
        (["predict", "nowhere.png"], "nowhere.png: no such file"),
    ],
)
def test_options(cli: Cli, tmp_path: Path, arguments: list[str], fragment: str) -> None:
    refused(cli(*arguments), fragment)
    assert not list(tmp_path.iterdir())


def test_backend_that_cannot_run(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def use_backend(name: str) -> None:
        raise RuntimeError(f"backend {name} cannot run:\nno GPU")

    monkeypatch.setattr(kernels, "use_backend", use_backend)
    refused(cli("train", "--backend", "cupy", "--out", tmp_path / "run"), "--backend cupy", "cannot run")
    assert not (tmp_path / "run").exists()


def test_backend_that_fails_at_work(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(kernels.nn.Conv2d, "forward", forward)
    refused(cli("train", "--out", tmp_path / "run"), "no kernel image")


def change(path: Path, content: Callable[[bytes], bytes]) -> None:
    path.write_bytes(content(path.read_bytes()))


@pytest.mark.parametrize(
    ("file", "content", "fragments"),
    [
        (TRAIN_IMAGES, None, ["no such file"]),
        (TEST_LABELS, None, ["no such file"]),
        (TRAIN_IMAGES, lambda b: b"", ["truncated"]),
        (TRAIN_IMAGES, lambda b: b[:7], ["truncated"]),
        (TRAIN_IMAGES, lambda b: b[:-1], ["truncated", 96 * 784 - 1, 96 * 784]),
        (TEST_IMAGES, lambda b: b + b"!", ["trailing", 32 * 784 + 1, 32 * 784]),
        (TEST_IMAGES, lambda b: b"PNG!" + b[4:], ["magic", "0x504e4721", "0x00000803"]),
        (TRAIN_LABELS, lambda b: b[:2] + b"\x0d" + b[3:], ["magic", "0x00000d01", "0x00000801"]),
        (TRAIN_LABELS, lambda b: idx(np.zeros((96, 28, 28), np.uint8)), ["magic"]),
        (TRAIN_LABELS, lambda b: idx(np.zeros(95, np.uint8)), [95, 96]),
        (TEST_LABELS, lambda b: b[:-1] + b"\x0a", ["label 10", "0 to 9"]),
        (TRAIN_IMAGES, lambda b: idx(np.zeros((96, 28, 27), np.uint8)), ["28 x 27", "28 x 28"]),
        (TEST_IMAGES, lambda b: idx(np.zeros((0, 28, 28), np.uint8)), ["no images"]),
        (TRAIN_IMAGES, lambda b: gzip.compress(b)[:-100], ["truncated or damaged gzip"]),
        (TRAIN_IMAGES, lambda b: gzip.compress(b)[:-8] + bytes(8), ["damaged gzip"]),
        (TRAIN_IMAGES, lambda b: gzip.compress(b)[:12] + b"\xff" * 20, ["damaged gzip"]),
    ],
)
def test_data_files(
    cli: Cli, tmp_path: Path, folder: Path, file: str, content: Callable[[bytes], bytes] | None, fragments: list[object]
) -> None:
    if content is None:
        (folder / file).unlink()
    else:
        change(folder / file, content)
    refused(cli("train", "--data", folder, "--out", tmp_path / "run"), folder / file, *fragments)
    assert not (tmp_path / "run").exists()


def test_checksum(cli: Cli, folder: Path) -> None:
    """Well-formed files that are not MNIST."""
    refused(cli("train", "--data", "mnist", "--data-dir", folder), TRAIN_IMAGES, "sha256", "expected")


def test_variable_names_no_folder(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNIST_DIR", str(tmp_path / "gone"))
    refused(cli("train", "--data", "mnist"), tmp_path / "gone")


def another_network(content: dict) -> None:
    content["model"] = torch.nn.Linear(3, 2).state_dict()


def another_width(content: dict) -> None:
    content["model"]["fc3.weight"] = torch.zeros(20, 84)


CHECKPOINTS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a checkpoint\n" * 20),
    "halved": lambda path: change(path, lambda content: content[: len(content) // 2]),
    "one byte short": lambda path: change(path, lambda content: content[:-1]),
    "a pickled module": lambda path: torch.save(torch.nn.Linear(3, 2), path),
    "a tensor": lambda path: torch.save(torch.zeros(3), path),
    "bare weights": lambda path: torch.save(torch.nn.Linear(3, 2).state_dict(), path),
    "another network": lambda path: edit(path, another_network),
    "another width": lambda path: edit(path, another_width),
    "no weights": lambda path: edit(path, lambda content: content.pop("model")),
    "unknown settings": lambda path: edit(path, lambda content: content["settings"].update(colour="red")),
}


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


@pytest.mark.parametrize("kind", CHECKPOINTS)
@pytest.mark.parametrize("command", ["evaluate", "predict", "train"])
def test_checkpoints(cli: Cli, tmp_path: Path, trained: Path, kind: str, command: str) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes((trained / "checkpoint.pt").read_bytes())
    CHECKPOINTS[kind](path)
    if command == "train":
        if kind == "missing":
            pytest.skip("--resume begins a run where there is none")
        refused(cli("train", "--out", tmp_path, "--resume"), path)
        assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
        return
    Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save(tmp_path / "image.png")
    images = [tmp_path / "image.png"] if command == "predict" else []
    refused(cli(command, *images, "--checkpoint", path), path)


@pytest.mark.parametrize("command", ["evaluate", "predict", "export"])
def test_what_is_no_checkpoint(cli: Cli, tmp_path: Path, trained: Path, command: str) -> None:
    """The error says what it is that was given for a checkpoint."""
    Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save(tmp_path / "image.png")
    (tmp_path / "lenet.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch")
    argument = {"evaluate": [], "predict": [tmp_path / "image.png"], "export": [tmp_path / "x.safetensors"]}[command]
    refused(cli(command, *argument, "--checkpoint", tmp_path / "lenet.onnx"), "lenet.onnx: an ONNX network")
    refused(cli(command, *argument, "--checkpoint", trained), f"{trained}: a folder", "checkpoint.pt")


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_out_that_cannot_be_written(cli: Cli, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("precious")
    refused(cli("train", "--epochs", 1, "--out", tmp_path / place), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


def test_disk_that_fills_up(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint of the second epoch cannot be written; that of the first stays, and the run can be resumed."""
    write_bytes, writes = Path.write_bytes, 0

    def filling(path: Path, content: bytes) -> int:
        nonlocal writes
        writes += 1
        if writes == 5:
            write_bytes(path, content[:1000])
            raise OSError(28, "No space left on device", str(path))
        return write_bytes(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", filling)
        refused(cli("train", "--epochs", 3, "--out", tmp_path / "run"), "No space left")
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["epoch"] == 1
    assert cli("train", "--out", tmp_path / "run", "--resume").status == 0


@pytest.mark.filterwarnings("error")  # NumPy would speak of numbers that overflow
@pytest.mark.parametrize("options", [[], ["--no-fused"], ["--loss", "cross-entropy"]], ids=str)
def test_training_that_diverges(cli: Cli, tmp_path: Path, folder: Path, options: list[str]) -> None:
    arguments = ("train", "--data", folder, "--lr", 1e6, "--batch-size", 16, "--out", tmp_path / "run", *options)
    refused(cli(*arguments), "training diverged in epoch", "--lr")


def test_names_are_checked_before_folders(cli: Cli, tmp_path: Path) -> None:
    """What is mistyped is said first, whatever lies in --out."""
    (tmp_path / "lenet-run").mkdir()
    (tmp_path / "lenet-run" / "checkpoint.pt").write_text("a run")
    refused(cli("train", "--data", "nosuch"), "--data nosuch: choose digits, mnist")
    refused(cli("train", "--data", "nosuch", "--resume"), "--data nosuch: choose digits, mnist")
    refused(cli("train", "--data", "digits", "--data-dir", "."), "--data-dir")
    refused(cli("train", "--backend", "abacus"), "abacus")


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n" + bytes(40), None])
def test_image_files(cli: Cli, tmp_path: Path, trained: Path, content: bytes | None) -> None:
    path = tmp_path / "image.png"
    if content is None:
        Image.new("L", (300, 300), 7).save(path)
        path.write_bytes(path.read_bytes()[:-30])
    else:
        path.write_bytes(content)
    refused(cli("predict", path, "--checkpoint", trained / "checkpoint.pt"), path, "not an image")


def test_folders_in_the_place_of_files(cli: Cli, tmp_path: Path, trained: Path) -> None:
    checkpoint = ("--checkpoint", trained / "checkpoint.pt")
    refused(cli("predict", tmp_path, *checkpoint), f"{tmp_path}: a folder, not an image")
    refused(cli("export", tmp_path / "no" / "x.safetensors", *checkpoint), f"there is no folder {tmp_path / 'no'}\n")


def test_blank_image(cli: Cli, tmp_path: Path, trained: Path) -> None:
    Image.new("RGB", (40, 30), "white").save(tmp_path / "blank.png")
    refused(cli("predict", tmp_path / "blank.png", "--checkpoint", trained / "checkpoint.pt"), "blank.png", "no digit")
