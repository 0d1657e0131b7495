"""Data sets, whole in memory, as the network takes them: (N, 1, 32, 32) float32 images and (N,) int64 labels."""

import gzip
import hashlib
import io
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pooch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lenet.idx import parse_idx, read_content
from lenet.messages import LenetError

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class Source:
    """Where a published data set is found, and the sha256 of its FILES, unpacked."""

    variable: str
    installed: Path | None
    mirrors: tuple[str, ...]
    sha256: tuple[str, str, str, str]
    classes: tuple[str, ...] = DIGITS


SOURCES = {
    "mnist": Source(
        variable="MNIST_DIR",
        installed=None,
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        sha256=(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion-mnist": Source(
        variable="FASHION_MNIST_DIR",
        installed=Path("/usr/share/datasets/fashion-mnist"),  # Debian's package dataset-fashion-mnist
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        sha256=(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        classes=(
            "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
        ),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Data:
    """A training and a test set; images (N, 1, 32, 32) float32, labels (N,) int64 in 0..9."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def to(self, device: torch.device) -> "Data":
        return Data(*(tensor.to(device) for tensor in vars(self).values()))


def load(name: str, data_dir: str | None = None) -> Data:
    """The data set `name`: "digits", "mnist", "fashion-mnist", or a folder with the four IDX files, gzipped or not.

    A published set is read from `data_dir`, else from the folder in $MNIST_DIR or $FASHION_MNIST_DIR, else from where
    a package installed it, else it is downloaded once into the user's cache.
    LenetError: a file is missing, damaged, not what it should be, or cannot be downloaded.
    """
    check_name(name, data_dir)
    if name in SOURCES:
        return load_folder(Path(data_dir) if data_dir else locate(name), SOURCES[name].sha256)
    return load_small_digits() if name == "digits" else load_folder(Path(name))


def check_name(name: str, data_dir: str | None) -> None:
    """LenetError: there is no data set or folder `name`, or it is not one that lies in a `data_dir`."""
    if data_dir is not None and name not in SOURCES:
        raise LenetError(f"--data-dir goes with --data {' or '.join(SOURCES)}, not with --data {name}")
    if name not in ("digits", *SOURCES) and not Path(name).is_dir():
        raise LenetError(f"--data {name}: choose digits, {', '.join(SOURCES)} or a folder with the four IDX files")


def class_names(name: str) -> tuple[str, ...]:
    """What the labels 0..9 of the data set `name` stand for."""
    return SOURCES[name].classes if name in SOURCES else DIGITS


def scale(pixels: Tensor) -> Tensor:
    """Grey values in 0..1 to network input: MNIST's mean becomes 0, its standard deviation 1, in every data set."""
    return (pixels - 0.1307) / 0.3081


def load_small_digits() -> Data:
    """scikit-learn's 1,797 digits of 8x8 pixels, enlarged to MNIST's 20x20 in a 32x32 field; 20 % are the test set."""
    from sklearn.datasets import load_digits  # takes as long to import as torch, and other data sets do without it
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16
    images = scale(F.pad(F.interpolate(images, size=(20, 20), mode="bilinear"), (6, 6, 6, 6)))
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    targets = torch.from_numpy(labels).long()
    return Data(images[train], targets[train], images[test], targets[test])


def locate(name: str) -> Path:
    """The folder that holds the published data set `name`; downloads it where there is none."""
    source = SOURCES[name]
    if source.variable in os.environ:
        return Path(os.environ[source.variable])
    if source.installed and source.installed.is_dir():
        return source.installed
    folder = pooch.os_cache("lenet-kernels") / name
    for file, sha256 in zip(FILES, source.sha256, strict=True):
        download(name, file, sha256, folder)
    return folder


def download(name: str, file: str, sha256: str, folder: Path) -> None:
    """Fetch one file into `folder` from the first mirror that has it whole, unless it is there already."""
    pooch.get_logger().setLevel("WARNING")
    for mirror in SOURCES[name].mirrors:
        try:
            pooch.retrieve(f"{mirror}{file}.gz", sha256, file, folder, downloader=download_gzipped)
            return
        except (OSError, EOFError, zlib.error, ValueError) as error:
            reason = error
    raise LenetError(
        f"{name} cannot be downloaded ({type(reason).__name__} at {mirror}): put its four files into a folder and "
        f"name it with --data-dir or ${SOURCES[name].variable}"
    ) from reason


def download_gzipped(url: str, output_file: str, caller: pooch.Pooch) -> None:
    """A pooch downloader that unpacks."""
    packed = io.BytesIO()
    pooch.HTTPDownloader(progressbar=True)(url, packed, caller)
    Path(output_file).write_bytes(gzip.decompress(packed.getvalue()))


def load_folder(folder: Path, sha256: tuple[str, ...] = ()) -> Data:
    """The four IDX files of a folder; where `sha256` is given the unpacked files must have these checksums."""
    if not folder.is_dir():
        raise LenetError(f"{folder}: no such folder of data files")
    paths = [packed if (packed := folder / f"{file}.gz").exists() else folder / file for file in FILES]
    contents = [read_content(path) for path in paths]
    arrays = [parse_idx(content, ndim, path) for content, ndim, path in zip(contents, (3, 1, 3, 1), paths, strict=True)]
    for content, path, expected in zip(contents, paths, sha256, strict=False):
        if (found := hashlib.sha256(content).hexdigest()) != expected:
            raise LenetError(f"{path}: sha256 {found} of the unpacked file found, {expected} expected")
    check_pair(arrays[0], arrays[1], paths[0], paths[1])
    check_pair(arrays[2], arrays[3], paths[2], paths[3])
    return Data(as_images(arrays[0]), as_labels(arrays[1]), as_images(arrays[2]), as_labels(arrays[3]))


def check_pair(images: NDArray[np.uint8], labels: NDArray[np.uint8], images_path: Path, labels_path: Path) -> None:
    """LenetError unless there are 28x28 images, and a label in 0..9 for each."""
    if images.shape[1:] != (28, 28):
        raise LenetError(f"{images_path}: images of {images.shape[1]} x {images.shape[2]} found, 28 x 28 expected")
    if len(images) == 0:
        raise LenetError(f"{images_path}: no images found")
    if len(labels) != len(images):
        raise LenetError(f"{labels_path}: {len(labels)} labels found, {len(images)} expected, one an image")
    if labels.max() > 9:
        raise LenetError(f"{labels_path}: label {labels.max()} found, 0 to 9 expected")


def as_images(pixels: NDArray[np.uint8]) -> Tensor:
    return scale(F.pad(torch.from_numpy(pixels.copy()).unsqueeze(1).float() / 255, (2, 2, 2, 2)))


def as_labels(labels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))
