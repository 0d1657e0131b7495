"""Blocks that wait for each other: grid barriers, cooperative launches, and what race mode knows of them."""

import contextlib

import numpy as np
import ptxsim
import pytest
from conftest import HAS_TRITON
from ptxsim.cuda import RawKernel, RawModule, cuda_device

# A sum over blocks in phases: after every barrier, each block that is left adds another block's values.
SOURCE = r"""
#ifdef COOPERATIVE
#include <cooperative_groups.h>
#endif
#ifndef EXPECTED
#define EXPECTED gridDim.x
#endif
#ifdef WITHOUT_FENCE
#define FENCE
#else
#define FENCE __threadfence();
#endif
#ifdef WITHOUT_ACQUIRE
#define ACQUIRE_FENCE
#else
#define ACQUIRE_FENCE __threadfence();
#endif

__device__ void grid_barrier(unsigned* counter, unsigned phase) {
#if defined(WITHOUT_BARRIER)
#elif defined(COOPERATIVE)
  cooperative_groups::this_grid().sync();
#else
#ifndef WITHOUT_BLOCK_BARRIER
  __syncthreads();
#endif
#ifdef COUNTER_NOT_RESET
  phase = 1;
#endif
  if (threadIdx.x == 0) {
#if defined(ORDERED)
    unsigned seen;
    asm volatile(RELEASING " [%0], 1;" ::"l"(counter) : "memory");
    do { asm volatile(ACQUIRING " %0, [%1];" : "=r"(seen) : "l"(counter) : "memory"); } while (seen < phase * (EXPECTED));
#elif defined(POLL_WITH_ATOMICS)
    FENCE
    atomicAdd(counter, 1);
    while (atomicAdd(counter, 0) < phase * (EXPECTED)) {}
    ACQUIRE_FENCE
#elif defined(BACK_OFF)
    FENCE
    atomicAdd(counter, 1);
    for (unsigned ns = 8; *(volatile unsigned*)counter < phase * (EXPECTED);) {
      __nanosleep(ns);
      if (ns < 256) ns *= 2;
    }
    ACQUIRE_FENCE
#else
    FENCE
    atomicAdd(counter, 1);
    while (*(volatile unsigned*)counter < phase * (EXPECTED)) {}
    ACQUIRE_FENCE
#endif
  }
#ifndef WITHOUT_BLOCK_BARRIER
  __syncthreads();
#endif
#endif
}

extern "C" __global__ void sum_of_blocks(const float* x, float* partial, unsigned* counter, int n) {
  float sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
  partial[blockIdx.x * blockDim.x + threadIdx.x] = sum;
  unsigned phase = 0;
  for (int left = gridDim.x; left > 1;) {
    grid_barrier(counter, ++phase);
    int half = (left + 1) / 2;
    if (blockIdx.x + half < left)
      partial[blockIdx.x * blockDim.x + threadIdx.x] += partial[(blockIdx.x + half) * blockDim.x + threadIdx.x];
    left = half;
  }
}

extern "C" __global__ void uneven(const int* work, int* out, unsigned* counter, int phases) {
  for (int phase = 0; phase < phases; phase++) {
    int x = threadIdx.x;
#pragma unroll 1
    for (int i = work[phase * gridDim.x + blockIdx.x]; i > 0; i--) x = x * x + i;
    out[blockIdx.x * blockDim.x + threadIdx.x] = x;
    grid_barrier(counter, phase + 1);
  }
}
"""
BARRIERS = {
    "volatile": (),
    "atomic polls": ("-DPOLL_WITH_ATOMICS",),
    "back-off": ("-DBACK_OFF",),
    "acquire and release": (
        "-DORDERED",
        '-DRELEASING="red.release.gpu.global.add.u32"',
        '-DACQUIRING="ld.acquire.gpu.global.u32"',
    ),
    "cooperative groups": ("-DCOOPERATIVE",),
}
X = np.random.default_rng(0).integers(-50, 50, 3000).astype(np.float32)  # sums are exact
THREADS = 64


