"""Weight gradients that one split sums: they are rounded and stored at once, with nothing left in float32."""

from typing import Any

import pytest
import torch
from devices import running
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")


class Allocations(TorchDispatchMode):
    """Remembers the dtypes of the tensors that launchers allocate in a `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        if func.overloadpacket in (torch.ops.aten.new_empty, torch.ops.aten.empty_like, torch.ops.aten.empty):
            self.dtypes.append(result.dtype)
        return result


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_a_single_split_takes_no_second_launch_and_no_float32(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernels.triton import conv2d_weight_grad, linear_backward, splits

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a second launch")

    dy, x, weight = (torch.randn(shape, dtype=dtype) for shape in ((8, 6), (8, 5), (6, 5)))
    dy_image, image = torch.randn(2, 3, 4, 4, dtype=dtype), torch.randn(2, 2, 6, 6, dtype=dtype)
    monkeypatch.setattr(splits, "launch", refuse)
    with running("triton"), Allocations() as allocations:
        results = linear_backward(dy, None, x, weight, (True, True, True), None)
        results += conv2d_weight_grad(dy_image, image, (3, 3), True, (1, 1), (0, 0), (1, 1), 1)
    assert allocations.dtypes.count(dtype) >= len(results) == 5
    assert torch.float32 not in allocations.dtypes
