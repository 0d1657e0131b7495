"""Image files as the network takes them: the digit found on its paper, scaled and centred as MNIST's were."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage
from torch import Tensor

from lenet.data import scale
from lenet.messages import LenetError

Array = NDArray[np.floating[Any]]
FIELD = 32
BOX = 20  # MNIST's digits fill this in one direction
SIDE = 240  # of the image in which the digit is looked for
STROKE = 0.25  # of the image's side: what is wider is paper
BLACK, WHITE = 0.2, 0.8  # of the strongest ink: what counts as none, and as all
FAINTEST = 0.08  # contrast, of 1
DARKEST = 0.25  # of the brightest paper: a shadow that is darker is taken for this
ABOVE_NOISE = 12  # standard deviations
SPECK = 0.05  # of the image's side
ANOTHER = 0.5  # of the largest object's height: what is lower may be a part of it, or dirt


def load_image(path: Path) -> Tensor:
    """The digit in an image file as (1, 32, 32) float32, prepared as MNIST's were: http://yann.lecun.com/exdb/mnist.

    Its bounding box is scaled to 20 pixels, its centre of mass put in the middle. LenetError: no image file, no digit on it,
    or more than one.
    """
    ink = ink_on(read_pixels(path))
    parts = digit_in(ink, path)
    box = np.where(parts, np.clip((ink - BLACK) / (WHITE - BLACK), 0, 1), 0)[ndimage.find_objects(parts.astype(int))[0]]
    factor = BOX / max(box.shape)
    height, width = (max(1, round(size * factor)) for size in box.shape)
    digit = resized(box, width, height, Image.Resampling.BILINEAR)
    digit = digit / digit.max()

    field = np.zeros((FIELD, FIELD), np.float32)
    top, left = (
        int(np.clip(round(FIELD / 2 - centre - 0.5), 0, FIELD - size))
        for centre, size in zip(ndimage.center_of_mass(digit), digit.shape, strict=True)
    )
    field[top : top + height, left : left + width] = digit
    return scale(torch.from_numpy(field).unsqueeze(0))


def as_picture(digit: Tensor) -> Image.Image:
    """What `load_image` gave, (1, 32, 32), to be looked at."""
    low, high = scale(torch.tensor([0.0, 1.0]))
    return Image.fromarray(((digit[0] - low) / (high - low) * 255).round().to(torch.uint8).numpy())


def read_pixels(path: Path) -> Array:
    """The image (H, W, channels) in 0..1, no side longer than SIDE. LenetError: it cannot be read."""
    try:
        with Image.open(path) as image:
            pixels = as_pixels(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise LenetError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise LenetError(f"{path}: a folder, not an image") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise LenetError(f"{path}: not an image that can be read ({type(error).__name__})") from error
    if not np.isfinite(pixels).all():
        raise LenetError(f"{path}: some of its pixels are NaN or infinite")
    pixels -= pixels.min()
    pixels /= max(float(pixels.max()), 1.0)
    height, width = pixels.shape[:2]
    factor = min(1, SIDE / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.stack([resized(channel, *size, Image.Resampling.BOX) for channel in np.moveaxis(pixels, -1, 0)], -1)


def as_pixels(image: Image.Image) -> Array:
    """The channels of each pixel, (H, W, channels); what is transparent gets the brightness farthest from what is not."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, np.float32)[..., None]
        return values / max(float(np.ptp(values)), 1e-30)
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"), np.float32) / 255
    colours = np.asarray(image.convert("RGBA"), np.float32) / 255
    colours, opacity = colours[..., :3], colours[..., 3:]
    ground = np.float32(np.sum(colours * opacity) < 1.5 * np.sum(opacity))
    return colours * opacity + ground * (1 - opacity)


def resized(channel: Array, width: int, height: int, how: Image.Resampling) -> Array:
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(channel, np.float32)).resize((width, height), how), np.float32
    )


def ink_on(pixels: Array) -> Array:
    """How much ink is on each pixel of (H, W, channels), (H, W) in 0..1; nothing where there is only paper.

    Ink is what differs from its surroundings in the direction of colour in which few pixels differ much: of a shadow's edge
    as many are lighter as are darker. The paper under it is the opening: what remains if all that is narrower than STROKE
    is taken away, and an uneven light stays.
    """
    side = max(pixels.shape)
    direction = direction_of_ink(pixels[:: max(1, side // 80), :: max(1, side // 80)])
    width = max(3, int(side * STROKE) | 1)
    if side > 2 * FIELD:
        pixels = ndimage.gaussian_filter(pixels, (side / 250, side / 250, 0), mode="nearest")
    around = ((width, width), (width, width), (0, 0))
    pixels = np.pad(pixels, around, "reflect", reflect_type="odd")  # the light goes on as it is at the border
    along = pixels @ direction
    ink = along - ndimage.grey_opening(along, (width, width))
    contrast = ink[width:-width, width:-width].max()
    if direction.sum() < 0:  # dark ink: in a shadow it differs less
        ink /= np.maximum((pixels - ink[..., None] * direction).max(-1), DARKEST)
    ink = ink[width:-width, width:-width]
    ink -= np.median(ink)
    strongest = ink.max()
    noise = 1.5 * np.median(np.abs(ink))
    if contrast < FAINTEST or strongest < ABOVE_NOISE * noise:
        return np.zeros_like(ink)
    return (ink / strongest).clip(0)


def direction_of_ink(pixels: Array) -> Array:
    """The direction of colour (channels,), of length 1, in which a few pixels of (H, W, channels) differ from those around."""
    reach = max(pixels.shape) / 5
    difference = pixels - ndimage.gaussian_filter(pixels, (reach, reach, 0), mode="nearest", truncate=2)
    direction = (difference * (difference**2).sum(-1, keepdims=True)).sum((0, 1))
    return direction / max(np.linalg.norm(direction), 1e-30)


def digit_in(ink: Array, path: Path) -> NDArray[np.bool_]:
    """Which pixels of `ink` belong to the one object: the largest, and what lies in its reach. LenetError: none, or another."""
    mask = ink > BLACK
    side = max(mask.shape)
    near = max(1, side // 60)
    labels, _ = ndimage.label(ndimage.binary_dilation(mask, iterations=near), np.ones((3, 3)))
    boxes = {
        n: box
        for n, box in enumerate(ndimage.find_objects(labels), 1)
        if max(sizes(box)) > SPECK * side + 2 * near and ink[box].max() > (BLACK + WHITE) / 2
    }
    if not boxes:
        raise LenetError(f"{path}: no digit found, nothing stands out from the background")
    largest = boxes[max(boxes, key=lambda n: ink[labels == n].sum())]
    height = sizes(largest)[0]
    parts = []
    for n, box in boxes.items():
        apart = max(max(a.start - b.stop, b.start - a.stop) for a, b in zip(box, largest, strict=True))
        if apart >= 0 and sizes(box)[0] >= ANOTHER * height:
            raise LenetError(f"{path}: more than one object; an image should have one digit")
        if apart < height / 4:
            parts.append(n)
    return mask & np.isin(labels, parts)


def sizes(box: tuple[slice, ...]) -> tuple[int, ...]:
    return tuple(part.stop - part.start for part in box)