def sum_of_blocks(options, blocks, cooperative=True):
    """The sum that the kernel finds, which is that of X."""
    module = RawModule(code=SOURCE, options=options, enable_cooperative_groups=cooperative)
    partial, counter = np.zeros(blocks * THREADS, np.float32), np.zeros(1, np.uint32)
    module.get_function("sum_of_blocks")((blocks,), (THREADS,), (X, partial, counter, np.int32(len(X))))
    return partial[:THREADS].sum()


@pytest.fixture(autouse=True)
def compiler(cuda_module):
    """Skips where there is no CUDA compiler."""


@pytest.mark.parametrize("races", [False, True], ids=["plain", "races"])
@pytest.mark.parametrize("blocks", [1, 2, 7, 108, 300])
@pytest.mark.parametrize("barrier", BARRIERS)
def test_a_sum_in_phases(barrier, blocks, races):
    with cuda_device(races=races):
        assert sum_of_blocks(BARRIERS[barrier], blocks) == X.sum()


@pytest.mark.parametrize("barrier", BARRIERS)
def test_schedules_neither_change_the_result_nor_the_work(barrier):
    """Waiting is not counted: however long it took, every block polls once per barrier."""
    with cuda_device() as device:
        sum_of_blocks(BARRIERS[barrier], 9)
    work = device.launches[0].counters
    with cuda_device(races=True, seeds=5) as device:
        assert sum_of_blocks(BARRIERS[barrier], 9) == X.sum()
        for device.options.seed in range(5, 10):
            sum_of_blocks(BARRIERS[barrier], 9)
    assert device.launches[0].schedule_dependent == []
    if barrier != "back-off":  # which counts the steps of its delay
        for launch in device.launches:
            for counters in (work, launch.counters):  # listed by the addresses that numpy gave them
                counters.arguments.sort(key=lambda argument: argument.name)
            assert launch.counters == work


@pytest.mark.parametrize("races", [False, True], ids=["plain", "races"])
@pytest.mark.parametrize("barrier", ("volatile", "acquire and release", "cooperative groups"))
def test_the_longest_path_has_of_each_phase_the_block_with_most_work(barrier, races):
    def longest_path(*work):
        module = RawModule(code=SOURCE, options=BARRIERS[barrier], enable_cooperative_groups=True)
        phases, blocks = np.shape(work)
        arguments = (
            np.array(work, np.int32),
            np.zeros(blocks * THREADS, np.int32),
            np.zeros(1, np.uint32),
            np.int32(phases),
        )
        with cuda_device(races=races) as device:
            module.get_function("uneven")((blocks,), (THREADS,), arguments)
        counters = device.launches[0].counters
        assert counters.phases == phases + 1 and counters.longest_path <= counters.warp_instructions
        return counters.longest_path

    least = longest_path((1, 1, 1), (1, 1, 1))
    each = longest_path((2, 1, 1), (1, 1, 1)) - least
    assert each > 0
    assert longest_path((8, 1, 1), (1, 1, 9)) == least + (7 + 8) * each
    assert longest_path((8, 1, 9), (1, 5, 4)) == least + (8 + 4) * each


MISTAKES = {
    "no barrier at all": ("-DWITHOUT_BARRIER",),
    "no barrier of the block around it": ("-DWITHOUT_BLOCK_BARRIER",),
    "one block fewer counted": ("-DEXPECTED=gridDim.x-1",),
    "no fence before": ("-DWITHOUT_FENCE",),
    "no fence after": ("-DWITHOUT_ACQUIRE",),
    "counter not reset": ("-DCOUNTER_NOT_RESET",),
    "relaxed instead of release": (
        "-DORDERED",
        '-DRELEASING="red.relaxed.gpu.global.add.u32"',
        '-DACQUIRING="ld.acquire.gpu.global.u32"',
    ),
    "relaxed instead of acquire": (
        "-DORDERED",
        '-DRELEASING="red.release.gpu.global.add.u32"',
        '-DACQUIRING="ld.relaxed.gpu.global.u32"',
    ),
    "release for the block only": (
        "-DORDERED",
        '-DRELEASING="red.release.cta.global.add.u32"',
        '-DACQUIRING="ld.acquire.gpu.global.u32"',
    ),
    "acquire for the block only": (
        "-DORDERED",
        '-DRELEASING="red.release.gpu.global.add.u32"',
        '-DACQUIRING="ld.acquire.cta.global.u32"',
    ),
}


