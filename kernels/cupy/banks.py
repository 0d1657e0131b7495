"""Where the pixels under a tile lie in shared memory: so that threads which read at once meet in few banks."""

from typing import NamedTuple

import numpy as np


class Placement(NamedTuple):
    """The end of pixels.cuh's struct Tiling: offsets count numbers of the dtype of sums."""

    height: int  # of the input under the tile
    width: int
    odd: int  # from a row to the odd row below
    pitch: int  # to the row two below, where the next quad begins
    plane: int  # to the next channel
    image: int


def placement(rows: int, columns: int, images: int, window: int, banks: int, corners: np.ndarray) -> Placement:
    """For a tile of quads; `banks` hold a number each.

    `corners` (threads, 4) are channel, image, row and column, always even, of the first two pixels that each thread reads.
    The fewer passes the reads take the better, and the less memory: of what is tried, the least product of the memory of
    an image and the passes squared. The distance of odd rows is tried in large steps at first.
    """
    height, width = 2 * rows + window - 1, 2 * columns + window - 1
    half = height // 2
    steps = np.arange(0, banks, 2)  # a distance matters modulo the number of banks
    channel, number, row, column = corners.T

    def passes(pitch: np.ndarray, odd: np.ndarray, image: np.ndarray, plane: np.ndarray) -> np.ndarray:
        """For the rows of the corners and the rows below, by candidate."""
        at = np.outer(image, number) + np.outer(plane, channel) + column
        upper, lower = (at + np.outer(pitch, i // 2) + np.outer(odd, i % 2) for i in (row, row + 1))
        return wavefronts(upper, banks) + wavefronts(lower, banks)

    def odds(pitch: int) -> np.ndarray:
        """Odd rows lie beside the even ones where the pitch leaves space for them, else after them."""
        beside = np.arange(width, pitch - width + 1, 2)
        return beside if len(beside) else half * pitch + steps

    def least(pitch: np.ndarray, odd: np.ndarray) -> int:
        """The index of the best candidate."""
        image = size(pitch, odd)
        return int(np.argmin(image * passes(pitch, odd, image, image) ** 2))

    def size(pitch: np.ndarray, odd: np.ndarray) -> np.ndarray:
        return half * pitch + np.where(odd >= half * pitch, odd, 0)

    tried = [(pitch, odd) for pitch in (*(width + steps), *(2 * width + steps)) for odd in odds(pitch)[::4]]
    pitch, _ = tried[least(*np.array(tried).T)]
    every = odds(pitch)
    odd = every[least(np.full_like(every, pitch), every)]
    fixed = np.full_like(steps, pitch), np.full_like(steps, odd)
    image = size(pitch, odd) + steps
    image = image[np.argmin(passes(*fixed, image, image))]
    plane = images * image + steps
    plane = plane[np.argmin(passes(*fixed, np.full_like(steps, image), plane))]
    return Placement(height, width, int(odd), int(pitch), int(plane), int(image))


def wavefronts(addresses: np.ndarray, banks: int) -> np.ndarray:
    """How many passes it takes a block's threads to read two neighbouring numbers each, the first at an even address.

    Of addresses (candidates, threads); as many threads as banks can serve read at once, the same address for nothing.
    """
    together = banks // 2
    addresses = np.pad(addresses, ((0, 0), (0, -addresses.shape[1] % together)), mode="edge")
    ordered = np.sort(addresses.reshape(-1, together))
    distinct = np.diff(ordered, prepend=-1) > 0
    banks_of_reads = np.arange(len(ordered))[:, None] * together + ordered // 2 % together
    meeting = np.bincount(banks_of_reads[distinct], minlength=ordered.size).reshape(len(addresses), -1, together)
    return meeting.max(-1).sum(-1)
