"""`lenet predict` and the preparation of its images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lenet_helpers import Outcome
from PIL import Image, ImageDraw

from lenet import data
from lenet.image import load_image

Cli = Callable[..., Outcome]

STROKES = {
    0: [[(50, 10), (30, 20), (22, 50), (30, 80), (50, 90), (70, 80), (78, 50), (70, 20), (50, 10)]],
    1: [[(50, 10), (50, 90)]],
    7: [[(20, 10), (80, 10), (45, 90)]],
}


def drawn(digit: int, width: int = 14) -> Image.Image:
    """A digit in white strokes on black, 140 x 120 pixels."""
    image = Image.new("L", (140, 120), 0)
    pen = ImageDraw.Draw(image)
    for stroke in STROKES[digit]:
        pen.line([(x + 20, y + 10) for x, y in stroke], fill=255, width=width, joint="curve")
    return image


def inverted(image: Image.Image) -> Image.Image:
    return image.point(lambda value: 255 - value)


def inked(image: Image.Image, colour: str) -> Image.Image:
    """The strokes in one colour on a transparent ground."""
    result = Image.new("RGBA", image.size, colour)
    result.putalpha(image)
    return result


def transparent_palette(image: Image.Image) -> Image.Image:
    result = image.point(lambda value: value >= 128).convert("P")
    result.putpalette([0, 0, 0, 250, 250, 250])
    result.info["transparency"] = 0
    return result


KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "light on dark": lambda image: image,
    "dark on light": inverted,
    "faint": lambda image: image.point(lambda value: 100 + value // 8),
    "one bit": lambda image: inverted(image).convert("1"),
    "colour": lambda image: Image.merge("RGB", (inverted(image), inverted(image), Image.new("L", image.size, 200))),
    "palette": lambda image: inverted(image).convert("P"),
    "transparent palette": transparent_palette,
    "grey and alpha": lambda image: Image.merge("LA", (Image.new("L", image.size, 0), image)),
    "black on transparent": lambda image: inked(image, "black"),
    "white on transparent": lambda image: inked(image, "white"),
    "red on transparent": lambda image: inked(image, "red"),
    "opaque alpha": lambda image: inverted(image).convert("RGBA"),
    "16 bit": lambda image: Image.fromarray(np.asarray(image).astype(np.uint16) * 257),
    "large": lambda image: image.resize((1400, 1200)),
    "in a corner": lambda image: Image.fromarray(np.pad(np.asarray(image), ((0, 300), (200, 0)))),
}


@pytest.mark.parametrize("digit", STROKES)
def test_kinds_of_image(cli: Cli, tmp_path: Path, trained: Path, digit: int) -> None:
    paths = [tmp_path / f"{kind}.png" for kind in KINDS]
    for path, kind in zip(paths, KINDS.values(), strict=True):
        kind(drawn(digit)).save(path)
    expected = load_image(paths[0])
    for path in paths:
        assert (load_image(path) - expected).abs().mean() < 0.1, f"{path.stem} is prepared otherwise"

    status, out, err = cli("predict", *paths, "--checkpoint", trained / "checkpoint.pt")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[::2] == [f"{path}: {digit}" for path in paths]
    for line in lines[1::2]:
        names, shares = line.split()[::2], [float(share.rstrip("%")) for share in line.split()[1::2]]
        assert names == [str(n) for n in range(10)] and abs(sum(shares) - 100) < 1
        assert shares.index(max(shares)) == digit


def test_centred_as_mnist(tmp_path: Path) -> None:
    path = tmp_path / "7.png"
    drawn(7).save(path)
    image = load_image(path)
    assert image.shape == (1, 32, 32) and image.dtype == torch.float32
    ink = (image[0] - image.min()).double()
    rows, columns = torch.nonzero(ink.sum(1)).flatten(), torch.nonzero(ink.sum(0)).flatten()
    assert max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1 == 20
    middle = torch.arange(32).double() + 0.5
    assert abs((ink.sum(1) @ middle) / ink.sum() - 16) <= 0.5
    assert abs((ink.sum(0) @ middle) / ink.sum() - 16) <= 0.5


def test_grey_values_are_those_of_the_training_data(tmp_path: Path) -> None:
    path = tmp_path / "7.png"
    drawn(7).save(path)
    digits = data.load("digits").train_images
    assert load_image(path).min() == digits.min() and load_image(path).max() == digits.max()


def test_digits_from_files(tmp_path: Path, cli: Cli, trained: Path) -> None:
    """Test digits, written as dark on light pictures of five times the size, are recognised as such."""
    sets = data.load("digits")
    images, labels = sets.test_images[:60], sets.test_labels[:60].tolist()
    paths = [tmp_path / f"{n}.png" for n in range(60)]
    for path, image in zip(paths, images[:, 0], strict=True):
        pixels = (image - image.min()) / (image.max() - image.min()) * 255
        inverted(Image.fromarray(pixels.numpy().astype(np.uint8)).resize((160, 160))).save(path)
    status, out, _ = cli("predict", *paths, "--checkpoint", trained / "checkpoint.pt")
    right = sum(line.endswith(f": {label}") for line, label in zip(out.splitlines()[::2], labels, strict=True))
    assert status == 0 and right >= 54


@pytest.mark.parametrize("dot", [(5, 5), (139, 0)])
def test_one_pixel(tmp_path: Path, dot: tuple[int, int]) -> None:
    image = Image.new("L", (140, 120), 255)
    image.putpixel(dot, 0)
    image.save(tmp_path / "dot.png")
    assert load_image(tmp_path / "dot.png").isfinite().all()


def test_photo_turned_by_its_camera(tmp_path: Path) -> None:
    upright, turned = tmp_path / "upright.png", tmp_path / "turned.png"
    drawn(7).save(upright)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    drawn(7).transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    torch.testing.assert_close(load_image(turned), load_image(upright))