@contextlib.contextmanager
def race_on_partial():
    """The values that the barrier should keep apart; the counter itself may be raced for too."""
    with pytest.raises(ptxsim.RaceFound) as caught:
        yield
    assert "argument 'partial'" in {race.location for race in caught.value.races}


# Mistakes that only some schedules show: a block must come late, or hurry ahead.
RARE = ["one block fewer counted", "counter not reset"]


@pytest.mark.parametrize("seed", [0, 100])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_barrier_is_a_race(mistake, seed):
    with cuda_device(races=True, seed=seed, seeds=10 if mistake in RARE else 1), race_on_partial():
        sum_of_blocks(MISTAKES[mistake], 8)


@pytest.mark.parametrize("barrier", ["atomic polls", "back-off"])
@pytest.mark.parametrize(
    "mistake", ["no fence before", "no fence after", "one block fewer counted", "counter not reset"]
)
def test_the_same_mistakes_with_other_polls(barrier, mistake):
    with cuda_device(races=True, seeds=10 if mistake in RARE else 1), race_on_partial():
        sum_of_blocks(BARRIERS[barrier] + MISTAKES[mistake], 8)


@pytest.mark.parametrize("races", [False, True], ids=["plain", "races"])
def test_one_block_too_many_counted_is_a_deadlock(races):
    with cuda_device(races=races), pytest.raises(ptxsim.DeviceFault, match="all 8 running blocks wait") as caught:
        sum_of_blocks(("-DEXPECTED=gridDim.x+1",), 8)
    fault = caught.value
    assert fault.kind == "deadlock" and fault.thread == (0, 0, 0)
    assert "while (*(volatile unsigned*)counter" in SOURCE.splitlines()[fault.source.line - 1]


# ---------------------------------------------------------------- what the GPU holds


def test_cooperative_launches_end_at_what_the_gpu_holds():
    most = 2 * 2048 // THREADS
    with cuda_device(multiprocessors=2) as device:
        assert sum_of_blocks(BARRIERS["cooperative groups"], most) == X.sum()
        with pytest.raises(ptxsim.LaunchError, match=rf"cooperative launch: {most + 1} blocks.*holds {most} at a time"):
            sum_of_blocks(BARRIERS["cooperative groups"], most + 1)
    assert len(device.launches) == 1


@pytest.mark.parametrize("races", [False, True], ids=["plain", "races"])
def test_a_barrier_over_more_blocks_than_fit_is_a_deadlock(races):
    """A launch that is not cooperative is not refused, and hangs on a GPU."""
    with cuda_device(races=races, multiprocessors=1):
        assert sum_of_blocks((), 32, cooperative=False) == X.sum()
        with pytest.raises(ptxsim.DeviceFault, match="all 32 running blocks wait.*3 further blocks cannot start"):
            sum_of_blocks((), 35, cooperative=False)


def test_cooperative_groups_need_a_cooperative_launch():
    with pytest.raises(ptxsim.DeviceFault, match="trap"):
        sum_of_blocks(BARRIERS["cooperative groups"], 2, cooperative=False)


def test_a_kernel_and_a_call_can_ask_for_a_cooperative_launch():
    code = SOURCE.replace("sum_of_blocks", "sums")
    partial, x = np.zeros(2 * THREADS, np.float32), X
    arguments = (x, partial, np.zeros(1, np.uint32), np.int32(len(x)))
    for at_creation, at_call in (({"enable_cooperative_groups": True}, {}), ({}, {"enable_cooperative_groups": True})):
        RawKernel(code, "sums", BARRIERS["cooperative groups"], **at_creation)((2,), (THREADS,), arguments, **at_call)
        assert partial[:THREADS].sum() == X.sum()


