"""Removing one synchronisation from compiled kernels is noticed.

A mutant counts as noticed when a launch raises DeviceFault (which includes races) or gives a wrong
result for one of a few schedules. Some synchronisations that compilers emit are redundant, so a few
pipelined mutants are equivalent to the original; for those the suite asserts a minimum share.
"""

import re

import kernels_triton as kernels
import numpy as np
import ptxsim
import pytest
import torch

M, N, K = 70, 64, 96
SYNCHRONISATIONS = (
    r"bar\.sync\s+0;|cp\.async\.wait_group\s+\d+;|fence\.proxy\.async\S*;|wgmma\.(?:fence|commit_group|wait_group)[^;]*;"
    r"|@!complete bra\.uni waitLoop;"
)


def compile_matmul(arch, stages, dtype, precision):
    """PTX, shared bytes and warps of the matmul kernel, through an ordinary launch."""
    a, b = torch.randn(M, K).to(dtype), torch.randn(K, N).to(dtype)
    with ptxsim.triton_device(arch=arch):
        compiled = kernels.matmul[grid(arch)](
            a, b, torch.zeros(M, N), M, N, K, BM=rows(arch), BN=32, BK=16, PRECISION=precision, num_stages=stages
        )
    return compiled.asm["ptx"], compiled.metadata.shared, a.numpy(), b.numpy()


def rows(arch):
    """Of a tile; from sm_90 on the tensor cores take 64."""
    return 64 if arch >= 90 else 32


def grid(arch):
    return -(-M // rows(arch)), 2


def is_noticed(ptx, shared, a, b) -> bool:
    module = ptxsim.Module(ptx)
    kernel = module.kernels["matmul"]
    expected = a.astype(np.float32) @ b.astype(np.float32)
    for seed in range(3):
        c = np.zeros((M, N), np.float32)
        try:
            ptxsim.launch(
                kernel, grid(module.arch), 128, [a, b, c, M, N, K, None, None], shared=shared, races=True, seed=seed
            )
        except ptxsim.DeviceFault:
            return True
        if not np.abs(c - expected).max() < 0.1:
            return True
    return False


@pytest.mark.parametrize(
    "arch, stages, dtype, precision, minimum_share",
    [
        (75, 1, torch.float32, "ieee", 1.0),
        (80, 1, torch.float32, "ieee", 1.0),
        (80, 3, torch.float32, "tf32", 0.6),
        (80, 3, torch.float16, "ieee", 0.6),
        (90, 3, torch.float16, "ieee", 0.6),
        (90, 2, torch.float32, "tf32", 0.6),
        (100, 3, torch.float16, "ieee", 0.6),
    ],
)
def test_dropping_a_synchronisation_is_noticed(arch, stages, dtype, precision, minimum_share):
    ptx, shared, a, b = compile_matmul(arch, stages, dtype, precision)
    assert not is_noticed(ptx, shared, a, b)
    synchronisations = list(re.finditer(SYNCHRONISATIONS, ptx))
    noticed = [is_noticed(ptx[: m.start()] + ptx[m.end() :], shared, a, b) for m in synchronisations]
    assert synchronisations and sum(noticed) >= minimum_share * len(noticed), [
        (m[0], hit) for m, hit in zip(synchronisations, noticed, strict=False)
    ]


def test_dropping_every_wait_is_noticed():
    ptx, shared, a, b = compile_matmul(80, 3, torch.float16, "ieee")
    assert "cp.async.wait_group" in ptx
    assert is_noticed(re.sub(r"cp\.async\.wait_group\s+\d+;", "", ptx), shared, a, b)
    assert is_noticed(re.sub(r"bar\.sync\s+0;", "", ptx), shared, a, b)
