"""How a convolution is cut so that its work arrays stay in the cache: its groups into parts, and the rows of images into
bands. Each is a convolution of its own, of some maps or rows.

Bands overlap in x: windows of neighbouring rows of y share rows of x, which are lowered for both.
"""

import dataclasses
import functools
from typing import NamedTuple

from kernels.numpy.geometry import Geometry, geometry
from kernels.numpy.threads import even_slices
from kernels.sizes import cdiv, even

BYTES = 3 << 20  # of the work arrays of a band or part


class Part(NamedTuple):
    """Some groups of a convolution, and which maps of its input and of its output they are."""

    g: Geometry
    inputs: slice
    outputs: slice


class Band(NamedTuple):
    """Some rows of a convolution: which rows of x and of y they are."""

    g: Geometry
    x: slice
    y: slice


@functools.lru_cache(maxsize=256)
def parts(g: Geometry, bytes_per_number: int) -> tuple[Part, ...]:
    """The parts of a convolution, where a tile takes so many bytes for each number of an image."""
    most = max(1, g.groups * BYTES // max(1, g.values_per_image * bytes_per_number))
    if most >= g.groups:
        return (Part(g, slice(None), slice(None)),)
    return tuple(
        Part(
            geometry(g.size, (count * g.features, g.channels, *g.kernel), g.stride, g.padding, g.dilation, count),
            slice(at.start * g.channels, at.stop * g.channels),
            slice(at.start * g.features, at.stop * g.features),
        )
        for at in even_slices(g.groups, most)
        for count in (at.stop - at.start,)
    )


@functools.lru_cache(maxsize=256)
def bands_of_y(g: Geometry, bytes_per_number: int) -> tuple[Band, ...]:
    """Bands of rows of y with the rows of x under their windows."""
    height, top, span, stride = g.size[0], g.padding[0], g.span, g.stride[0]
    bands = []
    for start, stop in cuts(g.out[0], rows_of_band(g, bytes_per_number)):
        above = start * stride - top  # the row of x under the first window, before the image if negative
        first = max(0, above)
        last = max(first, min(height, (stop - 1) * stride - top + span))
        bands.append(Band(band(g, last - first, max(0, -above), stop - start), slice(first, last), slice(start, stop)))
    return tuple(bands)


@functools.lru_cache(maxsize=256)
def bands_of_x(g: Geometry, bytes_per_number: int) -> tuple[Band, ...]:
    """Bands of rows of x with the rows of y whose windows reach them, and at least one."""
    top, span, stride = g.padding[0], g.span, g.stride[0]
    bands = []
    for start, stop in cuts(g.size[0], g.stride[0] * rows_of_band(g, bytes_per_number)):
        first = min(max(0, cdiv(start + top - span + 1, stride)), (start + top) // stride, g.out[0] - 1)
        last = min((stop - 1 + top) // stride + 1, g.out[0])
        above = start + top - first * stride
        bands.append(Band(band(g, stop - start, above, last - first), slice(start, stop), slice(first, last)))
    return tuple(bands)


def whole(g: Geometry) -> tuple[Band, ...]:
    """One band of all rows."""
    return (Band(g, slice(None), slice(None)),)


def cuts(rows: int, most: int) -> list[tuple[int, int]]:
    """The first row of each band, and the one after its last."""
    size = even(rows, most)
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def rows_of_band(g: Geometry, bytes_per_number: int) -> int:
    """How many rows of y a band has: at least as many as it has to take again of the band before."""
    again = cdiv(g.span - g.stride[0], g.stride[0])
    row, more = g.values(1), g.values(2) - g.values(1)
    return max(1, again, 1 + (BYTES // bytes_per_number - row) // max(1, more))


@functools.lru_cache(maxsize=1024)
def band(g: Geometry, rows: int, above: int, rows_of_y: int) -> Geometry:
    """The Geometry of a band of so many rows of x, below so many of zeros."""
    return dataclasses.replace(g, size=(rows, g.size[1]), padding=(above, g.padding[1]), out=(rows_of_y, g.out[1]))
