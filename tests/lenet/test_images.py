"""`lenet predict` and the preparation of its images."""

import json
from collections.abc import Callable
from colorsys import hsv_to_rgb
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from lenet_helpers import Outcome
from PIL import Image, ImageDraw

from lenet import data
from lenet.export import load_trained
from lenet.image import load_image
from lenet.messages import LenetError
from lenet.train import scores_of

Cli = Callable[..., Outcome]

STROKES = {
    0: [[(50, 10), (30, 20), (22, 50), (30, 80), (50, 90), (70, 80), (78, 50), (70, 20), (50, 10)]],
    1: [[(50, 10), (50, 90)]],
    7: [[(20, 10), (75, 10), (35, 90)], [(28, 50), (70, 50)]],  # with a bar: few networks are sure of one without
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
    for path in paths:  # where a centre of mass lies between two pixels, either is right
        shifts = [load_image(path).roll((y, x), (1, 2)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
        assert min((shifted - expected).abs().mean() for shifted in shifts) < 0.1, f"{path.stem} is prepared otherwise"

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


def some_digits_from_files(tmp_path: Path, cli: Cli, trained: Path) -> None:
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


@pytest.mark.parametrize("size", [(140, 120), (28, 28)])
def test_a_speck_is_no_digit(tmp_path: Path, size: tuple[int, int]) -> None:
    image = Image.new("L", size, 255)
    image.putpixel((5, 5), 0)
    image.save(tmp_path / "dot.png")
    with pytest.raises(LenetError, match="no digit found"):
        load_image(tmp_path / "dot.png")


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (2, 3)])
def test_tiny_images(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint8).reshape(size)).save(tmp_path / "tiny.png")
    try:
        assert load_image(tmp_path / "tiny.png").isfinite().all()
    except LenetError as error:
        assert "no digit found" in str(error)


def test_photo_turned_by_its_camera(tmp_path: Path) -> None:
    upright, turned = tmp_path / "upright.png", tmp_path / "turned.png"
    drawn(7).save(upright)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    drawn(7).transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    torch.testing.assert_close(load_image(turned), load_image(upright))


def light(kind: str, random: np.random.Generator, shape: tuple[int, int] = (200, 260)) -> np.ndarray:
    """How much light falls on a paper of so many pixels, (H, W)."""
    y, x = np.mgrid[: shape[0], : shape[1]] / max(shape)
    angle = random.uniform(0, 2 * np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    along = (along - along.min()) / np.ptp(along)
    middle = (x - x.mean()) ** 2 + (y - y.mean()) ** 2
    return {
        "even": np.ones(shape),
        "from one side": 1 - 0.6 * along,
        "less in the corners": 1 - 0.6 * middle / middle.max(),
        "a shadow": 1 - 0.45 / (1 + np.exp(-60 * (along - random.uniform(0.3, 0.7)))),
    }[kind]


def colour(random: np.random.Generator, saturation: float, value: float) -> np.ndarray:
    return np.array(hsv_to_rgb(random.random(), saturation, value)) * 255


class Photo(NamedTuple):
    """How a paper and its digits are photographed: the light, the noise, and the colours, each of any hue."""

    light: str = "even"
    noise: float = 0
    paper: tuple[float, float] = (0, 0.92)
    ink: tuple[float, float] = (0, 0.15)

    def of(self, digits: list[np.ndarray], random: np.random.Generator) -> Image.Image:
        """Digits (28, 28) in 0..255 side by side, anywhere and of any size that fits."""
        ink = np.zeros((200, 260))
        side = random.integers(70, 170 // len(digits))
        top, left = random.integers(0, 201 - side), random.integers(0, 261 - side * len(digits))
        for number, digit in enumerate(digits):
            pixels = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)) / 255
            ink[top : top + side, left + number * side : left + (number + 1) * side] = pixels
        ground, pen = colour(random, *self.paper), colour(random, *self.ink)
        pixels = (ground + (pen - ground) * ink[..., None]) * light(self.light, random)[..., None]
        return Image.fromarray((pixels + random.normal(0, self.noise, pixels.shape)).clip(0, 255).astype(np.uint8))


PHOTOS = {
    "plain": Photo(),
    "light from one side": Photo("from one side"),
    "dark corners and noise": Photo("less in the corners", noise=10),
    "a shadow": Photo("a shadow", noise=6),
    "a coloured pen": Photo("from one side", noise=4, ink=(0.9, 0.7)),
    "colour on colour": Photo("from one side", noise=4, paper=(0.3, 0.95), ink=(0.9, 0.6)),
    "chalk on a board": Photo("from one side", noise=6, paper=(0.1, 0.25), ink=(0.02, 0.9)),
    "a hard pencil": Photo("from one side", noise=4, ink=(0, 0.6)),
}


def some_digits() -> tuple[list[np.ndarray], list[int]]:
    """Two of the test digits for each class, 28 x 28, and their labels."""
    sets = data.load("digits")
    chosen = torch.cat([torch.nonzero(sets.test_labels == n).flatten()[:2] for n in range(10)])
    images = sets.test_images[chosen, 0, 2:30, 2:30]
    pixels = (images - images.min()) / (images.max() - images.min()) * 255
    return list(pixels.numpy().astype(np.uint8)), sets.test_labels[chosen].tolist()


