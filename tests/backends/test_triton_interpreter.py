"""Triton's interpreter computes the same, bit for bit, with what the tests let it remember and without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="Triton does not interpret")

SCRIPT = """
import interpreter, torch
import kernels, kernels.functional as F

def results():
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        images = torch.randn(2, 3, 7, 9, dtype=dtype, requires_grad=True)
        weight, bias = torch.randn(4, 3, 3, 2, dtype=dtype, requires_grad=True), torch.randn(4, dtype=dtype)
        scores = torch.randn(5, 9, dtype=dtype, requires_grad=True)
        for y, *_ in (
            (F.conv2d(images, weight, bias, (2, 1), (0, 1)),),
            (F.conv2d_relu_max_pool2d(images, weight, bias),),
            F.max_pool2d(images, (3, 2), 2, 1, return_indices=True),
            (F.linear_relu(images, torch.randn(3, 9, dtype=dtype)),),
            (F.softmax(scores, 1),),
            (F.cross_entropy(scores, torch.tensor([0, 8, -100, 3, 3]), label_smoothing=0.1),),
            (F.mse_loss(scores, torch.zeros_like(scores)),),
            (F.sigmoid(scores),),
        ):
            leaves = (images, weight, scores)
            gradients = torch.autograd.grad(y, leaves, torch.randn_like(y), retain_graph=True, allow_unused=True)
            for result in (y.detach(), *gradients):
                if result is not None:
                    yield result.reshape(-1).view(torch.uint8)

with kernels.use_backend("triton"):
    plain = list(results())
    assert len(plain) == 2 * (8 + 10)  # outputs, gradients
    interpreter.quicken()
    for _ in range(2):  # remembering, and remembered
        for expected, result in zip(plain, results(), strict=True):
            assert torch.equal(expected, result)
"""


def test_what_is_remembered_changes_no_bit() -> None:
    path = os.pathsep.join([str(Path(__file__).parents[1]), *(folder or os.getcwd() for folder in sys.path)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
