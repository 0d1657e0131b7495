"""Exchanges between the lanes of a warp, and matrices between lanes and shared memory, that C++ and Triton emit rarely."""

import numpy as np
import ptx
import pytest

rng = np.random.default_rng(0)
LANES = np.arange(32, dtype=np.uint32)


@pytest.mark.parametrize("kind", ["s32", "u32"])
@pytest.mark.parametrize("name, expected", [("add", np.add), ("min", np.minimum), ("max", np.maximum)])
def test_reduction(name, expected, kind):
    values = rng.integers(-(2**31), 2**31, 32).astype(np.int32).view(np.int32 if kind == "s32" else np.uint32)
    d = ptx.lanes(f"redux.sync.{name}.{kind} %d, %a, -1;", values, out=np.uint32).view(values.dtype)
    np.testing.assert_array_equal(d, np.full(32, expected.reduce(values), values.dtype))


@pytest.mark.parametrize("name, expected", [("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor)])
def test_reduction_of_bits(name, expected):
    values = rng.integers(0, 2**32, 32, np.uint64).astype(np.uint32)
    d = ptx.lanes(f"redux.sync.{name}.b32 %d, %a, -1;", values, out=np.uint32)
    np.testing.assert_array_equal(d, np.full(32, expected.reduce(values), np.uint32))


@pytest.mark.parametrize("name, expected", [("min", np.fmin), ("max", np.fmax)])
def test_reduction_of_floats(name, expected):
    values = rng.standard_normal(32).astype(np.float32)
    values[5] = np.nan
    for modifiers, x in (("", values), (".abs", np.abs(values))):
        d = ptx.lanes(f"redux.sync.{name}{modifiers}.f32 %d, %a, -1;", values, out=np.float32)
        np.testing.assert_array_equal(d, np.full(32, expected.reduce(x)))
        assert np.isnan(ptx.lanes(f"redux.sync.{name}{modifiers}.NaN.f32 %d, %a, -1;", values, out=np.float32)).all()


def test_match():
    values = rng.integers(0, 4, 32).astype(np.uint32)
    d = ptx.lanes("match.any.sync.b32 %d, %a, -1;", values, out=np.uint32)
    np.testing.assert_array_equal(d, [sum(1 << k for k in LANES if values[k] == v) for v in values])
    body = "match.all.sync.b32 %d|%p0, %a, -1; @!%p0 mov.b32 %d, 7;"
    np.testing.assert_array_equal(ptx.lanes(body, values, out=np.uint32), 7)
    np.testing.assert_array_equal(ptx.lanes(body, values * 0, out=np.uint32), 0xFFFFFFFF)


@pytest.mark.parametrize("sink", [False, True])
def test_election(sink):
    body = f"mov.b32 %d, 0; setp.ge.u32 %p0, %i, 5; @!%p0 bra END; elect.sync {'_' if sink else '%i'}|%p1, -32; @%p1 mov.b32 %d, 1; END:"
    np.testing.assert_array_equal(ptx.lanes(body, out=np.uint32), LANES == 5)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrix_store(count, transposed):
    """Each lane reads 4 bytes back from where they must lie."""
    values = rng.integers(0, 2**16, (count, 8, 8)).astype(np.uint16)
    held = values.transpose(0, 2, 1) if transposed else values  # matrices as the lanes hold them
    registers = [np.ascontiguousarray(held[k].reshape(32, 2)).view(np.uint32).ravel() for k in range(count)]
    names = ", ".join(f"%r{k}" for k in range(count))
    trans = ".trans" if transposed else ""
    for k in range(count):  # one matrix at a time carries values
        others = "".join(f"mov.b32 %r{j}, %a;" if j == k else f"mov.b32 %r{j}, 0;" for j in range(count))
        body = f""".shared .align 16 .b8 tile[512]; .reg .b32 %r<4>; .reg .b32 %at; {others}
        shl.b32 %at, %i, 4; mov.u32 %d, tile; add.u32 %at, %at, %d;
        stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%at], {{{names}}};
        shl.b32 %at, %i, 2; mov.u32 %d, tile; add.u32 %at, %at, %d; ld.shared.b32 %d, [%at+{128 * k}];"""
        d = ptx.lanes(body, registers[k], out=np.uint32)
        np.testing.assert_array_equal(d.view(np.uint16).reshape(8, 8), values[k])


def test_matrix_transposed_in_registers():
    matrix = rng.integers(0, 2**16, (8, 8)).astype(np.uint16)
    d = ptx.lanes("movmatrix.sync.aligned.m8n8.trans.b16 %d, %a;", matrix.view(np.uint32).ravel(), out=np.uint32)
    np.testing.assert_array_equal(d.view(np.uint16).reshape(8, 8), matrix.T)


def test_hints_change_nothing():
    body = """griddepcontrol.wait; griddepcontrol.launch_dependents; .reg .b64 %policy;
    createpolicy.fractional.L2::evict_last.b64 %policy, 1.0; prefetch.global.L2 [%p_a]; mov.b32 %d, %a;"""
    np.testing.assert_array_equal(ptx.lanes(body, LANES, out=np.uint32), LANES)
