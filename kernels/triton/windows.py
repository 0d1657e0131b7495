"""The sums of a convolution over its windows: what conv2d and the fused operation compute before they store it.

The output is cut into *places*, each a few neighbouring rows and columns of an image. A tile is T.block_m places by
T.block_o maps. Direct sums run in the multiply-add units, where a lane computes a place for all maps of the tile; products
run on the tensor cores. Triton has no arrays of registers: the sums are a tuple of tuples of blocks.

In all functions G is the Geometry and T the Tile of tiles.py, W the strides of weight (groups, features, channels, KH, KW).
A source that has positions is the gradient of pooled maps.
"""

import triton
import triton.language as tl


@triton.jit
def coordinates(index, SIZES: tl.constexpr):  # type: ignore[no-untyped-def]
    """The coordinates of elements number `index` of an array, the last one fastest; SIZES lacks the first dimension's."""
    found = ()
    for d in tl.static_range(len(SIZES)):
        found = (index % SIZES[len(SIZES) - 1 - d],) + found
        index = index // SIZES[len(SIZES) - 1 - d]
    return (index,) + found


@triton.jit
def places(first, n, G: tl.constexpr, T: tl.constexpr):  # type: ignore[no-untyped-def]
    """(image, first row, first column, mask) of block_m places from number `first` on; the mask says which images exist."""
    COLUMNS: tl.constexpr = G.out[1] // T.outputs[1]
    PLANE: tl.constexpr = G.out[0] // T.outputs[0] * COLUMNS
    offs_m = (first % PLANE).to(tl.int64 if T.wide else tl.int32) + tl.arange(0, T.block_m)
    image = first // PLANE + offs_m // PLANE
    return image, offs_m % PLANE // COLUMNS * T.outputs[0], offs_m % COLUMNS * T.outputs[1], image < n


