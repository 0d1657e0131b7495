"""Arithmetic and comparisons on several values in one register, of mixed precision, and of magnitudes."""

import numpy as np
import ptx
import pytest

rng = np.random.default_rng(0)
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0]


def floats(dtype, count):
    values = rng.standard_normal(count).astype(dtype)
    values[: len(SPECIAL)] = SPECIAL
    return rng.permutation(values)


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
@pytest.mark.parametrize("name", ["add", "min", "max", "min.relu", "max.relu"])
def test_integers(name, dtype):
    limits = np.iinfo(dtype)
    a, b = (rng.integers(limits.min, limits.max, 64, dtype, endpoint=True) for _ in range(2))
    kind = "s16x2" if dtype is np.int16 else "u16x2"
    d = ptx.lanes(f"{name}.{kind} %d, %a, %b;", a.view(np.uint32), b.view(np.uint32), out=np.uint32).view(dtype)
    expected = {"add": np.add, "min": np.minimum, "max": np.maximum}[name[:3]](a, b)
    np.testing.assert_array_equal(d, np.maximum(expected, 0) if "relu" in name else expected)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
def test_single_precision(name):
    a, b, c = (rng.integers(-2000, 2000, 64).astype(np.float32) / 64 for _ in range(3))  # exact in every operation
    operands = [x.view(np.uint64) for x in ((a, b, c) if name == "fma" else (a, b))]
    d = ptx.lanes(f"{name}.rn.f32x2 %d, %a, %b{', %c' if name == 'fma' else ''};", *operands, out=np.uint64)
    expected = {"add": a + b, "sub": a - b, "mul": a * b, "fma": a * b + c}[name]
    np.testing.assert_array_equal(d.view(np.float32), expected)


def test_fma_rounds_once():
    a = np.full(64, 1 + 2.0**-12, np.float32)
    c = np.full(64, -1 - 2.0**-11, np.float32)
    d = ptx.lanes("fma.rn.f32x2 %d, %a, %b, %c;", *(x.view(np.uint64) for x in (a, a, c)), out=np.uint64)
    np.testing.assert_array_equal(d.view(np.float32), np.full(64, 2.0**-24, np.float32))


@pytest.mark.parametrize("name", ["add", "sub", "fma"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_mixed_precision(kind, name):
    """Halves are added to a single without being rounded, and one rounding is all."""
    numbers = rng.standard_normal((2, 32)).astype(np.float32)
    words = (
        numbers.astype(np.float16).view(np.uint16)
        if kind == "f16"
        else (numbers.view(np.uint32) >> 16).astype(np.uint16)
    )
    a, b = (
        words.view(np.float16).astype(np.float64) if kind == "f16" else (words.astype(np.uint32) << 16).view(np.float32)
    )
    c = rng.standard_normal(32).astype(np.float32)
    if name == "fma":
        d = ptx.lanes(f"fma.rn.f32.{kind} %d, %a, %b, %c;", *words, c, out=np.float32)
        expected = a.astype(np.float64) * b + c
    else:
        d = ptx.lanes(f"{name}.rn.f32.{kind} %d, %a, %b;", words[0], c, out=np.float32)
        expected = a.astype(np.float64) + (c if name == "add" else -c)
    np.testing.assert_array_equal(d, expected.astype(np.float32))
    d = ptx.lanes(f"add.rn.f32.{kind} %d, %a, 0f3FC00000;", words[0], out=np.float32)
    np.testing.assert_array_equal(d, (a.astype(np.float64) + 1.5).astype(np.float32))


COMPARISONS = {
    "eq": lambda a, b: a == b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "neu": lambda a, b: a != b,
    "ltu": lambda a, b: ~(a >= b),
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}


@pytest.mark.parametrize("kind", ["f16x2", "bf16x2"])
@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons(name, kind):
    """p is what the lower halves give and q what the upper ones do; both are combined with a third predicate."""
    a, b = floats(np.float32, 64), floats(np.float32, 64)
    a[::3] = b[::3]
    if kind == "f16x2":
        a, b = a.astype(np.float16), b.astype(np.float16)
        bits = [x.view(np.uint32) for x in (a, b)]
    else:
        words = [x.view(np.uint32) & 0xFFFF0000 for x in (a, b)]
        bits = [(w[0::2] >> 16) | w[1::2] for w in words]
        a, b = (w.view(np.float32) for w in words)
    body = """setp.lt.u32 %p0, %i, 16;
    setp.NAME.KIND %p1|%p2, %a, %b; selp.b32 %d, 1, 0, %p1; @%p2 or.b32 %d, %d, 2;
    setp.NAME.and.KIND %p1|%p2, %a, %b, !%p0; @%p1 or.b32 %d, %d, 4; @%p2 or.b32 %d, %d, 8;"""
    d = ptx.lanes(body.replace("NAME", name).replace("KIND", kind), *bits, out=np.uint32)
    truth = COMPARISONS[name](a, b).reshape(32, 2).astype(np.uint32)
    first = truth[:, 0] | truth[:, 1] << 1
    np.testing.assert_array_equal(d, first | np.where(np.arange(32) < 16, 0, first << 2))


@pytest.mark.parametrize("nan", [False, True])
@pytest.mark.parametrize("name", ["min", "max"])
def test_magnitudes(name, nan):
    a, b = floats(np.float32, 32), floats(np.float32, 32)
    d = ptx.lanes(f"{name}{'.NaN' if nan else ''}.xorsign.abs.f32 %d, %a, %b;", a, b, out=np.float32)
    pick = {("min", True): np.minimum, ("max", True): np.maximum, ("min", False): np.fmin, ("max", False): np.fmax}
    magnitude = pick[name, nan](np.abs(a), np.abs(b))
    expected = np.copysign(magnitude, np.copysign(1, a) * np.copysign(1, b))
    np.testing.assert_array_equal(d, expected)
    known = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(d[known]), np.signbit(expected[known]))


@pytest.mark.parametrize("name", ["min", "max"])
def test_magnitudes_of_halves(name):
    a, b = floats(np.float16, 64), floats(np.float16, 64)
    operands = [x.view(np.uint32) for x in (a, b)]
    d = ptx.lanes(f"{name}.xorsign.abs.f16x2 %d, %a, %b;", *operands, out=np.uint32).view(np.float16)
    magnitude = {"min": np.fmin, "max": np.fmax}[name](np.abs(a), np.abs(b))
    np.testing.assert_array_equal(d, np.copysign(magnitude, np.copysign(1, a) * np.copysign(1, b)))