# ---------------------------------------------------------------- waiting


def run(code, grid, block, *args, **options):
    with cuda_device(**options) as device:
        RawKernel(code, "k")((grid,), (block,), args)
    return device.launches[-1].counters


@pytest.mark.parametrize("races", [False, True], ids=["plain", "races"])
def test_waiting_is_not_work(races):
    """Every block but the last waits for 100,000 passes of the last one's loop, under a limit for hardly more than that."""
    code = """extern "C" __global__ void k(volatile int* flag, float* out) {
        if (blockIdx.x == gridDim.x - 1) {
            float v = 0;
            for (int i = 0; i < 100000; i++) v = v * 0.5f + flag[1];
            *out = v;
            __threadfence();
            flag[0] = 1;
        } else {
            while (flag[0] == 0) {}
        }
    }"""
    alone = run(code, 1, 32, np.zeros(2, np.int32), np.zeros(1, np.float32), races=races)
    flag = np.zeros(2, np.int32)
    limit = alone.warp_instructions + 5000
    together = run(code, 50, 32, flag, np.zeros(1, np.float32), races=races, instruction_limit=limit)
    assert flag[0] == 1 and alone.warp_instructions > 300_000
    assert together.warp_instructions < limit


@pytest.mark.parametrize("races", [False, True], ids=["plain", "races"])
@pytest.mark.parametrize(
    "wait",
    [
        "while (flag[0] == 0) {}",
        "while (atomicAdd((int*)flag, 0) == 0) {}",
        "while (atomicCAS((int*)flag, 5, 6) == 0) __nanosleep(100);",
        "for (int ns = 1; flag[0] == 0; ns = ns < 64 ? 2 * ns : 64) __nanosleep(ns);",
        'int v; do { asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(flag)); } while (v == 0);',
        "while (true) { if (flag[0]) break; if (flag[1]) __trap(); }",
    ],
)
def test_a_wait_for_nobody_is_a_deadlock(wait, races):
    code = f'extern "C" __global__ void k(volatile int* flag) {{ {wait} flag[0] = 2; }}'
    with pytest.raises(ptxsim.DeviceFault) as caught:
        run(code, 3, 32, np.zeros(2, np.int32), races=races)
    assert caught.value.kind == "deadlock"


@pytest.mark.parametrize(
    "loop",
    [
        "while (true) atomicAdd((int*)flag, 1);",
        "for (unsigned long long i = 0; flag[0] == 0; i++) if (i == ~0ull) break;",
        "long long begin = clock64(); while (flag[0] == 0 && clock64() - begin < (1ll << 60)) {}",
    ],
)
def test_a_loop_that_changes_something_is_no_wait(loop):
    code = f'extern "C" __global__ void k(volatile int* flag) {{ {loop} }}'
    with pytest.raises(ptxsim.DeviceFault) as caught:
        run(code, 1, 32, np.zeros(2, np.int32), instruction_limit=300_000)
    assert caught.value.kind == "runaway"


@pytest.mark.parametrize("races", [False, True], ids=["plain", "races"])
def test_a_sum_of_volatile_values_is_work(races):
    """A loop of strong loads that goes on by itself counts in full."""
    code = """extern "C" __global__ void k(volatile int* x, int* out, int n) {
        int sum = 0;
        #pragma unroll 1
        for (int i = 0; i < n; i++) sum += x[i];
        *out = sum;
    }"""
    x, out = np.arange(500, dtype=np.int32), np.zeros(1, np.int32)
    counters = run(code, 1, 1, x, out, np.int32(500), races=races)
    assert out[0] == x.sum() and counters.global_load_requests == 500