@triton.jit
def load_source(  # type: ignore[no-untyped-def]
    src_ptr, positions_ptr, strides, image, channel, row, column, mask, CHANNELS: tl.constexpr, SIZE: tl.constexpr
):
    """src (N, CHANNELS, *SIZE) at a pixel; with positions what is behind the pooling: 0 but at the maximum."""
    src_ptr = src_ptr + image * strides[0] + channel * strides[1]
    if positions_ptr is None:
        return tl.load(src_ptr + row * strides[2] + column * strides[3], mask=mask, other=0)
    else:
        plane = image * CHANNELS + channel
        window = (plane * (SIZE[0] // 2) + row // 2) * (SIZE[1] // 2) + column // 2
        position = tl.load(positions_ptr + window, mask=mask, other=255)
        dy = tl.load(src_ptr + row // 2 * strides[2] + column // 2 * strides[3], mask=mask, other=0)
        return tl.where(position == row % 2 * 2 + column % 2, dy, 0)


@triton.jit
def inside(v, mask, AXIS: tl.constexpr, G: tl.constexpr, T: tl.constexpr):  # type: ignore[no-untyped-def]
    """The mask less the rows or columns v that are not the source's, or lie between its spread ones."""
    if not T.inside[AXIS]:
        mask &= (v >= 0) & (v < G.size[AXIS] * G.spread[AXIS]) & (v % G.spread[AXIS] == 0)
    return mask


@triton.jit
def zeros(I: tl.constexpr, J: tl.constexpr, T: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: E741
    """I tuples of J sums for each lane."""
    BLOCK_M: tl.constexpr = T.block_m
    rows = ()
    for _ in tl.static_range(I):
        row = ()
        for _ in tl.static_range(J):
            row += (tl.zeros((BLOCK_M,), T.dtype),)
        rows += (row,)
    return rows


@triton.jit
def direct_sums(  # type: ignore[no-untyped-def]
    src_ptr, positions_ptr, strides, weight_ptr, at, group, first_o, G: tl.constexpr, T: tl.constexpr, W: tl.constexpr
):
    """sums[output][map] in blocks (block_m), the outputs of a place column by column.

    Every value that a lane loads serves all maps and all outputs whose windows hold it, every weight the whole place.
    Neighbouring lanes have neighbouring columns, so that a warp loads neighbouring values.
    """
    image, row, column, mask_m = at
    ROWS: tl.constexpr = T.outputs[0]
    COLUMNS: tl.constexpr = T.outputs[1]
    SHIFTS: tl.constexpr = len(T.row_shifts)
    BLOCK_O: tl.constexpr = T.block_o
    BLOCK_KH: tl.constexpr = T.block_kh
    SIZE: tl.constexpr = G.size
    row = (
        0 if ROWS == G.out[0] and T.inside[0] and not T.wide else row
    )  # then what follows from it is known when compiling
    sums = zeros(ROWS * COLUMNS, BLOCK_O, T)
    for c in range(G.channels):
        channel = group.to(tl.int64) * G.channels + c
        window = weight_ptr + group * W[0] + first_o * W[1] + c * W[2]
        for kh0 in range(0, G.kernel[0], BLOCK_KH):
            for kw in range(G.kernel[1]):
                # weights lie at constant distances: the loads need no registers for their addresses
                taps = window + kh0 * W[3] + kw * W[4]
                weights = ()  # [map][kh]
                for o in tl.static_range(BLOCK_O):
                    of_map = o if G.features % BLOCK_O == 0 else tl.minimum(first_o + o, G.features - 1) - first_o
                    of_rows = ()
                    for kh in tl.static_range(BLOCK_KH):
                        of_rows += (tl.load(taps + (of_map * W[1] + kh * W[3])).to(T.dtype),)
                    weights += (of_rows,)
                values = ()  # [column of the place][row under its windows]
                for j in tl.static_range(COLUMNS):
                    u = column * G.stride[1] + (j * G.stride[1] + kw * G.dilation[1] - G.padding[1])
                    mask_j = inside(u, mask_m, 1, G, T)
                    of_column = ()
                    for r in tl.static_range(SHIFTS):
                        v = row * G.stride[0] + (kh0 * G.dilation[0] + T.row_shifts[r])
                        value = load_source(
                            src_ptr, positions_ptr, strides, image, channel, v // G.spread[0], u // G.spread[1],
                            inside(v, mask_j, 0, G, T), G.groups * G.channels, SIZE,
                        )  # fmt: skip
                        of_column += (value.to(T.dtype),)
                    values += (of_column,)
                added = ()
                for p in tl.static_range(ROWS * COLUMNS):
                    of_maps = ()
                    for o in tl.static_range(BLOCK_O):
                        s = sums[p][o]
                        for kh in tl.static_range(BLOCK_KH):
                            if T.row_of[p % ROWS][kh] >= 0:
                                s = tl.fma(values[p // ROWS][T.row_of[p % ROWS][kh]], weights[o][kh], s)
                        of_maps += (s,)
                    added += (of_maps,)
                sums = added
    return sums


@triton.jit
def gather(  # type: ignore[no-untyped-def]
    src_ptr, positions_ptr, strides, at, p: tl.constexpr, group, offs_k, mask_k, G: tl.constexpr, T: tl.constexpr
):
    """The taps offs_k of the flattened window (C, KH, KW) of a place's output p: (block_m, block_k)."""
    image, row, column, mask_m = at
    SIZE: tl.constexpr = G.size
    KERNEL: tl.constexpr = G.kernel
    c, kh, kw = coordinates(offs_k, KERNEL)
    row, column = row + p % T.outputs[0], column + p // T.outputs[0]
    v = row[:, None] * G.stride[0] + (kh * G.dilation[0] - G.padding[0])[None, :]
    u = column[:, None] * G.stride[1] + (kw * G.dilation[1] - G.padding[1])[None, :]
    mask = inside(u, inside(v, mask_m[:, None] & mask_k[None, :], 0, G, T), 1, G, T)
    return load_source(
        src_ptr, positions_ptr, strides, image[:, None], group.to(tl.int64) * G.channels + c[None, :],
        v // G.spread[0], u // G.spread[1], mask, G.groups * G.channels, SIZE,
    )  # fmt: skip


@triton.jit
def products(  # type: ignore[no-untyped-def]
    src_ptr, positions_ptr, strides, weight_ptr, at, group, first_o, G: tl.constexpr, T: tl.constexpr, W: tl.constexpr
):
    """sums[output][0] in blocks (block_m, block_o): the whole window is the inner dimension K = C KH KW of a product."""
    KERNEL: tl.constexpr = G.kernel
    K: tl.constexpr = G.channels * G.kernel[0] * G.kernel[1]
    OUTPUTS: tl.constexpr = T.outputs[0] * T.outputs[1]
    BLOCK_M: tl.constexpr = T.block_m
    BLOCK_O: tl.constexpr = T.block_o
    offs_o = first_o + tl.arange(0, T.block_o)[None, :]
    sums = ()
    for _ in tl.static_range(OUTPUTS):
        sums += ((tl.zeros((BLOCK_M, BLOCK_O), T.dtype),),)
    for first_k in range(0, K, T.block_k):
        offs_k = first_k + tl.arange(0, T.block_k)
        mask_k = offs_k < K
        c, kh, kw = coordinates(offs_k, KERNEL)
        taps = c * W[2] + kh * W[3] + kw * W[4]
        weight = weight_ptr + group * W[0] + offs_o * W[1] + taps[:, None]
        b = tl.load(weight, mask=mask_k[:, None] & (offs_o < G.features), other=0)  # (block_k, block_o)
        added = ()
        for p in tl.static_range(OUTPUTS):
            a = gather(src_ptr, positions_ptr, strides, at, p, group, offs_k, mask_k, G, T)  # (block_m, block_k)
            added += ((tl.dot(a, b, sums[p][0], input_precision=T.dot),),)
        sums = added
    return sums


@triton.jit
def tile_sums(  # type: ignore[no-untyped-def]
    src_ptr, positions_ptr, strides, weight_ptr, n, program, G: tl.constexpr, T: tl.constexpr, W: tl.constexpr
):
    """(sums[output][map], image, row, column, mask, group, first map) of a program's tile.

    On the tensor cores a single block (block_m, block_o) has all maps; then the places are (block_m, 1).
    """
    BLOCKS: tl.constexpr = T.blocks
    block, group, o_block = coordinates(program, BLOCKS)
    first_o = o_block * T.block_o
    at = places(block.to(tl.int64) * T.block_m, n, G, T)
    SUMS: tl.constexpr = direct_sums if T.dot is None else products
    sums = SUMS(src_ptr, positions_ptr, strides, weight_ptr, at, group, first_o, G, T, W)
    image, row, column, mask_m = at
    if T.dot is not None:
        image, row, column, mask_m = image[:, None], row[:, None], column[:, None], mask_m[:, None]
    return sums, image, row, column, mask_m, group, first_o


@triton.jit
def output_map(m: tl.constexpr, bias_ptr, bias_stride, group, first_o, row, mask, G: tl.constexpr, T: tl.constexpr):  # type: ignore[no-untyped-def]  # fmt: skip
    """(number in its group, mask, bias) of a tile's map m; on the tensor cores of all its maps, as (1, block_o)."""
    o = first_o + (m if T.dot is None else tl.arange(0, T.block_o)[None, :])
    mask = mask & (row < tl.where(o < G.features, G.out[0], 0))  # of a block: the interpreter takes no scalar
    bias = 0.0
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + (group * G.features + tl.minimum(o, G.features - 1)) * bias_stride).to(T.dtype)
    return o, mask, bias
