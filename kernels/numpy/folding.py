"""How an input gradient is folded, the mirror image of lowering: a product sums over (KH, O) through the view of dy's rows
that lowering takes of x's, and adding KW shifted columns folds its result (H, C KW, OW N) to images (C, H, W, N).
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from kernels.numpy.geometry import Geometry
from kernels.numpy.lowering import Together, Windows, in_pieces, side_by_side, view
from kernels.numpy.workspaces import Array, scratch
from kernels.sizes import Pair, Share


class Folding:
    """From the rows (groups, OH, O, OW n) of dy to dx, by products of each share of the windows' rows.

    The products' rows (groups, H, C KW, OW n) have gaps of zeros between them. So one strided view of a share of the windows'
    columns shifts each to the columns of dx to which it belongs, and the sum over the share is every SW-th column of dx.
    """

    def __init__(self, g: Geometry, n: int, dtype: Any, dy_rows: Array, pieces: int, together: bool) -> None:
        (h, w), kw, ow, columns = g.size, g.kernel[1], g.out[1], g.shares(1)
        before = max(0, *(-share.top for share in columns))
        pitch = max(ow + before, *(share.bottom + share.length for share in columns))
        memory = scratch("wide rows", ((before + g.groups * h * g.channels * kw * pitch) * n,), dtype)
        rows = memory[before * n :].reshape(g.groups, h, g.channels * kw, pitch * n)
        self._products = [*products(g, dy_rows, rows[..., : ow * n], pieces, together)]
        self._sums = []
        group, row, line, item = rows.strides
        for share in columns:
            last, *others = share.places
            between = (others[0] - last) * line if others else 0
            strides = (group, row, kw * line, share.dilation * n * item + between, n * item, item)
            shape = (g.groups, h, g.channels, len(share.places), share.length, n)
            shifted = view(memory, (before + share.top) * n * item + last * line, shape, strides)
            self._sums.append((shifted, slice(share.first, None, g.stride[1])))
        all_rows, self._all_columns = (sum(share.length for share in g.shares(i)) == (h, w)[i] for i in range(2))
        self._zeros = [memory[: before * n], rows[..., ow * n :]] if all_rows else [memory]

    def fold(self, matrix: Array, dx: Array) -> None:
        """Fills dx (groups, H, C, W, n) by the flipped weight matrix."""
        for zeros in self._zeros:
            zeros.fill(0)
        for columns, windows, out, copied in self._products:
            np.matmul(matrix[..., columns], windows(), out=out)
            if copied is not None:
                np.copyto(copied, out.reshape(copied.swapaxes(1, 2).shape).swapaxes(1, 2))
        if not self._all_columns:
            dx.fill(0)
        for shifted, columns in self._sums:
            np.add.reduce(shifted, axis=3, out=dx[..., columns, :])


class Product(NamedTuple):
    """Some rows of the products of a Folding: the weights in these columns of the matrix times these windows of dy."""

    columns: slice
    windows: "Windows | Together"
    out: Array
    copied: Array | None  # where a product of all rows together is copied to from `out`


def products(g: Geometry, dy_rows: Array, rows: Array, pieces: int, together: bool) -> Iterator[Product]:
    """Those that fill `rows` (groups, H, C KW, OW n), where windows reach."""
    offset = 0
    for share in g.shares(0):
        of_share = rows[:, share.first :: g.stride[0]]
        for i, count, first, last in runs(share, dy_rows.shape[1]):
            row, out = share.top + i + first * share.dilation, of_share[:, i : i + count]
            columns = slice(offset + first * g.features, offset + last * g.features)
            windows = Windows(dy_rows, row, last - first, 1, share.dilation, count, pieces)
            if together:
                groups, _, k, m = out.shape
                whole = side_by_side(scratch("product", (groups, k, count, m), rows.dtype))
                yield Product(columns, Together(windows, "windows of dy"), whole, out)
            else:
                yield Product(columns, windows, in_pieces(out, pieces), None)
        offset += len(share.places) * g.features


def runs(share: Share, rows: int) -> Iterator[tuple[int, int, int, int]]:
    """(i, count, first, last) for each run of x's rows, from the i-th on, that meets rows of dy in these places only."""
    meets = functools.partial(inside, dilation=share.dilation, k=len(share.places), rows=rows)
    for (first, last), run in itertools.groupby(range(share.length), lambda i: meets(share.top + i)):
        i, *others = run
        yield i, 1 + len(others), first, last


def inside(row: int, dilation: int, k: int, rows: int) -> Pair:
    """Which of row + 0, dilation, ... (k of them) are in range(rows): the first, and the one after the last."""
    first = min(max(-(row // dilation), 0), k)
    return first, min(max(-((row - rows) // dilation), first), k)
