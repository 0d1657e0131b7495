"""Image files as the network takes them."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from lenet.data import scale
from lenet.messages import LenetError

FIELD = 32
BOX = 20
FAINTEST = 0.2


def load_image(path: Path) -> Tensor:
    """The digit in an image file as (1, 32, 32) float32, prepared as MNIST's were.

    The digit is what differs from the grey of the image's border. Its bounding box is scaled to 20 pixels, its centre
    of mass put in the middle. LenetError: no image file, or nothing on it.
    """
    ink = read_ink(path)
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if len(rows) == 0:
        raise LenetError(f"{path}: no digit found, the image is of one colour")
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    factor = BOX / max(box.shape)
    height, width = (max(1, round(size * factor)) for size in box.shape)
    digit = np.asarray(Image.fromarray(box).resize((width, height), Image.Resampling.BILINEAR))
    digit = digit / digit.max()

    field = np.zeros((FIELD, FIELD), np.float32)
    top = corner(digit.sum(1))
    left = corner(digit.sum(0))
    field[top : top + height, left : left + width] = digit
    return scale(torch.from_numpy(field).unsqueeze(0))


def corner(mass: NDArray[np.float32]) -> int:
    """Where a row of masses begins when its centre is in the middle of the field, or as near as it fits."""
    centre = np.average(np.arange(len(mass)) + 0.5, weights=mass)
    return int(np.clip(round(FIELD / 2 - centre), 0, FIELD - len(mass)))


def read_ink(path: Path) -> NDArray[np.float32]:
    """How much each pixel differs from the background, (H, W) in 0..1; faint differences are none."""
    try:
        with Image.open(path) as image:
            grey = as_grey(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise LenetError(f"{path}: no such file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise LenetError(f"{path}: not an image that can be read ({type(error).__name__})") from error
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ink = np.abs(grey - np.median(border))
    ink /= max(ink.max(), 1e-6)
    ink[ink < FAINTEST] = 0
    return ink


def as_grey(image: Image.Image) -> NDArray[np.float32]:
    """The brightness of each pixel; what is transparent gets the brightness farthest from what is not."""
    if image.mode.startswith(("I", "F")):
        return np.asarray(image, np.float32)
    if not image.has_transparency_data:
        return np.asarray(image.convert("L"), np.float32)
    grey, alpha = (np.asarray(band, np.float32) for band in image.convert("RGBA").convert("LA").split())
    opacity = alpha / np.float32(255)
    ground = np.float32(255 if np.sum(grey * opacity) < 127.5 * np.sum(opacity) else 0)
    return grey * opacity + ground * (1 - opacity)
