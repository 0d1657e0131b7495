"""CuPy itself, as far as it goes without a GPU: sources, options, limits of launches, packing of arguments, devices,
what is said where things are missing."""

import itertools
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

cupy = pytest.importorskip("cupy")

import devices  # noqa: E402
from cupy.cuda import compiler, function  # noqa: E402
from cupy_backends.cuda.libs import nvrtc  # noqa: E402

import kernels  # noqa: E402
import kernels.functional as F  # noqa: E402
from benchmarks.compile.built import TENSOR_CORES  # noqa: E402
from benchmarks.exercise import training_step  # noqa: E402
from kernels.cupy import conv2d, conv2d_product, conv2d_routes, launch, linear, variants  # noqa: E402
from kernels.cupy.banks import placement, wavefronts  # noqa: E402
from kernels.cupy.conv2d_routes import Depthwise, divisor, route  # noqa: E402
from kernels.cupy.conv2d_tiles import forward_plan, input_grad_plan, weight_grad_plan  # noqa: E402
from kernels.cupy.elementwise import layout  # noqa: E402
from kernels.cupy.linear import ACTIVATIONS, WARP_SPLITS, WIDTHS, tiles, width  # noqa: E402
from kernels.cupy.sgd import OPTIONS, PARAMETERS  # noqa: E402
from kernels.cupy.softmax import lanes_of  # noqa: E402
from kernels.sizes import cdiv  # noqa: E402

ARCHITECTURES = (75, 90, 120)
CUPYS_OWN = ("-ftz=true", "--device-as-default-execution-space")


def compiled(source: str, options: tuple[str, ...], architecture: int = 90) -> bytes:
    """The cubin, by CuPy's own way to NVRTC and with the options it adds."""
    program = compiler._NVRTCProgram(source, "kernel.cu", method="cubin")
    cubin, _ = program.compile((*options, f"-arch=sm_{architecture}", *CUPYS_OWN))
    return cubin


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", sorted(variants.VARIANTS))
def test_sources_compile_with_cupy_s_options(file: str, architecture: int) -> None:
    dtypes, constants = variants.VARIANTS[file]
    for dtype in {dtypes[0], dtypes[-1]}:
        assert compiled(launch.source(file), launch.options(dtype, **constants[-1]), architecture).startswith(
            b"\x7fELF"
        )


@pytest.mark.parametrize("file", sorted(variants.VARIANTS))
def test_a_kernel_is_compiled_without_the_others_of_its_file(file: str) -> None:
    text = launch.source(file)
    dtypes, constants = variants.VARIANTS[file]
    names = [match[1] for match in launch.KERNEL.finditer(text)]
    assert names and len(names) == text.count("__global__")
    for name in names:
        alone = launch.alone(name, text)
        assert alone.count("\n") == text.count("\n")  # so that messages of the compiler name the right line
        program = nvrtc.createProgram(alone, f"{file}.cu", (), ())
        nvrtc.compileProgram(program, launch.options(dtypes[0], **constants[0]))
        assert re.findall(r"\.entry (\w+)\(", nvrtc.getPTX(program).decode()) == [name]
        nvrtc.destroyProgram(program)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("batch", (64, 1024))
@pytest.mark.parametrize(
    ("plan", "file"),
    (
        (forward_plan, "conv2d"),
        (input_grad_plan, "conv2d_relu_max_pool2d"),
        (weight_grad_plan, "conv2d_weight_grad"),
        (weight_grad_plan, "conv2d_relu_max_pool2d_weight_grad"),
    ),
    ids=lambda value: getattr(value, "__name__", value),
)
def test_convolutions_keep_their_sums_in_registers(plan: Any, file: str, batch: int, architecture: int) -> None:
    constants = plan((batch, 6, 14, 14), (16, 6, 5, 5), ((1, 1), (0, 0), (1, 1)), 1, 4).constants
    no_spills(file, torch.float32, architecture, constants | {"WITH_RELU": 1})


