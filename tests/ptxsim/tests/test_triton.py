"""Triton kernels give the right values, in normal and in race mode, without false alarms."""

import kernels_triton as kernels
import ptxsim
import pytest
import torch
import torch.nn.functional as F
from triton import cdiv

ALL = pytest.mark.parametrize("arch", [75, 80])
MODES = pytest.mark.parametrize("options", [{}, {"races": True, "seed": 2}], ids=["plain", "races"])


def close(actual, expected, tolerance=1e-4):
    torch.testing.assert_close(actual.float(), expected.float(), rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@ALL
@MODES
def test_add(arch, options):
    x, y = torch.randn(1000), torch.randn(1000)
    out = torch.zeros(1000)
    with ptxsim.triton_device(arch=arch, **options):
        kernels.add[lambda meta: (cdiv(1000, meta["BLOCK"]),)](x, y, out, 1000, BLOCK=256)
    assert torch.equal(out, x + y)


@ALL
@MODES
def test_reduction_with_shuffles(arch, options):
    x, total = torch.randn(4000), torch.zeros(1)
    with ptxsim.triton_device(arch=arch, **options):
        kernels.sum_atomic[(4,)](x, total, 4000, BLOCK=1024)
    close(total, x.sum()[None], 1e-3)


@ALL
@MODES
def test_softmax(arch, options):
    x = torch.randn(16, 300)
    out = torch.zeros_like(x)
    with ptxsim.triton_device(arch=arch, **options):
        kernels.softmax[(16,)](x, out, 300, BLOCK=512)
    close(out, x.softmax(1))


@MODES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_layer_norm(options, dtype):
    x, weight, bias = torch.randn(8, 300).to(dtype), torch.randn(300), torch.randn(300)
    out = torch.zeros_like(x)
    with ptxsim.triton_device(**options):
        kernels.layer_norm[(8,)](x, weight, bias, out, 300, 1e-5, BLOCK=512)
    close(out, F.layer_norm(x.float(), (300,), weight, bias), 3e-2)


@MODES
def test_cumulative_sum_and_sort(options):
    x = torch.randn(1024)
    sums, ordered = torch.zeros(1024), torch.zeros(1024)
    with ptxsim.triton_device(**options):
        kernels.cumulative_sum[(1,)](x, sums, BLOCK=1024)
        kernels.sort[(1,)](x, ordered, BLOCK=1024)
    close(sums, x.cumsum(0), 1e-3)
    assert torch.equal(ordered, x.sort()[0])


@MODES
@pytest.mark.parametrize(
    "precision, dtype, arch, tolerance",
    [
        ("ieee", torch.float32, 80, 1e-4),
        ("tf32", torch.float32, 80, 5e-2),
        ("tf32x3", torch.float32, 80, 1e-3),
        ("ieee", torch.float16, 80, 1e-3),
        ("ieee", torch.bfloat16, 80, 1e-3),
        ("ieee", torch.float16, 75, 1e-3),
    ],
)
def test_matmul(options, precision, dtype, arch, tolerance):
    a, b = torch.randn(70, 90).to(dtype), torch.randn(90, 50).to(dtype)
    c = torch.zeros(70, 50)
    with ptxsim.triton_device(arch=arch, **options):
        kernels.matmul[(3, 2)](a, b, c, 70, 50, 90, BM=32, BN=32, BK=32, PRECISION=precision, num_stages=3)
    close(c, a.float() @ b.float(), tolerance)


@MODES
def test_matmul_int8(options):
    a = torch.randint(-128, 127, (32, 128), dtype=torch.int8)
    b = torch.randint(-128, 127, (128, 32), dtype=torch.int8)
    c = torch.zeros(32, 32, dtype=torch.int32)
    with ptxsim.triton_device(**options):
        kernels.matmul_int8[(1,)](a, b, c, 32, 128, BM=32, BN=32, BK=32)
    assert torch.equal(c, a.int() @ b.int())


@MODES
def test_histogram(options):
    x = torch.randint(0, 10, (1000,), dtype=torch.int32)
    bins = torch.zeros(10, dtype=torch.int32)
    with ptxsim.triton_device(**options):
        kernels.histogram[(4,)](x, bins, 1000, BLOCK=256)
    assert torch.equal(bins.long(), torch.bincount(x, minlength=10))


@MODES
def test_conv5x5(options):
    x, w = torch.randn(8, 1, 32, 32), torch.randn(6, 1, 5, 5)
    out = torch.zeros(8, 6, 28, 28)
    with ptxsim.triton_device(**options):
        kernels.conv5x5[(8, cdiv(784, 256))](x, w, out, 32, 32, 28, 28, F=6, FP=8, BLOCK=256)
    close(out, F.conv2d(x, w))


@MODES
def test_max_pool_with_indices(options):
    x = torch.randn(6, 1, 28, 28)
    out, index = torch.zeros(6, 1, 14, 14), torch.zeros(6, 1, 14, 14, dtype=torch.int64)
    with ptxsim.triton_device(**options):
        kernels.max_pool2x2[(cdiv(6 * 196, 128),)](x, out, index, 28, 28, 6 * 196, BLOCK=128)
    expected, expected_index = F.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(out, expected) and torch.equal(index, expected_index)


@MODES
def test_flash_attention(options):
    q, k, v = (torch.randn(2, 128, 64).half() for _ in range(3))
    out = torch.zeros_like(q)
    with ptxsim.triton_device(**options):
        kernels.flash_attention[(2, 2)](q, k, v, out, 128, 0.125 * 1.44269504, D=64, BM=64, BN=64, num_stages=3)
    close(out, F.scaled_dot_product_attention(q.float(), k.float(), v.float()), 5e-3)


def test_tensor_descriptor_without_tma():
    x = torch.randn(64, 64)
    y = torch.zeros_like(x)
    with ptxsim.triton_device(arch=80):
        kernels.double_descriptor[(2, 2)](x, y, 64, 64, BLOCK=32)
    assert torch.equal(y, 2 * x)


def test_strided_views_and_offsets():
    """Arguments that are views keep their bounds and their offset."""
    storage = torch.randn(3, 1000)
    out = torch.zeros(1001)[1:]
    with ptxsim.triton_device():
        kernels.add[(4,)](storage[1], storage[2], out, 1000, BLOCK=256)
    assert torch.equal(out, storage[1] + storage[2])


def test_spin_lock_is_not_a_race():
    x, out, lock = torch.randn(1000), torch.zeros(256), torch.zeros(1, dtype=torch.int32)
    with ptxsim.triton_device(races=True, seed=1):
        kernels.locked_sum[(4,)](x, out, lock, 1000, BLOCK=256)
    close(out, F.pad(x, (0, 24)).view(4, 256).sum(0))
