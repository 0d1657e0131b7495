"""tcgen05: what Triton makes of matmul for sm_100, and what happens when a wait or an allocation is missing."""

import re

import kernels_triton as kernels
import numpy as np
import ptxsim
import pytest
import torch

M, N, K = 130, 70, 96


def operands(dtype, left="row", right="row"):
    torch.manual_seed(0)
    a, b = torch.randint(-8, 8, (M, K)).to(dtype), torch.randint(-8, 8, (K, N)).to(dtype)
    return a if left == "row" else a.t().contiguous().t(), b if right == "row" else b.t().contiguous().t()


def multiply(a, b, tile, precision="ieee", stages=3):
    """The product, the compiled kernel and the record of its launch."""
    c = torch.zeros(M, N)
    with ptxsim.triton_device(arch=100, races=True) as device:
        compiled = kernels.matmul_strided[(-(-M // tile[0]), -(-N // tile[1]))](
            a, b, c, M, N, K, *a.stride(), *b.stride(), *tile, precision, num_stages=stages
        )
    return c, compiled, device.launches[0]


@pytest.mark.parametrize(
    "dtype, tile, left, right",
    [
        (torch.float16, (128, 64, 32), "row", "row"),
        (torch.float16, (128, 64, 32), "column", "row"),  # A goes through tensor memory
        (torch.float16, (64, 128, 128), "column", "column"),
        (torch.bfloat16, (64, 32, 64), "row", "column"),
        (torch.bfloat16, (128, 128, 64), "column", "row"),
    ],
)
def test_matmul(dtype, tile, left, right):
    a, b = operands(dtype, left, right)
    c, compiled, record = multiply(a, b, tile)
    assert "tcgen05.mma" in compiled.asm["ptx"]
    assert torch.equal(c, a.float() @ b.float())
    padded = -(-M // tile[0]) * tile[0] * -(-N // tile[1]) * tile[1] * -(-K // tile[2]) * tile[2]
    assert record.counters.tensor_flops == {"f16": 2 * padded}


@pytest.mark.parametrize("tile", [(128, 64, 32), (64, 32, 16)])
def test_matmul_tf32(tile):
    a, b = operands(torch.float32, "row", "column")
    c, compiled, _ = multiply(a, b, tile, "tf32")
    assert "kind::tf32" in compiled.asm["ptx"]
    assert torch.equal(c, a @ b)


# ---------------------------------------------------------------- mistakes


@pytest.fixture(scope="module")
def compiled():
    return multiply(*operands(torch.float16), (128, 64, 32))[1]


def launch(ptx, compiled, **options):
    a, b = (x.numpy() for x in operands(torch.float16))
    c = np.zeros((M, N), np.float32)
    kernel = ptxsim.Module(ptx).kernels["matmul_strided"]
    arguments = [a, b, c, M, N, K, K, N]
    arguments += [None] * (len(kernel.parameters) - len(arguments))
    ptxsim.launch(kernel, (2, 2), 128, arguments, shared=compiled.metadata.shared, **{"races": True, **options})
    return c, a.astype(np.float32) @ b.astype(np.float32)


def faults(pattern, compiled, replacement=""):
    """Kinds of what is found in the kernel without what the pattern matches, for some schedules."""
    ptx, count = re.subn(pattern, replacement, compiled.asm["ptx"])
    assert count
    found = []
    for seed in range(2):
        try:
            launch(ptx, compiled, seed=seed)
        except ptxsim.RaceFound as fault:
            found += [race.kind for race in fault.races]
        except ptxsim.DeviceFault as fault:
            found.append(fault.kind)
    return set(found)


def test_the_kernel_itself_is_right(compiled):
    np.testing.assert_array_equal(*launch(compiled.asm["ptx"], compiled))


def test_not_waiting_for_the_product(compiled):
    assert faults(r"@!complete bra\.uni waitLoop;", compiled) & {
        "read-after-write",
        "write-after-read",
        "invalid-mbarrier",
    }


def test_not_publishing_the_operands(compiled):
    assert faults(r"fence\.proxy\.async\S*;", compiled) == {"missing-proxy-fence"}


def test_not_committing(compiled):
    assert faults(r"@%\w+ tcgen05\.commit[^;]*;", compiled) == {"deadlock"}


def test_not_waiting_for_the_copies(compiled):
    assert faults(r"cp\.async\.wait_group\s+\d+;", compiled) == {"pending-copy"}


def test_freed_too_early(compiled):
    freed = re.search(r"@%\w+ (tcgen05\.dealloc\S*)\s+(%\w+), (\d+);", compiled.asm["ptx"])
    early = r"\g<0> setp.lt.u32 %p1, %tid.x, 32; " + freed[0]
    assert "invalid-tensor-memory" in faults(r"tcgen05\.wait::st\.sync\.aligned;", compiled, early)


def test_lanes_of_another_warp(compiled):
    assert faults(r"and\.b32(\s+%r\d+, %r\d+, )6291456;", compiled, r"and.b32\g<1>0;") == {"invalid-tensor-memory"}


def test_more_columns_than_there_are(compiled):
    assert faults(r"(tcgen05\.alloc\S*\s+\S+), 64;", compiled, r"\g<1>, 1024;") == {"invalid-tensor-memory"}