def no_spills(file: str, dtype: torch.dtype, architecture: int, constants: dict[str, Any]) -> str:
    """The PTX, of whose registers none goes to memory."""
    options = (*launch.options(dtype, **constants), f"-arch=sm_{architecture}", "--ptxas-options=-v")
    program = nvrtc.createProgram(launch.source(file), f"{file}.cu", (), ())
    nvrtc.compileProgram(program, options)
    said, ptx = nvrtc.getProgramLog(program), nvrtc.getPTX(program).decode()
    nvrtc.destroyProgram(program)
    spilled = re.findall(r"(\d+) bytes spill stores", said)
    assert len(spilled) == launch.source(file).count('extern "C" __global__') and set(spilled) == {"0"}, said
    return ptx


@pytest.mark.parametrize("architecture", (90, 100, 120))
@pytest.mark.parametrize("probabilities", (0, 1))
def test_cross_entropy_keeps_its_registers(probabilities: int, architecture: int) -> None:
    """However many threads share a row: left alone, ptxas spilled for the sake of one block more on a multiprocessor."""
    for lanes, dtype in itertools.product((1, 32, 256), (torch.float16, torch.float64)):
        no_spills("cross_entropy", dtype, architecture, {"LANES": lanes, "PROBABILITIES": probabilities})


@pytest.mark.parametrize("architecture", (75, 90))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("tile", variants.TILES)
@pytest.mark.parametrize("file", ("conv2d_product", "conv2d_product_weight_grad"))
def test_products_keep_their_sums_in_registers(file: str, tile: int, dtype: torch.dtype, architecture: int) -> None:
    """With what takes the most registers: offsets of 64 bits, padding, and nothing read or stored together."""
    constants = {"TILE": tile, "WARP_SPLITS": WARP_SPLITS[tile][-1], "WIDTH_A": 1, "WIDTH_B": 1, "WIDTH_C": 1}
    no_spills(file, dtype, architecture, constants | {"INDEX": "int64", "PADDED": 1, "WITH_RELU": 1})