@pytest.mark.parametrize("races", [False, True], ids=["plain", "races"])
def test_warps_of_a_block_wait_for_each_other(races):
    """Through shared memory, with the order that a fence for the block gives."""
    code = """extern "C" __global__ void k(int* out) {
        __shared__ int data[32];
        __shared__ volatile int ready;
        if (threadIdx.x == 0) ready = 0;
        __syncthreads();
        if (threadIdx.x >= 32) {
            data[threadIdx.x - 32] = threadIdx.x;
            FENCE
            __syncwarp();
            if (threadIdx.x == 32) ready = 1;
        } else {
            while (!ready) {}
            FENCE
            out[threadIdx.x] = data[threadIdx.x];
        }
    }"""
    out = np.zeros(32, np.int32)
    run(code.replace("FENCE", "__threadfence_block();"), 1, 64, out, races=races)
    assert out.tolist() == list(range(32, 64))
    if races:
        with pytest.raises(ptxsim.RaceFound):
            run(code.replace("FENCE", ""), 1, 64, out, races=True)


@pytest.mark.parametrize("races", [False, True], ids=["plain", "races"])
def test_blocks_wait_in_a_chain(races):
    """Each block waits for the one before it, whichever starts first."""
    code = """extern "C" __global__ void k(int* x, volatile int* done) {
        int b = blockIdx.x;
        if (threadIdx.x == 0 && b) { while (!done[b - 1]) {} __threadfence(); }
        __syncthreads();
        x[(b + 1) * 64 + threadIdx.x] = x[b * 64 + threadIdx.x] + 1;
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) done[b] = 1;
    }"""
    x = np.zeros(41 * 64, np.int32)
    run(code, 40, 64, x, np.zeros(40, np.int32), races=races)
    assert (x[40 * 64 :] == 40).all()


# ---------------------------------------------------------------- Triton

if HAS_TRITON:
    import kernels_triton as kernels
    import torch

    def triton_sum(how, blocks, cooperative=True, **options):
        x = torch.from_numpy(X)
        partial, counter = torch.zeros(blocks * 128), torch.zeros(1, dtype=torch.int32)
        with ptxsim.triton_device(**options) as device:
            kernels.sum_of_blocks[(blocks,)](
                x, partial, counter, len(x), HOW=how, BLOCK=128, launch_cooperative_grid=cooperative
            )
        assert partial[:128].sum().item() == X.sum()
        return device.launches[0].counters

    POLLS = ["atomic polls", "volatile polls"]

    @pytest.mark.parametrize("races", [False, True], ids=["plain", "races"])
    @pytest.mark.parametrize("blocks", [1, 2, 7, 108, 300])
    @pytest.mark.parametrize("polls", POLLS)
    def test_triton_sum_in_phases(polls, blocks, races):
        triton_sum(polls, blocks, races=races)

    @pytest.mark.parametrize("polls", POLLS)
    def test_triton_schedules(polls):
        for seed in range(8):
            triton_sum(polls, 9, races=True, seed=seed)

    @pytest.mark.parametrize(
        "mistake",
        [
            "no barrier",
            "one program fewer",
            "counter not reset",
            "relaxed arrival",
            "relaxed polls",
            "no acquire",
            "arrival for the block only",
        ],
    )
    def test_a_mistake_in_a_triton_barrier_is_a_race(mistake):
        with race_on_partial():
            triton_sum(
                mistake, 13, races=True, seeds=15 if mistake in ("one program fewer", "counter not reset") else 1
            )

    @pytest.mark.parametrize("polls", POLLS)
    def test_triton_launches_end_at_what_the_gpu_holds(polls):
        triton_sum(polls, 16, multiprocessors=1)
        with pytest.raises(ptxsim.LaunchError, match="17 blocks.*holds 16 at a time"):
            triton_sum(polls, 17, multiprocessors=1)
        with pytest.raises(ptxsim.DeviceFault, match="1 further blocks cannot start"):
            triton_sum(polls, 17, cooperative=False, multiprocessors=1)
