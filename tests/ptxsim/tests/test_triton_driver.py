"""triton_device as a driver: autotuning, heuristics, argument kinds, faults, restoring the former driver."""

import kernels_triton as kernels
import ptxsim
import pytest
import torch
import triton


def test_former_driver_is_restored_even_after_an_error():
    before, bench = triton.runtime.driver._active, triton.testing.do_bench
    with pytest.raises(RuntimeError, match="boom"):
        with ptxsim.triton_device():
            assert triton.runtime.driver.active.get_current_target().arch == 80
            raise RuntimeError("boom")
    assert triton.runtime.driver._active is before and triton.testing.do_bench is bench


def test_launch_records():
    x, y, out = torch.randn(1000), torch.randn(1000), torch.zeros(1000)
    with ptxsim.triton_device() as device:
        kernels.add[(4,)](x, y, out, 1000, BLOCK=256, num_warps=2)
        kernels.softmax[(2,)](x.view(2, 500), out, 500, BLOCK=512)
    first, second = device.launches
    assert (first.kernel, first.grid, first.num_warps) == ("add", (4, 1, 1), 2)
    assert second.kernel == "softmax" and second.shared_bytes > 0
    assert first.counters.bytes_written == 4000 and first.counters.flops == {"f32": 4 * 256}


def test_nested_devices_use_their_own_architecture():
    x, out = torch.randn(256), torch.zeros(256)
    with ptxsim.triton_device(arch=80) as outer:
        with ptxsim.triton_device(arch=75) as inner:
            kernels.add[(1,)](x, x, out, 256, BLOCK=256)
        kernels.add[(1,)](x, x, out, 256, BLOCK=256)
    assert len(outer.launches) == len(inner.launches) == 1


@pytest.mark.parametrize("arch, target", [(80, "sm_80"), (90, "sm_90a"), (100, "sm_100a"), (120, "sm_120a")])
def test_architectures(arch, target):
    """Every one runs, and Triton takes the instructions that only this generation has."""
    x, y, out = torch.randn(1000), torch.randn(1000), torch.empty(1000)
    with ptxsim.triton_device(arch=arch, races=True):
        compiled = kernels.add[(4,)](x, y, out, 1000, BLOCK=256)
    assert f".target {target}\n" in compiled.asm["ptx"] and torch.equal(out, x + y)


@pytest.mark.parametrize("kernel, argument", [(kernels.add_unmasked_store, "out"), (kernels.add_unmasked_load, "x")])
def test_out_of_bounds(kernel, argument):
    x, y, out = torch.randn(1000), torch.randn(1000), torch.zeros(1000)
    with ptxsim.triton_device(), pytest.raises(ptxsim.DeviceFault) as caught:
        kernel[(8,)](x, y, out, 1000, BLOCK=128)
    fault = caught.value
    assert (fault.kind, fault.argument, fault.block) == ("out-of-bounds", argument, (7, 0, 0))
    assert fault.source.file.endswith("kernels_triton.py")


@pytest.mark.parametrize("kernel", [kernels.overlapping_store, kernels.sum_racy])
def test_races_between_programs(kernel):
    x, out = torch.randn(1000), torch.zeros(1000)
    with ptxsim.triton_device(races=True), pytest.raises(ptxsim.RaceFound) as caught:
        kernel[(8,)](x, out, 1000, BLOCK=128)
    assert any(r.first_block != r.second_block and r.location == "argument 'out'" for r in caught.value.races)
    with ptxsim.triton_device(races="report") as device:
        kernel[(8,)](x, out, 1000, BLOCK=128)
    assert device.launches[0].races


CONFIGS = [triton.Config({"BLOCK": 64}, num_warps=1), triton.Config({"BLOCK": 256}, num_warps=4)]


@pytest.mark.parametrize("choice, block", [("first", 64), ("bound", 256)])
def test_autotune(choice, block):
    tuned = triton.autotune(CONFIGS, key=["n"])(kernels.add)
    x, y, out = torch.randn(100_000), torch.randn(100_000), torch.zeros(100_000)
    with ptxsim.triton_device(autotune=choice) as device:
        tuned[lambda meta: (triton.cdiv(100_000, meta["BLOCK"]),)](x, y, out, 100_000)
    assert torch.equal(out, x + y) and len(device.launches) == 1
    assert tuned.best_config.kwargs["BLOCK"] in ((block,) if choice == "first" else (64, 256))


def test_autotune_with_restored_values_and_deprecated_arguments():
    with pytest.warns(DeprecationWarning):
        tuned = triton.autotune(CONFIGS, key=["n"], reset_to_zero=["bins"], warmup=1, rep=1)(kernels.histogram)
    x, bins = torch.randint(0, 10, (1000,), dtype=torch.int32), torch.zeros(10, dtype=torch.int32)
    with ptxsim.triton_device(autotune="bound"):
        tuned[lambda meta: (triton.cdiv(1000, meta["BLOCK"]),)](x, bins, 1000)
    assert torch.equal(bins.long(), torch.bincount(x, minlength=10))


def test_heuristics():
    kernel = triton.heuristics({"BLOCK": lambda args: triton.next_power_of_2(args["columns"])})(kernels.softmax)
    x = torch.randn(4, 300)
    out = torch.zeros_like(x)
    with ptxsim.triton_device():
        kernel[(4,)](x, out, 300)
    torch.testing.assert_close(out, x.softmax(1))


@pytest.mark.parametrize("flag", [True, False])
def test_scalar_arguments(flag):
    x, out = torch.randn(100), torch.zeros(100)
    with ptxsim.triton_device():
        kernels.mean_pair[(1,)](x, out, 2.5, flag, 100, BLOCK=128)
    assert torch.equal(out, x * 2.5 if flag else x)


def test_empty_grid_and_empty_tensor():
    x = torch.zeros(0)
    with ptxsim.triton_device() as device:
        kernels.add[(0,)](x, x, x, 0, BLOCK=128)
        kernels.add[(1,)](x, x, x, 0, BLOCK=128)
    assert len(device.launches) == 1


def test_shared_memory_limit_of_the_architecture():
    a = torch.zeros(64, 64).half()
    with ptxsim.triton_device(arch=80), pytest.raises(triton.runtime.errors.OutOfResources):
        kernels.matmul[(1, 1)](
            a, a, torch.zeros(64, 64), 64, 64, 64, BM=64, BN=64, BK=64, PRECISION="ieee", num_stages=14
        )