@pytest.mark.parametrize(
    ("dtype", "architecture"), ((torch.float16, 75), (torch.bfloat16, 80), (torch.float16, 90)), ids=str
)
@pytest.mark.parametrize(("tile", "width"), ((16, 1), (32, 1), (64, 1), (64, 4)))
def test_products_in_half_precision_run_on_tensor_cores(
    tile: int, width: int, dtype: torch.dtype, architecture: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From sm_80 on, as launchers believe, and with their sums in registers."""
    monkeypatch.setattr(launch, "limits", lambda like: launch.Limits(architecture, 1, 48 << 10, 48 << 10))
    constants = {"TILE": tile, "WARP_SPLITS": WARP_SPLITS[tile][-1], "WIDTH_A": width, "WIDTH_B": width}
    of_convolutions = constants | {"WIDTH_C": width, "INDEX": "int64", "PADDED": int(width == 1), "WITH_RELU": 1}
    for file, each in (
        ("linear", constants | {"ACTIVATION": ACTIVATIONS["sigmoid"]}),
        ("conv2d_product", of_convolutions),
        ("conv2d_product_weight_grad", of_convolutions),
    ):
        ptx = no_spills(file, dtype, architecture, each)
        on_tensor_cores = launch.has_tensor_cores(torch.empty(0, dtype=dtype))
        assert bool(TENSOR_CORES.search(ptx)) == on_tensor_cores == (architecture >= 80), file


@pytest.mark.parametrize(
    ("window", "stride", "dtype"),
    (
        (3, 1, torch.float32), (3, 2, torch.float32), (5, 2, torch.float32), (7, 1, torch.float32),
        (3, 1, torch.float64), (5, 2, torch.float64),
    ),
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", ("forward", "input_grad"))
def test_depthwise_convolutions_keep_their_sums_in_registers(
    kind: str, window: int, stride: int, dtype: torch.dtype
) -> None:
    windows = (stride, stride), (window // 2, window // 2), (1, 1)
    plan = route(kind, (64, 64, 28, 28), (64, 1, window, window), windows, 64, dtype.itemsize, tensor_cores=False)
    assert isinstance(plan, Depthwise)
    file = "conv2d_depthwise" if kind == "forward" else "conv2d_depthwise_input_grad"
    no_spills(file, dtype, 90, plan.constants | {"DENSE": 1, "WITH_RELU": 1})


@pytest.mark.parametrize(
    ("dtype", "architecture", "file"),
    (
        (torch.float16, 80, "conv2d_product"),
        (torch.bfloat16, 90, "conv2d_product_weight_grad"),
        (torch.float16, 100, "conv2d_product_weight_grad"),
        (torch.bfloat16, 120, "conv2d_product"),
    ),
    ids=str,
)
def test_large_tiles_keep_their_sums_in_registers(dtype: torch.dtype, architecture: int, file: str) -> None:
    """Of which a multiprocessor has two blocks where operands are copied. The compiler refuses more than 48 KB of shared memory."""
    constants = {"TILE": 128, "WARP_SPLITS": 1}
    copied = constants | {"WIDTH_A": linear.COPIED, "WIDTH_B": linear.COPIED, "ACTIVATION": ACTIVATIONS["sigmoid"]}
    assert "cp.async.cg" in no_spills("linear", dtype, architecture, copied)
    gathered = constants | {"WIDTH_A": 1, "WIDTH_B": 1, "WIDTH_C": 1, "INDEX": "int64", "PADDED": 1, "WITH_RELU": 1}
    assert TENSOR_CORES.search(no_spills(file, dtype, architecture, gathered))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize(("kernel", "stride", "groups"), ((1, 1, 1), (3, 1, 2), (3, 2, 1)))
def test_convolutions_in_large_tiles(
    kernel: int, stride: int, groups: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that are too small for them: maps, channels and pixels fill none. The sums are exact in float32."""

    def tiles(m: int, n: int, products: int, *_: Any) -> conv2d_routes.Tiles:
        return conv2d_routes.Tiles(128, products * cdiv(m, 128) * cdiv(n, 128), 1.0, beats_window=True)

    monkeypatch.setattr(conv2d_routes, "tiles_of_product", tiles)
    monkeypatch.setattr(conv2d, "route", route.__wrapped__)  # whose cache shall not see it
    with devices.running("cupy"):
        if not launch.has_tensor_cores(torch.empty(0, dtype=dtype)):
            pytest.skip("tiles of 128 are for tensor cores that take float16 and bfloat16: from sm_80 on")
    exact_convolution((2, 20 * groups, 9, 8), (132 * groups, 20, kernel, kernel), dtype, stride=stride, groups=groups)


def test_convolutions_in_large_tiles_cost_what_routes_believe() -> None:
    """Instructions for a sum, those of padding counted in, of forward, input gradient and weight gradient: 0.65 on the whole."""
    pytest.importorskip("pandas")
    from benchmarks.counts.products import Convolution, count

    layer = Convolution(1, 128, 14, 128, 3, {"padding": 1})
    of_tiles = [[row for row in count(layer, edge) if row["multiply_adds"]] for edge in (64, 128)]
    costs = [[row["warp_instructions"] / row["multiply_adds"] for row in rows] for rows in of_tiles]
    ratios = [large / small for small, large in zip(*costs, strict=True)]
    assert len(ratios) == 3 and all(0.5 < ratio < 0.8 for ratio in ratios)


def exact_convolution(shape: tuple[int, ...], weight: tuple[int, ...], dtype: torch.dtype, **options: int) -> None:
    """y and all gradients are those of torch in float64, of numbers whose sums are exact in float32."""
    with devices.running("cupy"), kernels.use_backend("cupy"):
        inputs = [torch.randint(-1, 2, size).to(dtype).requires_grad_() for size in (shape, weight, weight[:1])]
        y = F.conv2d(*inputs, **options)
        dy = torch.randint(-1, 2, y.shape).to(dtype)
        ours = [y, *torch.autograd.grad(y, inputs, dy)]
        doubles = [each.detach().double().requires_grad_() for each in inputs]
        y = torch.nn.functional.conv2d(*doubles, **options)
        theirs = [y, *torch.autograd.grad(y, doubles, dy.double())]
    for our, their in zip(ours, theirs, strict=True):
        assert torch.equal(our, their.to(dtype))


def test_products_whose_offsets_take_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they do for images that lie far apart in memory, of which there is too little here."""
    monkeypatch.setattr(conv2d_product, "span", lambda tensor: 1 << 40)
    shapes = (2, 5, 7, 6), (13, 5, 3, 2), (13,)
    with devices.running("cupy"), kernels.use_backend("cupy"):
        inputs = [torch.randint(-3, 4, shape).float().requires_grad_() for shape in shapes]
        results = []
        for convolve in (F.conv2d, torch.nn.functional.conv2d):
            y = convolve(*inputs, stride=2, padding=1)
            results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize(("kernel", "padding", "groups"), ((3, 1, 1), (5, 0, 2), (7, 3, 1)))
def test_windows_with_code_of_their_own_in_half_precision(
    kernel: int, padding: int, groups: int, dtype: torch.dtype
) -> None:
    """Enough of all for products; odd rows, and maps and channels that fill no tile. The sums are exact in float32."""
    shapes = (2, 19 * groups, 20, 27 - padding), (21 * groups, 19, kernel, kernel)
    exact_convolution(*shapes, dtype, padding=padding, groups=groups)


def test_limits_are_those_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(
        major=8, minor=6, multi_processor_count=84,
        shared_memory_per_block_optin=99 << 10, shared_memory_per_multiprocessor=100 << 10,
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda of: device)
    assert launch.limits(torch.empty(0)) == launch.Limits(
        architecture=86, multiprocessors=84, shared=99 << 10, shared_of_multiprocessor=100 << 10
    )


def test_divisors_divide() -> None:
    """As struct Divisor of divisor.cuh does, with 32 bits of unsigned numbers."""
    for number in (*range(1, 70), 196, 3136, 12544, (1 << 20) + 1, (1 << 30) - 1, 1 << 30):
        by, multiplier, shift = divisor(number)
        ends = [k for n in (1, 2, 1000, (1 << 31) // number) for k in (n * number - 1, n * number) if 0 <= k < 1 << 31]
        for k in (0, *ends, (1 << 31) - 1):
            assert by == number and 2 * k * (multiplier + (1 << 32)) >> 32 >> shift == k // number, (k, number)


@pytest.mark.parametrize("banks", (16, 32))
@pytest.mark.parametrize("threads", (1, 16, 40, 256))
def test_wavefronts(threads: int, banks: int) -> None:
    """As many threads as there are pairs of banks read at once; those that read the same address do not wait for each other."""
    candidates = 2 * np.random.default_rng(0).integers(0, 200, (50, threads))

    def slowly(addresses: list[int]) -> int:
        requests = [addresses[k : k + banks // 2] for k in range(0, threads, banks // 2)]
        return sum(max(Counter(a % banks for a in set(request)).values()) for request in requests)

    assert wavefronts(candidates, banks).tolist() == [slowly(each) for each in candidates.tolist()]


@pytest.mark.parametrize("window", (3, 5, 7))
@pytest.mark.parametrize(("rows", "columns", "images"), ((14, 14, 1), (5, 5, 4), (7, 16, 2), (8, 31, 1), (3, 3, 20)))
def test_placement_of_pixels(rows: int, columns: int, images: int, window: int) -> None:
    """No two in one place, and worth its memory: no product of memory and passes squared is above that of dense rows."""
    row, image, column = np.indices((rows, images, columns)).reshape(3, -1)
    corners = np.stack((0 * row, image, 2 * row, 2 * column), axis=1)
    at = placement(rows, columns, images, window, 32, corners)
    pixels = {
        n * at.image + i % 2 * at.odd + i // 2 * at.pitch + j
        for n in range(images) for i in range(at.height) for j in range(at.width)
    }  # fmt: skip
    assert len(pixels) == images * at.height * at.width
    assert max(pixels) < at.plane

    def passes(image_size: int, pitch: int) -> int:
        return int(wavefronts((image * image_size + row * pitch + 2 * column)[None], 32)[0])

    dense = at.height * at.width
    assert at.image * passes(at.image, at.pitch) ** 2 <= dense * passes(dense, 2 * at.width) ** 2


@pytest.mark.parametrize(("tile", "splits"), sorted({(tile, n) for tile in variants.TILES for n in WARP_SPLITS[tile]}))
def test_tiles_of_linear_layers_have_the_shared_memory_of_any_gpu(tile: int, splits: int) -> None:
    """The compiler refuses a kernel that declares more than 48 KB; float64 takes the most."""
    constants = {"TILE": tile, "WARP_SPLITS": splits, "WIDTH_A": 1, "WIDTH_B": 1, "ACTIVATION": 0}
    assert compiled(launch.source("linear"), launch.options(torch.float64, **constants), 75).startswith(b"\x7fELF")


def test_every_source_has_variants() -> None:
    sources = {path.stem for path in launch.FOLDER.glob("*.cu")}
    assert set(variants.VARIANTS) <= sources
    assert all(launch.options(dtype, **constants) for _, dtype, constants in variants.variants())


def test_launchers_ask_for_listed_variants() -> None:
    lanes = {constants["LANES"] for constants in variants.VARIANTS["softmax"][1]}
    assert {lanes_of(length, rows, n) for length in range(1, 2000) for rows in (1, 1 << 20) for n in (0, 1)} == lanes
    shapes = {(c["TILE"], c["WARP_SPLITS"]) for c in variants.VARIANTS["linear"][1]}
    assert {c["WIDTH_A"] for c in variants.VARIANTS["linear"][1]} == set(WIDTHS)
    sizes = (1, 32, 64, 500, 5000)
    assert {tiles(m, n, k, least)[:2] for m in sizes for n in sizes for k in sizes for least in (16, 32)} == shapes


def test_width_of_reads() -> None:
    matrix = torch.empty(4, 16)
    assert width(matrix) == width(matrix[:, 8:]) == width(matrix, None) == linear.COPIED
    assert width(matrix[:, 4:12]) == width(matrix[:, :12]) == width(matrix, matrix[:, 4:]) == 4
    assert width(matrix[:, :6]) == width(matrix[:, 2:10]) == width(matrix, matrix[:, :6]) == 2
    assert width(matrix[:, :5]) == width(matrix[:, 1:9]) == width(torch.empty(4, 3)) == width(matrix.T) == 1


@pytest.mark.parametrize("name", ("common.cuh", "rows.cuh", "softmax.cu"))
def test_errors_name_file_and_line(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for file in ("common.cuh", "rows.cuh", "softmax.cu"):
        text = (launch.FOLDER / file).read_text()
        (tmp_path / file).write_text(text.rstrip() + ("\nint wrong = nonsense;\n" if file == name else "\n"))
    monkeypatch.setattr(launch, "FOLDER", tmp_path)
    line = len((tmp_path / name).read_text().splitlines())
    with pytest.raises(compiler.CompileException, match=rf'kernels/cupy/{name}\({line}\): error: .*"nonsense"'):
        compiled(launch.source.__wrapped__("softmax"), launch.options(torch.float32, LANES=8))


def test_sources_are_package_data() -> None:
    tomllib = pytest.importorskip("tomllib")
    root = Path(launch.__file__).parents[2]
    if not (root / "pyproject.toml").exists():
        pytest.skip("not a checkout")
    globs = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["kernels.cupy"]
    packed = {path for glob in globs for path in launch.FOLDER.glob(glob)}
    assert packed == {path for path in launch.FOLDER.iterdir() if path.is_file() and path.suffix != ".py"}


def packed(argument: Any) -> None:
    """Lets CuPy take a stream and pack a kernel's argument; the launch that follows fails where there is no driver."""
    kernel = function.Function.__new__(function.Function)
    with pytest.raises((cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError)):
        kernel((1,), (1,), (argument,), 0, launch.Stream(0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="would launch nothing at all on a GPU")
@pytest.mark.parametrize(
    "argument",
    (
        1 << 40,
        0,
        0.5,
        True,
        np.int32(3),
        layout((2, 3), (3, 1)),
        launch.structure((1, 2), np.int32),
        np.zeros((), PARAMETERS),
    ),
    ids=lambda argument: type(argument).__name__,
)
def test_cupy_takes_the_arguments_that_launchers_pass(argument: Any) -> None:
    packed(argument)
    with pytest.raises(TypeError):
        packed(torch.ones(1))  # why `addresses` exists


def test_grids_are_long_in_x_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In y and z a grid has at most 65,535 blocks."""
    grids = []
    monkeypatch.setattr(linear, "launch", lambda like, file, kernel, grid, *_, **__: grids.append(grid))
    outputs = 5 << 20
    linear.linear_backward(
        torch.empty(1, outputs), None, torch.empty(1, 1), torch.empty(outputs, 1), (True, True, True), None
    )
    linear.linear_forward(torch.empty(1, 1), torch.empty(outputs, 1), None, None)
    assert max(x for x, *_ in grids) > 65_535
    assert all(length <= 65_535 for _, *rest in grids for length in rest)


def test_arguments_fit_into_a_launch() -> None:
    assert PARAMETERS.itemsize + OPTIONS.itemsize + 8 <= 4096


def test_headers_are_part_of_the_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "inner.cuh").write_text("inner\n")
    (tmp_path / "outer.cuh").write_text('// outer\n#include "inner.cuh"\n')
    (tmp_path / "kernel.cu").write_text('first\n#include "outer.cuh"\nlast\n')
    monkeypatch.setattr(launch, "FOLDER", tmp_path)
    assert launch.source.__wrapped__("kernel").splitlines() == [
        '#line 1 "kernels/cupy/kernel.cu"', "first",
        '#line 1 "kernels/cupy/outer.cuh"', "// outer",
        '#line 1 "kernels/cupy/inner.cuh"', "inner",
        '#line 3 "kernels/cupy/outer.cuh"',
        '#line 3 "kernels/cupy/kernel.cu"', "last",
    ]  # fmt: skip


def test_addresses() -> None:
    tensor = torch.ones(3)
    assert launch.addresses((tensor[1:], None, 5)) == [tensor.data_ptr() + 4, 0, 5]


def test_a_structure_is_described_once() -> None:
    made = launch.structure((1, 2, 3), np.int32)
    assert made.nbytes == 12 and made.tobytes() == np.array([1, 2, 3], np.int32).tobytes()
    described = made.__array_interface__
    assert described["data"][0] == made.ctypes.data
    assert made.__array_interface__ is described
    assert launch.structure((1, 2, 3), np.int32) is made


def test_a_second_step_describes_no_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    """What every launch passes, structures in all operations and in SGD: all of it is ready when the same comes again."""
    passed = []

    def record(grid: Any, block: Any, arguments: Any, shared_mem: int) -> None:
        structures = [argument for argument in arguments if isinstance(argument, np.ndarray)]
        passed.extend(structures)
        for each in structures:
            each.__array_interface__  # noqa: B018

    monkeypatch.setattr(cupy, "RawModule", lambda **_: SimpleNamespace(get_function=lambda name: record))
    with kernels.use_backend("cupy"):
        step = training_step(4)
        step()  # fills the memory of the gradients' allocator, too
        ready = {id(each) for each in passed}
        passed.clear()
        step()
    assert len(passed) > 40
    assert all(isinstance(each, launch.Structure) for each in passed)
    assert sum(id(each) not in ready for each in passed) <= 1  # SGD's table, where a gradient got other memory


class Driver:
    """Stands in for CUDA's driver and for CuPy's copy of the runtime, whose device is not that of the driver's context."""

    def __init__(self, believed: int, context: int) -> None:
        self.believed, self.context = believed, context
        self.launches: list[tuple[int, int, int]] = []  # device of the module, the driver's context, stream

    def set_device(self, device: int) -> None:
        self.believed, self.context = device, 100 + device

    def set_context(self, context: int) -> None:
        self.context = context

    def module(self, **_: Any) -> Any:
        loaded_on = self.context - 100
        assert self.believed == loaded_on, (
            "CuPy compiles for the device that it takes for current, and keeps modules by it"
        )

        def start(grid: Any, block: Any, arguments: Any, shared: int, stream: launch.Stream) -> None:
            self.launches.append((loaded_on, self.context, stream.ptr))

        return SimpleNamespace(get_function=lambda name: SimpleNamespace(kernel=start))


@pytest.mark.parametrize("context", (0, 100, 101), ids=("no context", "context of 0", "context of 1"))
@pytest.mark.parametrize("believed", (0, 1))
def test_a_launch_goes_to_the_tensor_s_device(believed: int, context: int, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(believed, context)
    cuda = SimpleNamespace(
        runtime=SimpleNamespace(getDevice=lambda: driver.believed, setDevice=driver.set_device),
        driver=SimpleNamespace(ctxGetCurrent=lambda: driver.context, ctxSetCurrent=driver.set_context),
    )
    monkeypatch.setattr(launch, "cupy", SimpleNamespace(cuda=cuda, RawModule=driver.module))
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 500 + device, raising=False)
    for device in (0, 1, 1, 0):
        like = SimpleNamespace(is_cuda=True, dtype=torch.float32, get_device=lambda device=device: device)
        launch.launch(like, "softmax", "softmax_forward", (1,), (256,), LANES=1)
        assert driver.launches[-1] == (device, 100 + device, 500 + device)
        assert (driver.believed, driver.context) == (believed, context), "what was current is current again"


class Error(cupy.cuda.runtime.CUDARuntimeError):
    def __init__(self) -> None:
        Exception.__init__(self)

    def __str__(self) -> str:
        return "cudaErrorSomething"


def no_devices() -> int:
    raise Error


def no_compiler() -> tuple[int, int]:
    raise RuntimeError("CuPy failed to load libnvrtc")


@pytest.mark.parametrize(
    ("driver", "devices", "nvrtc", "said"),
    (
        (0, no_devices, lambda: (13, 0), "no NVIDIA driver.*cudaErrorSomething"),
        (
            12040,
            no_devices,
            lambda: (13, 0),
            r"built for CUDA 13, the driver supports CUDA 12\.4.*lenet-kernels\[cuda12\]",
        ),
        (13000, no_devices, lambda: (13, 0), "no GPU it can use.*cudaErrorSomething"),
        (13000, lambda: 1, no_compiler, r"NVRTC: install cupy-cuda13x\[ctk\].*libnvrtc"),
        (13000, lambda: 1, lambda: (13, 0), "^$"),
    ),
    ids=("no driver", "old driver", "no GPU", "no NVRTC", "all there"),
)
def test_what_is_missing(driver: int, devices: Any, nvrtc: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = SimpleNamespace(
        runtimeGetVersion=lambda: 13020,
        driverGetVersion=lambda: driver,
        getDeviceCount=devices,
        CUDARuntimeError=cupy.cuda.runtime.CUDARuntimeError,
    )
    there = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime, nvrtc=SimpleNamespace(getVersion=nvrtc)))
    monkeypatch.setattr(launch, "cupy", there)
    assert re.search(said, launch.missing())


def test_cupy_that_is_not_installed() -> None:
    code = "import sys; sys.modules['cupy'] = None; import kernels; print(kernels.backends()[2].why_not)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.startswith("CuPy is missing: install lenet-kernels[cuda13] or lenet-kernels[cuda12]")
