"""Every kind of fault is detected and reported with its place and argument."""

import numpy as np
import ptxsim
import pytest
from ptxsim.cuda import RawModule, cuda_device

rng = np.random.default_rng(0)
N = 4000


def floats(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def run(module, name, grid, block, *args, **keywords):
    module.get_function(name)(grid, block, args, **keywords)


def fault_of(*args, **keywords):
    with pytest.raises(ptxsim.DeviceFault) as caught:
        run(*args, **keywords)
    return caught.value


def test_read_past_the_end(cuda_module):
    x, y, out = floats(N), floats(N), np.zeros(N + 100, np.float32)
    fault = fault_of(cuda_module, "add", (32,), (128,), x, y, out, np.int32(N + 5))
    assert fault.kind == "out-of-bounds" and fault.kernel == "add"
    assert fault.argument in ("x", "y") and fault.offset == 4 * N
    assert fault.block == (31, 0, 0) and fault.thread == (N - 31 * 128, 0, 0)
    assert "4 bytes past the end" in str(fault) and fault.source.file == "kernel.cu"
    assert "out[i] = x[i] + y[i]" in cuda_module.code.splitlines()[fault.source.line - 1]


def test_write_past_the_end(cuda_module):
    x, y, out = floats(N), floats(N), np.zeros(N - 1, np.float32)
    fault = fault_of(cuda_module, "add", (32,), (128,), x, y, out, np.int32(N))
    assert (fault.kind, fault.argument, fault.offset) == ("out-of-bounds", "out", 4 * (N - 1))
    assert "write of 4 bytes" in str(fault)


def test_neighbouring_tensors_are_guarded(cuda_module):
    """Views of one allocation do not hide an overrun of the first into the second."""
    memory = floats(3 * N)
    x, y, out = memory[:N], memory[N : 2 * N], memory[2 * N :]
    before = out.copy()
    fault = fault_of(cuda_module, "add", (32,), (128,), x, out, y[: N - 1], np.int32(N))
    assert fault.argument == "out" and np.array_equal(out, before)


def test_before_the_start(cuda_module):
    x = floats(N)
    module = RawModule(code='extern "C" __global__ void shift(float* x) { x[(long long)threadIdx.x - 1] = 0; }')
    fault = fault_of(module, "shift", (1,), (32,), x)
    assert fault.argument == "x" and fault.offset == -4 and "before the start" in str(fault)


def test_misaligned(cuda_module):
    x, out = floats(4097), np.zeros(4096, np.float32)
    fault = fault_of(cuda_module, "relu4", (8,), (128,), x[1:], out, np.int32(1000))
    assert fault.kind == "misaligned" and fault.argument == "x"


def test_null_pointer(cuda_module):
    fault = fault_of(cuda_module, "add", (1,), (32,), 0, floats(32), np.zeros(32, np.float32), np.int32(32))
    assert fault.kind == "null-access"


def test_read_only_array(cuda_module):
    out = np.zeros(32, np.float32)
    out.flags.writeable = False
    fault = fault_of(cuda_module, "add", (1,), (32,), floats(32), floats(32), out, np.int32(32))
    assert fault.kind == "read-only" and fault.argument == "out"


def test_shared_memory_overrun(cuda_module):
    fault = fault_of(cuda_module, "shared_overrun", (1,), (64,), np.zeros(64, np.float32))
    assert fault.kind == "out-of-bounds" and fault.argument == "shared memory" and fault.offset == 256


def test_too_little_dynamic_shared_memory(cuda_module):
    x, w, out = floats(1, 32, 32), floats(6, 5, 5), np.zeros((1, 6, 28, 28), np.float32)
    arguments = (x, w, out, np.int32(32), np.int32(32), np.int32(6))
    fault = fault_of(cuda_module, "conv5x5", (1,), (256,), *arguments, shared_mem=4000)
    assert fault.kind == "out-of-bounds" and fault.argument == "shared memory"


def test_uninitialised_shared_memory(cuda_module):
    fault = fault_of(cuda_module, "uninitialised", (1,), (64,), np.zeros(64, np.float32))
    assert fault.kind == "uninitialised-shared" and fault.thread == (0, 0, 0) and fault.offset == 63 * 4


def test_barrier_in_divergent_code(cuda_module):
    fault = fault_of(cuda_module, "barrier_in_half_warp", (1,), (64,), np.zeros(64, np.float32))
    assert fault.kind == "divergent-barrier"


def test_barrier_after_exit_of_other_warps(cuda_module):
    x = np.zeros(64, np.float32)
    assert fault_of(cuda_module, "barrier_after_exit", (1,), (64,), x).kind == "divergent-barrier"
    with cuda_device(allow_early_exit=True):
        run(cuda_module, "barrier_after_exit", (1,), (64,), x)
    assert x.tolist() == [1.0] * 32 + [0.0] * 32


def test_deadlock(cuda_module):
    fault = fault_of(cuda_module, "different_barriers", (1,), (64,), np.zeros(64, np.float32))
    assert fault.kind == "deadlock" and "warp 0 at barrier 1, warp 1 at barrier 2" in str(fault)


def test_endless_loop(cuda_module):
    with cuda_device(instruction_limit=5_000_000):
        assert fault_of(cuda_module, "endless", (1,), (32,), np.zeros(1, np.int32)).kind == "runaway"


def test_shuffle_with_missing_lanes(cuda_module):
    fault = fault_of(cuda_module, "shuffle_in_half_warp", (1,), (32,), np.zeros(32, np.float32))
    assert fault.kind == "invalid-warp-operation"


def test_trap():
    module = RawModule(code='extern "C" __global__ void check(int* x) { if (x[threadIdx.x] != 0) __trap(); }')
    x = np.zeros(32, np.int32)
    run(module, "check", (1,), (32,), x)
    x[7] = 1
    fault = fault_of(module, "check", (1,), (32,), x)
    assert fault.kind == "trap" and fault.thread == (7, 0, 0)


def test_unsupported_instruction_is_named():
    ptx = """.version 8.0
.target sm_90
.address_size 64
.visible .entry k(.param .u64 k_param_0)
{
  .reg .b32 %r<2>;
  tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%r0], [%r1], 128;
  ret;
}
"""
    with pytest.raises(ptxsim.UnsupportedPTX, match=r"tensormap.cp_fenceproxy.*PTX line 7"):
        ptxsim.launch(ptxsim.Module(ptx).kernels["k"], 1, 32, [None])


# ---------------------------------------------------------------- races


def races_of(module, name, grid, block, *args, **options):
    with cuda_device(races="report", **options) as device:
        run(module, name, grid, block, *args)
    return device.launches[-1].races


def test_shared_memory_race():
    import kernels_cuda

    module = RawModule(code=kernels_cuda.SOURCE, options=("-DWITHOUT_BARRIER",))
    a, b, c = floats(32, 32), floats(32, 32), np.zeros((32, 32), np.float32)
    found = races_of(module, "matmul", (2, 2), (16, 16), a, b, c, *[np.int32(32)] * 3)
    lines = module.code.splitlines()
    assert any(
        r.location == "shared memory"
        and "fmaf" in lines[r.first.line - 1]
        and "a[threadIdx.y]" in lines[r.second.line - 1]
        or "b[threadIdx.y]" in lines[r.second.line - 1]
        for r in found
    )


def test_missing_barrier_in_reduction():
    import kernels_cuda

    module = RawModule(code=kernels_cuda.SOURCE, options=("-DWITHOUT_BARRIER",))
    with cuda_device(races=True), pytest.raises((ptxsim.RaceFound, ptxsim.DeviceFault)):
        run(module, "reduce_sum", (4,), (256,), floats(4000), np.zeros(1, np.float32), np.int32(4000))


def test_race_between_blocks(cuda_module):
    x, y = np.zeros(64, np.float32), floats(256)
    with cuda_device(races=True), pytest.raises(ptxsim.RaceFound) as caught:
        run(cuda_module, "accumulate_without_atomics", (4,), (64,), x, y)
    race = caught.value.races[0]
    assert race.location == "argument 'x'" and race.first_block != race.second_block
    assert "x[threadIdx.x] +=" in cuda_module.code.splitlines()[race.second.line - 1]


@pytest.mark.parametrize("mistake", ["-DWITHOUT_FENCE", "-DWITHOUT_ACQUIRE"])
def test_missing_fence_is_a_race(mistake):
    import kernels_cuda

    module = RawModule(code=kernels_cuda.SOURCE, options=(mistake,))
    x, partial, out, ticket = floats(1000), np.zeros(16, np.float32), np.zeros(1, np.float32), np.zeros(1, np.uint32)
    found = races_of(module, "last_block_sum", (16,), (64,), x, partial, ticket, out, np.int32(1000))
    assert {r.location for r in found} == {"argument 'partial'"}


def test_several_seeds_report_schedule_dependent_results(cuda_module):
    x, y = np.zeros(64, np.float32), floats(256)
    with cuda_device(races="report", seeds=4) as device:
        run(cuda_module, "accumulate_without_atomics", (4,), (64,), x, y)
    assert device.launches[-1].schedule_dependent == ["x"]
