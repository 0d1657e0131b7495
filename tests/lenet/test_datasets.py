"""The data sets."""

import gzip
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path

import pooch
import pytest
import torch
from lenet_helpers import FILES, Outcome

from lenet import data
from lenet.messages import LenetError

needs_mnist = pytest.mark.skipif("MNIST_DIR" not in os.environ, reason="$MNIST_DIR names no folder with MNIST")


def check_form(sets: data.Data) -> None:
    for images, labels in ((sets.train_images, sets.train_labels), (sets.test_images, sets.test_labels)):
        assert images.shape == (len(labels), 1, 32, 32) and images.dtype == torch.float32
        assert labels.dtype == torch.int64 and set(labels.tolist()) == set(range(10))
        assert torch.all(images[:, :, :2] == images.min()), "the border is background"


def test_digits() -> None:
    sets = data.load("digits")
    check_form(sets)
    assert (len(sets.train_labels), len(sets.test_labels)) == (1437, 360)
    assert sets.test_labels.bincount().min() >= 34, "stratified"
    assert torch.equal(sets.test_images, data.load("digits").test_images), "a fixed split"
    everything = torch.cat([sets.train_images, sets.test_images]).flatten(1)
    assert len(everything.unique(dim=0)) == 1797, "no digit in both sets"


@pytest.mark.parametrize("pack", [False, True])
def test_folder(folder: Path, pack: bool) -> None:
    plain = data.load(str(folder))
    if pack:
        for file in FILES:
            (folder / f"{file}.gz").write_bytes(gzip.compress((folder / file).read_bytes()))
            (folder / file).unlink()
    sets = data.load(str(folder))
    check_form(sets)
    assert torch.equal(sets.train_images, plain.train_images)
    assert sets.train_labels.tolist() == [n % 10 for n in range(96)]


@needs_mnist
def test_mnist() -> None:
    sets = data.load("mnist")
    check_form(sets)
    assert (len(sets.train_labels), len(sets.test_labels)) == (60_000, 10_000)
    inner = sets.train_images[:, :, 2:-2, 2:-2]
    assert abs(inner.mean()) < 1e-3 and abs(inner.std() - 1) < 1e-3


@needs_mnist
def test_mnist_is_not_fashion_mnist(cli: Callable[..., Outcome]) -> None:
    outcome = cli("train", "--data", "fashion-mnist", "--data-dir", os.environ["MNIST_DIR"])
    assert outcome.status == 2 and "sha256" in outcome.err


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which it is served."""

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    served = tmp_path / "served"
    served.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(served))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield served, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def published(
    mirror: tuple[Path, str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """The data set "small", downloadable: the folder that its second mirror serves, and the cache."""
    served, address = mirror
    contents = [(folder / file).read_bytes() for file in FILES]
    for file, content in zip(FILES, contents, strict=True):
        (served / f"{file}.gz").write_bytes(gzip.compress(content))
    small = data.Source("SMALL_DIR", None, (f"{address}gone/", address), tuple(sha256(c).hexdigest() for c in contents))
    monkeypatch.setitem(data.SOURCES, "small", small)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    return served, tmp_path / "cache"


def test_download(published: tuple[Path, Path], folder: Path) -> None:
    served, _ = published
    sets = data.load("small")
    assert torch.equal(sets.train_images, data.load(str(folder)).train_images)
    for file in served.iterdir():
        file.unlink()
    data.load("small")  # from the cache


def test_variable_names_the_folder(published: tuple[Path, Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALL_DIR", str(folder))
    data.load("small")
    assert not published[1].exists(), "nothing is downloaded"


@pytest.mark.parametrize(
    "content",
    [b"<html>log in first</html>", gzip.compress(b"another file"), None],
    ids=["a page", "another file", "missing"],  # gzip writes the time into its bytes: no test's name may hold them
)
def test_failed_download(published: tuple[Path, Path], content: bytes | None) -> None:
    served, cache = published
    broken = served / f"{FILES[2]}.gz"
    broken.unlink() if content is None else broken.write_bytes(content)
    with pytest.raises(LenetError, match="small cannot be downloaded .*--data-dir or \\$SMALL_DIR"):
        data.load("small")
    assert sorted(file.name for file in (cache / "lenet-kernels" / "small").iterdir()) == sorted(FILES[:2])
