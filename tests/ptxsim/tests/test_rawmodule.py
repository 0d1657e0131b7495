"""RawModule and RawKernel have CuPy's call interface and its argument rules."""

import inspect
import types

import numpy as np
import ptxsim
import pytest
from ptxsim.cuda import RawKernel, RawModule, cuda_device

SCALARS = r"""
extern "C" __global__ void scalars(double* out, int i, long long l, float f, double d, bool b, short s) {
  out[0] = i; out[1] = l; out[2] = f; out[3] = d; out[4] = b; out[5] = s;
}
"""


@pytest.fixture(scope="module")
def scalars(cuda_module):
    return RawModule(code=SCALARS).get_function("scalars")


def test_signature():
    call = inspect.signature(RawModule.get_function(RawModule(code=SCALARS), "scalars").__call__)
    assert list(call.parameters)[:5] == ["grid", "block", "args", "shared_mem", "stream"]
    assert {"code", "path", "options", "name_expressions"} <= set(inspect.signature(RawModule).parameters)


def test_numpy_and_python_scalars(scalars):
    out = np.zeros(6)
    scalars((1,), (1,), (out, 3, 1 << 40, np.float32(0.5), 0.25, True, np.int16(-7)), shared_mem=0, stream=None)
    assert out.tolist() == [3, 1 << 40, 0.5, 0.25, 1, -7]


@pytest.mark.parametrize(
    "position, value",
    [
        (3, 0.5),  # a Python float is float64, the parameter is float
        (3, 1),  # an integer for a float
        (2, np.int32(1)),  # 4 bytes for a long long: the GPU would read garbage
        (4, np.float32(1)),  # float32 for a double
        (1, 1 << 40),  # does not fit
    ],
)
def test_wrong_scalars_are_refused(scalars, position, value):
    args = [np.zeros(6), 3, 4, np.float32(0.5), 0.25, True, np.int16(1)]
    args[position] = value
    with pytest.raises(ptxsim.LaunchError):
        scalars((1,), (1,), args)


def test_wrong_number_of_arguments(scalars):
    with pytest.raises(ptxsim.LaunchError, match="takes 7 arguments, got 1"):
        scalars((1,), (1,), (np.zeros(6),))


def test_torch_tensors_and_raw_addresses(cuda_module):
    torch = pytest.importorskip("torch")
    add = cuda_module.get_function("add")
    x, y, out = torch.randn(100), torch.randn(100), torch.zeros(100)
    add((1,), (128,), (x, y, out, np.int32(100)))
    assert torch.equal(out, x + y)
    out.zero_()
    add((1,), (128,), (x.data_ptr(), y.data_ptr(), out.data_ptr(), np.int32(100)))  # found among live tensors
    assert torch.equal(out, x + y)
    with pytest.raises(ptxsim.DeviceFault):
        add((1,), (128,), (x.data_ptr(), y.data_ptr(), out.data_ptr(), np.int32(101)))


def test_addresses_of_small_tensors(cuda_module):
    """They may lie on the heap, below 2**32 where Python does."""
    torch = pytest.importorskip("torch")
    add = cuda_module.get_function("add")
    for n in range(1, 200, 9):
        x, y, out = torch.randn(n), torch.randn(n), torch.zeros(n)
        add((1,), (256,), (x.data_ptr(), y.data_ptr(), out.data_ptr(), np.int32(n)))
        assert torch.equal(out, x + y)


def test_registered_array_address(cuda_module):
    x, y, out = (ptxsim.register(np.arange(64, dtype=np.float32)) for _ in range(3))
    cuda_module.get_function("add")((1,), (64,), (x.ctypes.data, np.uint64(y.ctypes.data), out.ctypes.data, 64))
    assert np.array_equal(out, 2 * np.arange(64))


def test_name_expressions(cuda_module):
    try:
        module = RawModule(
            code="template <typename T> __global__ void scale(T* x, T a) { x[threadIdx.x] *= a; }",
            name_expressions=("scale<float>", "scale<double>"),
        )
    except ptxsim.CompileError as error:
        pytest.skip(str(error))  # only nvcc is installed
    x, y = np.ones(32, np.float32), np.ones(32)
    module.get_function("scale<float>")((1,), (32,), (x, np.float32(3)))
    module.get_function("scale<double>")((1,), (32,), (y, 5.0))
    assert (x == 3).all() and (y == 5).all()


def test_options_and_path(tmp_path):
    source = tmp_path / "set_value.cu"
    source.write_text('extern "C" __global__ void set_value(int* x) { x[threadIdx.x] = VALUE; }')
    module = RawModule(path=str(source), options=("-DVALUE=7", "-std=c++14", "--gpu-architecture=sm_90"), arch=75)
    x = np.zeros(32, np.int32)
    module.get_function("set_value")((1,), (32,), (x,))
    assert (x == 7).all() and module.module.arch == 75
    with pytest.raises(ptxsim.DeviceFault) as caught:
        module.get_function("set_value")((1,), (33,), (x,))
    assert caught.value.source == ptxsim.SourceLine(str(source), 1)


