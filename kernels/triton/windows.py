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
    if positions_ptr is None:
        pixel = image * strides[0] + row * strides[2] + column * strides[3]
        return tl.load(src_ptr + pixel + channel * strides[1], mask=mask, other=0)
    else:
        PLANE: tl.constexpr = SIZE[0] // 2 * (SIZE[1] // 2)
        window = image * (CHANNELS * PLANE) + row // 2 * (SIZE[1] // 2) + column // 2
        position = tl.load(positions_ptr + window + channel * PLANE, mask=mask, other=255)
        pixel = image * strides[0] + row // 2 * strides[2] + column // 2 * strides[3]
        dy = tl.load(src_ptr + pixel + channel * strides[1], mask=mask, other=0)
        return tl.where(position == row % 2 * 2 + column % 2, dy, 0)


@triton.jit
def numbers(SIZE: tl.constexpr, VECTORS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Those of the maps in a block: from 0 to SIZE - 1 where they are loaded in vectors, else the even ones before the odd ones.

    The order matters to no product. Where the compiler sees that neighbours in a block are neighbours in memory, neighbouring
    lanes take them; without vectors a lane then had a few maps of many pixels, whose pointers and masks fit no registers.
    """
    if VECTORS:
        return tl.arange(0, SIZE)
    else:
        return tl.arange(0, SIZE) % (SIZE // 2) * 2 + tl.arange(0, SIZE) // (SIZE // 2)


@triton.jit
def inside(v, mask, AXIS: tl.constexpr, G: tl.constexpr, T: tl.constexpr):  # type: ignore[no-untyped-def]
    """The mask less the rows or columns v that are not the source's."""
    if not T.inside[AXIS]:
        mask &= (v >= 0) & (v < G.size[AXIS])
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
                            src_ptr, positions_ptr, strides, image, channel, v, u, inside(v, mask_j, 0, G, T),
                            G.groups * G.channels, SIZE,
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
def outputs_of(first, n, G: tl.constexpr, T: tl.constexpr):  # type: ignore[no-untyped-def]
    """(image, row, column, mask) of all outputs of block_m places from number `first` on: blocks (1, outputs)."""
    ROWS: tl.constexpr = T.outputs[0]
    COLUMNS: tl.constexpr = T.outputs[1]
    OUTPUTS: tl.constexpr = ROWS * COLUMNS
    PLACES: tl.constexpr = G.out[1] // COLUMNS
    PLANE: tl.constexpr = G.out[0] // ROWS * PLACES
    offs_m = tl.arange(0, T.block_m * OUTPUTS)[None, :]
    place = (first % PLANE).to(tl.int64 if T.wide else tl.int32) + offs_m // OUTPUTS
    image = first // PLANE + place // PLANE
    row = place % PLANE // PLACES * ROWS + offs_m % ROWS
    column = place % PLACES * COLUMNS + offs_m % OUTPUTS // ROWS
    return image, row, column, image < n


@triton.jit
def pixels_of(outputs, src_ptr, strides, group, G: tl.constexpr):  # type: ignore[no-untyped-def]
    """What the loads for `outputs` share: (pointers, image, row, column, mask) at the first tap."""
    image, row, column, mask = outputs
    row, column = row * G.stride[0] - G.padding[0], column * G.stride[1] - G.padding[1]
    pointers = src_ptr + image * strides[0] + group.to(tl.int64) * G.channels * strides[1]
    pointers += row * strides[2] + column * strides[3]
    return pointers, image, row, column, mask


@triton.jit
def gather(  # type: ignore[no-untyped-def]
    src_ptr, positions_ptr, strides, at, group, c, kh, kw, mask_k, G: tl.constexpr, T: tl.constexpr
):
    """The source (block_k, pixels) at channels c (block_k, 1) and tap (kh, kw), which is one, or one for each channel.

    One tap for all is cheap: from the pixel's pointer on it adds a number that is the same everywhere.
    """
    pointers, image, row, column, mask = at
    SIZE: tl.constexpr = G.size
    down, right = kh * G.dilation[0], kw * G.dilation[1]
    if not T.inside[0]:
        mask &= (row + down >= 0) & (row + down < G.size[0])
    if not T.inside[1]:
        mask &= (column + right >= 0) & (column + right < G.size[1])
    if mask_k is not None:
        mask = mask & mask_k
    if positions_ptr is None:
        return tl.load(pointers + (down * strides[2] + right * strides[3]) + c * strides[1], mask=mask, other=0)
    else:
        channel = group.to(tl.int64) * G.channels + c
        return load_source(
            src_ptr, positions_ptr, strides, image, channel, row + down, column + right, mask, G.groups * G.channels, SIZE
        )  # fmt: skip


@triton.jit
def products(  # type: ignore[no-untyped-def]
    src_ptr, positions_ptr, strides, weight_ptr, n, first, group, first_o,
    G: tl.constexpr, T: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """sums (outputs of block_m places, block_o) as products of matrices, whose inner dimension is a chunk of the window.

    A chunk is block_k channels at one tap; of few channels block_k taps of the flattened window (C, KH, KW), all of which
    are known when compiling.
    """
    TAPS: tl.constexpr = G.kernel[0] * G.kernel[1]
    BLOCK_K: tl.constexpr = T.block_k
    BLOCK_O: tl.constexpr = T.block_o
    KERNEL: tl.constexpr = G.kernel
    MASKED: tl.constexpr = G.channels * (TAPS if T.flat else 1) % BLOCK_K != 0
    at = pixels_of(outputs_of(first, n, G, T), src_ptr, strides, group, G)
    offs_k = numbers(BLOCK_K, T.vectors)[:, None].to(tl.int64)
    offs_o = first_o + tl.arange(0, T.block_o)[None, :]
    weight_ptr += group * W[0] + offs_o * W[1]
    sums = tl.zeros((T.block_m * T.outputs[0] * T.outputs[1], BLOCK_O), T.dtype)
    if T.flat:
        for first_k in tl.static_range(0, G.channels * TAPS, BLOCK_K):
            c, kh, kw = coordinates(first_k + offs_k, KERNEL)
            sums = add_product(
                src_ptr, positions_ptr, strides, weight_ptr, at, group, c, kh, kw, offs_o, sums, MASKED, G, T, W
            )  # fmt: skip
    else:
        for chunk in tl.range(0, (G.channels + BLOCK_K - 1) // BLOCK_K * TAPS, num_stages=T.stages):
            tap = tl.cast(chunk % TAPS, tl.int64 if T.wide else tl.int32)
            c = chunk // TAPS * BLOCK_K + offs_k
            kh, kw = tap // G.kernel[1], tap % G.kernel[1]
            sums = add_product(
                src_ptr, positions_ptr, strides, weight_ptr, at, group, c, kh, kw, offs_o, sums, MASKED, G, T, W
            )  # fmt: skip
    return sums


@triton.jit
def add_product(  # type: ignore[no-untyped-def]
    src_ptr, positions_ptr, strides, weight_ptr, at, group, c, kh, kw, offs_o, sums,
    MASKED: tl.constexpr, G: tl.constexpr, T: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """sums and what a chunk adds to them: channels c (block_k, 1) at tap (kh, kw)."""
    mask_k = c < G.channels if MASKED else None
    mask_o = None if G.features % T.block_o == 0 else offs_o < G.features
    mask = mask_o if mask_k is None else mask_k if mask_o is None else mask_k & mask_o
    values = gather(src_ptr, positions_ptr, strides, at, group, c, kh, kw, mask_k, G, T)
    weights = tl.load(weight_ptr + c * W[2] + (kh * W[3] + kw * W[4]), mask=mask, other=None if mask is None else 0)
    return tl.dot(tl.trans(values), weights, sums, input_precision=T.dot)


@triton.jit
def by_output(sums, T: tl.constexpr):  # type: ignore[no-untyped-def]
    """sums[output][0] in blocks (block_m, block_o), of those of all outputs in one block."""
    BLOCK_M: tl.constexpr = T.block_m
    BLOCK_O: tl.constexpr = T.block_o
    if T.outputs[0] * T.outputs[1] == 1:
        return ((sums,),)
    else:  # 2 x 2
        left, right = tl.split(tl.permute(tl.reshape(sums, (BLOCK_M, 2, 2, BLOCK_O)), (0, 3, 2, 1)))
        upper_left, lower_left = tl.split(left)
        upper_right, lower_right = tl.split(right)
        return ((upper_left,), (lower_left,), (upper_right,), (lower_right,))


@triton.jit
def tile_sums(  # type: ignore[no-untyped-def]
    src_ptr, positions_ptr, strides, weight_ptr, n, program, G: tl.constexpr, T: tl.constexpr, W: tl.constexpr
):
    """(sums[output][map], image, row, column, mask, group, first map) of a program's tile.

    On the tensor cores a single block (block_m, block_o) has all maps; then the places are (block_m, 1).
    """
    BLOCKS: tl.constexpr = T.blocks
    block, group, o_block = coordinates(program, BLOCKS)
    first, first_o = block.to(tl.int64) * T.block_m, o_block * T.block_o
    at = places(first, n, G, T)
    image, row, column, mask_m = at
    if T.dot is None:
        sums = direct_sums(src_ptr, positions_ptr, strides, weight_ptr, at, group, first_o, G, T, W)
    else:
        STRIDES: tl.constexpr = T.strides
        sums = products(
            src_ptr, positions_ptr, strides if STRIDES is None else STRIDES, weight_ptr, n, first, group, first_o, G, T, W
        )  # fmt: skip
        sums = by_output(sums, T)
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
