"""How a network is laid out for its kernels: the tables of network.cuh, with the shared memory of a block."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kernels.cupy.banks import wavefronts
from kernels.sizes import Pair, cdiv, output_size

THREADS = 256
BLOCKS = 3  # of a multiprocessor, at most: 80 registers a thread
IMAGES = 4  # that a block takes through the linear layers together, forward
MOST_SPLITS = 256  # of a batch
TILE = THREADS // 16, 32  # outputs and inputs of a linear layer, in network_update.cuh
CHUNK = 64 * sum(TILE)  # numbers that it stages at a time
BANKS = 32


class ConvolutionShape(NamedTuple):
    weight: tuple[int, ...]  # (O, C, KH, KW)
    bias: bool
    padding: Pair


class LinearShape(NamedTuple):
    weight: tuple[int, ...]  # (O, I)
    bias: bool
    aligned: bool  # whether the weight lies at a multiple of 16 bytes


class Plan(NamedTuple):
    """What the launchers need to know."""

    constants: dict[str, Any]  # the macros of the kernels
    shared: int  # bytes of a block's shared memory
    row: int  # numbers that an image leaves in scratch
    gradients: int  # numbers that a split leaves in scratch
    tiles: int  # of the parameters


class Planes(NamedTuple):
    """struct Planes of network.cuh, like the following ones."""

    at: int
    plane: int
    pitch: int

    def moved(self, by: int) -> "Planes":
        """The same from another place on."""
        return self._replace(at=self.at + by)


NO_PLANES = Planes(0, 0, 0)


class Convolution(NamedTuple):
    channels: int
    height: int
    width: int
    maps: int
    kh: int
    kw: int
    pad_h: int
    pad_w: int
    rows: int
    columns: int
    forward_maps: int
    input_grad_channels: int
    weight_grad_maps: int
    weight_grad_rows: int
    bias: bool
    x: Planes
    y: Planes
    full: Planes
    weight: int
    weight_pitch: int
    bias_at: int
    positions: int
    dy: int
    parameter: int
    gradient: int

    def splits(self) -> int:
        """How many of them add up to the gradient of the weight."""
        return cdiv(2 * self.rows, self.weight_grad_rows)

    def parameters(self) -> int:
        """How many numbers they are."""
        return self.maps * (self.channels * self.kh * self.kw + self.bias)


class Linear(NamedTuple):
    inputs: int
    outputs: int
    bias: bool
    x: int
    y: int
    dy: int
    dx: int
    parameter: int
    row_x: int
    row_dy: int
    vector: int


class Memory:
    """Hands out the shared memory of a block, number by number; `limit` counts bytes."""

    def __init__(self, limit: int) -> None:
        self.size, self._limit = 0, limit

    def take(self, numbers: int, what: str) -> int:
        """The place of so many numbers, a multiple of four; RuntimeError where they do not fit."""
        at = self.size
        self.size += padded(numbers)
        if 4 * self.size > self._limit:
            raise RuntimeError(
                f"the network does not fit into the shared memory of a block: with {what} it takes {4 * self.size:,} bytes,"
                f" this GPU has {self._limit:,}"
            )
        return at


def planes(rows: int, columns: int, border: Pair, across: int, groups: int) -> Planes:
    """Planes of rows x columns, borders included, from place 0 on, that `across` quads in a row read, `groups` threads each."""
    pitch = pitch_of(columns, across, groups)
    return Planes(border[0] * pitch + border[1], rows * pitch, pitch)


@functools.cache
def pitch_of(columns: int, across: int, groups: int) -> int:
    """The even distance of rows with which threads, `groups` to a quad, that read pairs meet in the fewest banks."""
    threads = np.arange(THREADS) // groups
    pitches = np.arange(even(columns), even(columns) + BANKS, 2)
    reads = np.outer(2 * pitches, threads // across) + 2 * (threads % across)
    return int(pitches[np.argmin(wavefronts(reads, BANKS) * pitches)])


def padded(length: int) -> int:
    """The next multiple of four."""
    return cdiv(length, 4) * 4


def even(number: int) -> int:
    """The next even number."""
    return number + number % 2


def pitch_of_groups(maps: int, taps: int) -> int:
    """From the weights of a group of maps to the next: threads that read vectors of several groups meet in no bank."""
    vector = math.gcd(maps, 4)
    return maps * taps + (0 if maps * taps // vector % 2 else vector)


def work_of_thread(tasks: int, cost: int) -> int:
    """What the longest of the threads has to do, of so many tasks that cost so many instructions each."""
    return cdiv(tasks, THREADS) * cost


def maps_of_thread(maps: int, quads: int, kw: int, vector: bool) -> int:
    """How many maps of a quad a thread computes, so that the last thread is through first."""

    def work(each: int) -> int:
        loads = cdiv(each, math.gcd(each, 4) if vector else 1)
        return work_of_thread(cdiv(maps, each) * quads, kw * (4 * each + loads) + cdiv(kw + 1, 2))

    return min((n for n in (1, 2, 3, 4, 6, 8) if n <= maps), key=work)


def weight_grad_work(weight: tuple[int, ...], rows: int, columns: int) -> tuple[int, int]:
    """How many maps and rows of the unpooled gradient a thread sums, so that the last thread is through first."""
    maps, channels, kh, kw = weight

    def work(choice: tuple[int, int]) -> int:
        each, of_rows = choice
        splits = cdiv(rows, of_rows)
        step = 2 * kw * each + each + 2
        summing = 2 * splits * cdiv(math.prod(weight), THREADS)
        return work_of_thread(cdiv(maps, each) * channels * kh * splits, of_rows * columns // 2 * step) + summing

    least = next(n for n in range(1, rows + 1) if n == rows or cdiv(rows, n) * math.prod(weight) <= CHUNK)
    return min(itertools.product((n for n in (1, 2, 4) if n <= maps), range(least, rows + 1)), key=work)


@functools.lru_cache(maxsize=256)
def plan(
    image: tuple[int, int, int],
    convolutions: tuple[ConvolutionShape, ...],
    linears: tuple[LinearShape, ...],
    training: bool,
    limit: int,
) -> Plan:
    """Of a network for images of a shape, on a GPU whose blocks have up to `limit` bytes of shared memory."""
    memory = Memory(limit)
    images = 1 if training else IMAGES
    flat = memory.take(images * padded(linears[0].weight[1]), "the input of linears[0]")
    table = _convolutions(memory, image, convolutions, flat, training)
    parameter, gradient, dx = 0, 0, 0
    full = _room_for_gradients(memory, table) if table and training else 0
    for k, layer in enumerate(table):
        table[k] = layer._replace(parameter=parameter, gradient=gradient)
        parameter, gradient = parameter + 1 + layer.bias, gradient + layer.parameters()
        dx = layer.dy
    rows = _linears(memory, linears, flat, dx, parameter, images)
    last = rows[-1]
    constants: dict[str, Any] = {
        "CONVOLUTION_TABLE": ",".join(map(initialiser, table)) or "{}",
        "CONVOLUTION_COUNT": len(table),
        "LINEAR_TABLE": ",".join(map(initialiser, rows)),
        "LINEAR_COUNT": len(rows),
        "PARAMETERS": last.parameter + 1 + last.bias,
        "BLOCKS": BLOCKS,
        "TRAINING": int(training),
        "IMAGES": images,
    }
    row = last.row_dy + last.outputs
    if training:
        sums = [(s.splits() * s.maps * s.channels * s.kh * s.kw, f"convolutions[{k}]") for k, s in enumerate(table)]
        sums += [(max(s.inputs, s.vector * THREADS), f"linears[{k}]") for k, s in enumerate(rows)]
        numbers, name = max(sums)
        scrap = memory.take(max(numbers, CHUNK), f"sums of the gradients of {name}")
        constants |= {"SCRAP": scrap, "FULL": full, "ROW": row, "GRADIENTS": gradient, "MOST_SPLITS": MOST_SPLITS}
    tiles = sum(cdiv(s.outputs, TILE[0]) * cdiv(s.inputs + s.bias, TILE[1]) for s in rows) + cdiv(gradient, 32) + 1
    return Plan(constants, 4 * memory.size, row, gradient, tiles)


def _convolutions(
    memory: Memory, image: tuple[int, int, int], shapes: Sequence[ConvolutionShape], flat: int, training: bool
) -> list[Convolution]:
    """The table of convolutions, but for the places of their parameters; y of the last is contiguous, at `flat`."""
    table: list[Convolution] = []
    channels, h, w = image
    for k, s in enumerate(shapes):
        name = f"convolutions[{k}]"
        (maps, _, kh, kw), (ph, pw) = s.weight, s.padding
        oh, ow = output_size((h, w), (kh, kw), (1, 1), (ph, pw), (1, 1))
        rows, columns = oh // 2, ow // 2
        quads_h, quads_w = cdiv(h, 2), cdiv(w, 2)
        input_grad_channels = maps_of_thread(channels, quads_h * quads_w, kw, vector=False)
        forward_maps = maps_of_thread(maps, rows * columns, kw, vector=True)
        groups = cdiv(maps, forward_maps)
        width = max(w + 2 * pw, 2 * columns - 2 + even(kw + 1))
        x = planes(h + 2 * ph, width, (ph, pw), columns, groups)
        x = x.moved(memory.take(channels * x.plane, f"the input of {name}"))
        weight_pitch = pitch_of_groups(forward_maps, channels * kh * kw)
        layer = Convolution(
            channels, h, w, maps, kh, kw, ph, pw, rows, columns,
            forward_maps=forward_maps,
            input_grad_channels=input_grad_channels,
            weight_grad_maps=1, weight_grad_rows=1,
            bias=s.bias, x=x, y=NO_PLANES, full=NO_PLANES,
            weight=memory.take(groups * weight_pitch, f"the weight of {name}"), weight_pitch=weight_pitch,
            bias_at=memory.take(maps, f"the bias of {name}"),
            positions=0, dy=0, parameter=0, gradient=0,
        )  # fmt: skip
        if training:
            weight_grad_maps, weight_grad_rows = weight_grad_work(s.weight, 2 * rows, 2 * columns)
            border, height, width = (0, 0), 2 * rows, 2 * columns
            if k:  # dx: windows begin `up` rows above, `left` columns before it; of rows outside one is read at most
                up, left = kh - 1 - ph, kw - 1 - pw
                border = (int(up > 0), left if left >= 0 else left % 2)
                height += border[0] + 1
                width = border[1] + max(width, 2 * quads_w - 2 - left + even(kw + 1))
            layer = layer._replace(
                weight_grad_maps=weight_grad_maps,
                weight_grad_rows=weight_grad_rows,
                full=planes(height, width, border, quads_w, cdiv(channels, input_grad_channels)),
                positions=memory.take(cdiv(maps * rows * columns, 4), f"the positions of maxima of {name}"),
                dy=memory.take(maps * rows * columns, f"the gradient of the output of {name}"),
            )
        if table:
            table[-1] = table[-1]._replace(y=x)
        table.append(layer)
        channels, h, w = maps, rows, columns
    if table:
        table[-1] = table[-1]._replace(y=Planes(flat, h * w, w))
    return table


def _room_for_gradients(memory: Memory, table: list[Convolution]) -> int:
    """Gives all convolutions one place for the gradient before pooling, which they need one after another."""
    sizes = [layer.maps * layer.full.plane for layer in table]
    largest = sizes.index(max(sizes))
    at = memory.take(sizes[largest], f"the gradient before pooling of convolutions[{largest}]")
    table[:] = [layer._replace(full=layer.full.moved(at)) for layer in table]
    return at


def _linears(
    memory: Memory, shapes: Sequence[LinearShape], flat: int, dx: int, parameter: int, images: int
) -> list[Linear]:
    """The table of linear layers: x of the first is at `flat`, its gradient goes to `dx`."""
    table: list[Linear] = []
    row_x, row_dy = 0, sum(s.weight[1] for s in shapes)
    for k, s in enumerate(shapes):
        outputs, inputs = s.weight
        vector = 4 if s.aligned and inputs % 4 == 0 else 1
        y = memory.take(images * padded(outputs), f"the output of linears[{k}]")
        dy = memory.take(outputs, f"the gradient of the output of linears[{k}]")
        table.append(Linear(inputs, outputs, s.bias, flat, y, dy, dx, parameter, row_x, row_dy, vector))
        flat, dx, parameter, row_x, row_dy = y, dy, parameter + 1 + s.bias, row_x + inputs, row_dy + outputs
    return table


def initialiser(value: int | tuple[object, ...]) -> str:
    """A structure as C++ writes it."""
    if isinstance(value, tuple):
        return "{" + ",".join(map(initialiser, value)) + "}"  # type: ignore[arg-type]
    return str(int(value))
