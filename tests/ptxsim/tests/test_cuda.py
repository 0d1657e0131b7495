"""CUDA C++ kernels give the right values, in normal and in race mode."""

import numpy as np
import ptxsim
import pytest
from ptxsim.cuda import cuda_device

rng = np.random.default_rng(0)


@pytest.fixture(params=["plain", "races"], autouse=True)
def mode(request):
    with cuda_device(**({"races": True, "seed": 1} if request.param == "races" else {})) as device:
        yield device


def floats(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def int32(value):
    return np.int32(value)


def test_add(cuda_module):
    x, y, out = floats(4000), floats(4000), np.zeros(4000, np.float32)
    cuda_module.get_function("add")((32,), (128,), (x, y, out, int32(4000)))
    assert np.array_equal(out, x + y)


def test_reduction_with_shuffles(cuda_module):
    x, total = floats(4000), np.zeros(1, np.float32)
    cuda_module.get_function("reduce_sum")((4,), (256,), (x, total, int32(4000)))
    assert np.isclose(total[0], x.sum(dtype=np.float64), atol=1e-3)


@pytest.mark.parametrize("name", ["transpose", "transpose_padded"])
def test_transpose(cuda_module, name):
    x = floats(64, 64)
    y = np.zeros_like(x)
    cuda_module.get_function(name)((2, 2), (32, 32), (x, y, int32(64)))
    assert np.array_equal(y, x.T)


def test_conv5x5(cuda_module):
    x, w, out = floats(4, 32, 32), floats(6, 5, 5), np.zeros((4, 6, 28, 28), np.float32)
    cuda_module.get_function("conv5x5")((4,), (256,), (x, w, out, int32(32), int32(32), int32(6)), shared_mem=4096)
    windows = np.lib.stride_tricks.sliding_window_view(x, (5, 5), axis=(1, 2))
    assert np.allclose(out, np.einsum("nyxij,fij->nfyx", windows, w), atol=1e-4)


def test_matmul(cuda_module):
    a, b, c = floats(70, 90), floats(90, 50), np.zeros((70, 50), np.float32)
    cuda_module.get_function("matmul")((4, 5), (16, 16), (a, b, c, int32(70), int32(50), int32(90)))
    assert np.allclose(c, a @ b, atol=1e-4)


def test_vector_loads(cuda_module):
    x, out = floats(4096), np.zeros(4096, np.float32)
    cuda_module.get_function("relu4")((8,), (128,), (x, out, int32(1024)))
    assert np.array_equal(out, np.maximum(x, 0))


def test_half_pairs(cuda_module):
    x, y = floats(512).astype(np.float16), floats(512).astype(np.float16)
    before = y.copy()
    cuda_module.get_function("half_axpy")((2,), (128,), (x, y, np.float16(1.5), int32(256)))
    exact = (1.5 * x.astype(np.float64) + before).astype(np.float16)
    assert np.array_equal(y, exact)


def test_bfloat16():
    torch = pytest.importorskip("torch")
    import kernels_cuda

    module = ptxsim.cuda.RawModule(code=kernels_cuda.SOURCE)
    x = torch.randn(300).bfloat16()
    y = torch.zeros_like(x)
    module.get_function("bfloat_gelu")((3,), (128,), (x, y, int32(300)))
    torch.testing.assert_close(y.float(), torch.nn.functional.gelu(x.float()), rtol=1e-2, atol=1e-2)


def test_softmax_with_cooperative_groups(cuda_module):
    x = floats(8, 300) * 5
    y = np.zeros_like(x)
    cuda_module.get_function("softmax")((8,), (128,), (x, y, int32(300)), shared_mem=128)
    e = np.exp(x - x.max(1, keepdims=True))
    assert np.allclose(y, e / e.sum(1, keepdims=True), atol=1e-6)


def test_histogram(cuda_module):
    x, bins = rng.integers(0, 16, 1000).astype(np.int32), np.zeros(16, np.int32)
    cuda_module.get_function("histogram")((8,), (128,), (x, bins, int32(1000)))
    assert np.array_equal(bins, np.bincount(x, minlength=16))


def test_max_pool_with_indices(cuda_module):
    x = floats(3, 28, 28)
    out, index = np.zeros((3, 14, 14), np.float32), np.zeros((3, 14, 14), np.int64)
    cuda_module.get_function("max_pool2x2")((5,), (128,), (x, out, index, int32(28), int32(28), int32(588)))
    windows = x.reshape(3, 14, 2, 14, 2)
    assert np.array_equal(out, windows.max((2, 4)))
    assert np.array_equal(x.reshape(3, -1)[np.arange(3)[:, None], index.reshape(3, -1)], out.reshape(3, -1))


def test_math_functions(cuda_module):
    x, y = floats(100) * 3, np.zeros(100, np.float32)
    cuda_module.get_function("functions")((1,), (128,), (x, y, int32(100)))
    v = x.astype(np.float64)
    a = np.abs(v)
    from math import erf

    expected = (
        np.sin(v)
        + np.exp(v)
        + np.log(a + 1)
        + a**1.5
        + np.tanh(v)
        + np.sqrt(a)
        + v / 3
        + 1 / np.sqrt(a + 1)
        + np.floor(v)
        + np.fmod(np.trunc(v), 7)
        + np.array([erf(t) for t in v])
        + np.fmod(v, np.float32(1.3))
    )
    assert np.allclose(y, expected, rtol=1e-5, atol=1e-4)


def test_doubles(cuda_module):
    x, y = rng.standard_normal(64), np.zeros(64)
    cuda_module.get_function("doubles")((1,), (64,), (x, y, int32(64), 0.3))
    assert np.allclose(y, np.sin(x) * 0.3 + np.exp(x) / (1 + x * x) + np.sqrt(np.abs(x)), rtol=1e-14)


def test_device_function_call(cuda_module):
    x, c, y = floats(20), floats(3), np.zeros(20, np.float32)
    cuda_module.get_function("call_function")((1,), (32,), (x, c, y, int32(20)))
    assert np.allclose(y, (c[0] * x + c[1]) * x + c[2] + c[1] * x + c[2], atol=1e-5)


def test_struct_by_value(cuda_module):
    x, out = floats(12), np.zeros(12, np.float32)
    ptxsim.register(x)
    kind = np.dtype([("rows", np.int32), ("columns", np.int32), ("data", np.uint64)])
    shape = np.array((3, 4, x.ctypes.data), kind)
    cuda_module.get_function("by_value")((1,), (32,), (shape, out))
    assert np.array_equal(out, 2 * x)


def test_module_variables(cuda_module):
    cuda_module.get_global("counter")[:] = 0
    out = np.zeros(64, np.float32)
    cuda_module.get_function("use_globals")((1,), (64,), (out,))
    assert np.array_equal(out, np.tile([1, 2, 3, 4], 16))
    assert cuda_module.get_global("counter").view(np.int32)[0] == 64


def test_last_block_pattern_is_not_a_race(cuda_module):
    x, partial, out = floats(1000), np.zeros(16, np.float32), np.zeros(1, np.float32)
    ticket = np.zeros(1, np.uint32)
    cuda_module.get_function("last_block_sum")((16,), (64,), (x, partial, ticket, out, int32(1000)))
    assert np.isclose(out[0], x.sum(), atol=1e-3)


def test_votes_and_barrier_reductions(cuda_module):
    x, out = (np.arange(64) % 4 == 0).astype(np.int32), np.zeros(5, np.int32)
    cuda_module.get_function("any_all_count")((1,), (64,), (x, out))
    assert out.tolist() == [16, 0, 1, 8, 8]