@pytest.mark.parametrize("kind", PHOTOS)
def test_photos(tmp_path: Path, trained: Path, kind: str) -> None:
    """Test digits on photographs are recognised, whatever the light, the noise and the colours."""
    random = np.random.default_rng(0)
    model, _ = load_trained(trained / "checkpoint.pt", torch.device("cpu"))
    digits, labels = some_digits()
    loaded = []
    for digit in digits:
        PHOTOS[kind].of([digit], random).save(tmp_path / "photo.png")
        loaded.append(load_image(tmp_path / "photo.png"))
    right = scores_of(model, torch.stack(loaded)).argmax(1) == torch.tensor(labels)
    assert right.sum() >= 18, f"{right.sum()} of 20"


@pytest.mark.parametrize("kind", PHOTOS)
def test_two_digits_and_none(tmp_path: Path, kind: str) -> None:
    random = np.random.default_rng(0)
    digits, _ = some_digits()
    for pair in zip(digits[:10:3], digits[10::3], strict=True):
        PHOTOS[kind].of(list(pair), random).save(tmp_path / "two.png")
        with pytest.raises(LenetError, match="more than one object"):
            load_image(tmp_path / "two.png")
        PHOTOS[kind].of([np.zeros((28, 28), np.uint8)], random).save(tmp_path / "paper.png")
        with pytest.raises(LenetError, match="no digit found"):
            load_image(tmp_path / "paper.png")


def test_bad_files_among_good_ones(cli: Cli, tmp_path: Path, trained: Path) -> None:
    """Each bad one is named in a line, the good ones are answered, and the status says that something is wrong."""
    good, text, blank, number = (tmp_path / name for name in ("seven.png", "text.png", "blank.png", "nan.tiff"))
    drawn(7).save(good)
    text.write_text("no image")
    Image.new("L", (40, 30), 255).save(blank)
    Image.fromarray(np.where(np.eye(40, dtype=bool), np.float32("nan"), np.float32(0.5))).save(number)
    paths = [text, good, blank, number, tmp_path / "gone.png", good]
    status, out, err = cli("predict", *paths, "--checkpoint", trained / "checkpoint.pt")
    assert status == 2
    assert out.splitlines()[::2] == [f"{good}: 7"] * 2
    assert err.splitlines() == [
        f"lenet: error: {text}: not an image that can be read (UnidentifiedImageError)",
        f"lenet: error: {blank}: no digit found, nothing stands out from the background",
        f"lenet: error: {number}: some of its pixels are NaN or infinite",
        f"lenet: error: {tmp_path / 'gone.png'}: no such file",
    ]


def test_json(cli: Cli, tmp_path: Path, trained: Path) -> None:
    drawn(7).save(tmp_path / "seven.png")
    paths = [tmp_path / "seven.png", tmp_path / "gone.png"]
    status, out, _ = cli("predict", *paths, "--json", "--checkpoint", trained / "checkpoint.pt")
    answer, error = map(json.loads, out.splitlines())
    assert status == 2 and error == {"image": str(paths[1]), "error": f"{paths[1]}: no such file"}
    assert (answer["image"], answer["class"], answer["sure"]) == (str(paths[0]), "7", True)
    assert list(answer["probabilities"]) == [str(n) for n in range(10)]
    assert sum(answer["probabilities"].values()) == pytest.approx(1)


def test_not_sure(cli: Cli, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two classes are about as likely, both are named."""
    drawn(7).save(tmp_path / "seven.png")
    scores = torch.full((1, 10), 0.01)
    scores[0, 7], scores[0, 1] = 0.5, 0.4
    monkeypatch.setattr("lenet.train.scores_of", lambda *_: scores)
    arguments = ("predict", tmp_path / "seven.png", "--checkpoint", trained / "checkpoint.pt")
    status, out, _ = cli(*arguments)
    assert status == 0 and out.startswith(f"{tmp_path / 'seven.png'}: not sure, 7 or 1\n")
    assert json.loads(cli(*arguments, "--json").out)["sure"] is False
    scores[0, 1] = 0.1
    assert cli(*arguments).out.startswith(f"{tmp_path / 'seven.png'}: 7\n")


def test_save_input(cli: Cli, tmp_path: Path, trained: Path) -> None:
    """Images of one name get pictures of their own, with the grey values that the network sees."""
    paths = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.bmp"]
    for path, digit in zip(paths, (7, 1), strict=True):
        path.parent.mkdir()
        drawn(digit).save(path)
    seen = tmp_path / "seen" / "here"
    assert cli("predict", *paths, "--save-input", seen, "--checkpoint", trained / "checkpoint.pt").status == 0
    assert sorted(file.name for file in seen.iterdir()) == ["1-x.png", "2-x.png"]
    for number, path in enumerate(paths, 1):
        pixels = torch.from_numpy(np.array(Image.open(seen / f"{number}-x.png"))).float() / 255
        torch.testing.assert_close(data.scale(pixels), load_image(path)[0], atol=0.01, rtol=0)