def test_compile_error_carries_the_log():
    with pytest.raises(ptxsim.CompileError, match="undefined"):
        RawModule(code='extern "C" __global__ void k() { int a = undefined_name; }')


def test_unknown_kernel(cuda_module):
    with pytest.raises(ptxsim.LaunchError, match="no kernel 'missing'"):
        cuda_module.get_function("missing")


def test_raw_kernel():
    kernel = RawKernel('extern "C" __global__ void one(float* x) { x[threadIdx.x] = 1; }', "one")
    x = np.zeros(8, np.float32)
    kernel((1,), (8,), (x,))
    assert (x == 1).all()


def test_dynamic_shared_memory_must_be_allowed():
    kernel = RawKernel(
        'extern "C" __global__ void big(float* x) { extern __shared__ float s[]; s[threadIdx.x] = 1; '
        "__syncthreads(); x[threadIdx.x] = s[threadIdx.x]; }",
        "big",
    )
    x = np.zeros(32, np.float32)
    with pytest.raises(ptxsim.LaunchError, match="max_dynamic_shared_size_bytes"):
        kernel((1,), (32,), (x,), shared_mem=64 * 1024)
    kernel.max_dynamic_shared_size_bytes = 64 * 1024
    kernel((1,), (32,), (x,), shared_mem=64 * 1024)
    assert (x == 1).all()


@pytest.mark.parametrize("grid, block", [((1,), (2048,)), ((0,), (32,)), ((1, 70000), (32,))])
def test_launch_limits(cuda_module, grid, block):
    with pytest.raises(ptxsim.LaunchError):
        cuda_module.get_function("transpose")(grid, block, (np.zeros(1024, np.float32), np.zeros(1024, np.float32), 32))


def test_launch_bounds():
    kernel = RawKernel('extern "C" __global__ void __launch_bounds__(64) k(float* x) { x[threadIdx.x] = 1; }', "k")
    with pytest.raises(ptxsim.LaunchError, match="launch bounds"):
        kernel((1,), (128,), (np.zeros(128, np.float32),))


def test_monkeypatching_a_launcher_module(monkeypatch):
    """A module that uses cupy only through its RawModule runs unchanged."""
    launcher = types.ModuleType("launcher")
    launcher.cupy = types.SimpleNamespace(RawModule=None)
    exec(
        """
def double(x, n):
    module = cupy.RawModule(code='extern "C" __global__ void twice(float* x, int n)'
                                 '{ int i = blockIdx.x * blockDim.x + threadIdx.x; if (i < n) x[i] *= 2; }')
    module.get_function("twice")(((n + 127) // 128,), (128,), (x, n))
""",
        launcher.__dict__,
    )
    monkeypatch.setattr(launcher.cupy, "RawModule", RawModule)
    x = np.ones(1000, np.float32)
    with cuda_device(arch=75) as device:
        launcher.double(x, 1000)
    assert (x == 2).all() and device.launches[0].kernel == "twice" and device.launches[0].grid == (8, 1, 1)


def test_compiled_source_is_kept_for_other_processes(monkeypatch, tmp_path):
    monkeypatch.setenv("PTXSIM_CACHE", str(tmp_path))
    source = 'extern "C" __global__ void kept(int* x) { *x = VALUE; }'
    compile_to_ptx = ptxsim.cuda.compile_to_ptx.__wrapped__  # forgets, as another process does
    first = compile_to_ptx(source, options=("-DVALUE=1",))
    monkeypatch.setattr(ptxsim.cuda, "_compile", lambda *_: ("compiled anew", {}))
    assert compile_to_ptx(source, options=("-DVALUE=1",)) == first
    for changed in ((source, "kernel.cu", ("-DVALUE=2",)), (source + "\n", "kernel.cu", ("-DVALUE=1",))):
        assert compile_to_ptx(*changed) == ("compiled anew", {})
    assert compile_to_ptx(source, options=("-DVALUE=1",), arch=90) == ("compiled anew", {})


@pytest.mark.parametrize("arch", [75, 90, 100, 120])
def test_architectures(arch):
    source = 'extern "C" __global__ void arch(int* out) { *out = __CUDA_ARCH__; }'
    out = np.zeros(1, np.int32)
    with cuda_device(arch=arch):
        module = RawModule(code=source)
        module.get_function("arch")((1,), (1,), (out,))
    assert out[0] == 10 * arch and f".target sm_{arch}" in module.ptx
