"""How far a result may lie from the judge's, which computes in float64 on the same inputs: one rule for every operation.

    |result - judged| <= u |judged| + 4 (a + j) sqrt(terms) magnitude + s

u is the unit roundoff of the result's dtype (it is rounded once), a that of the dtype that sums run in (SUMS_IN), j the
judge's own, terms the number of summed terms, magnitude the sum of their absolute values, s half the smallest number of
the result's dtype and the smallest normal one of the sums' (below it they may underflow). Rounding errors of n terms
walk at random, so they grow with sqrt(n). Where magnitude is 0 nothing is summed, and the result must be the judged
number rounded once.
"""

import torch
from torch import Tensor

SUMS_IN = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}


def roundoff(dtype: torch.dtype) -> float:
    """The largest relative error of rounding to the dtype."""
    return torch.finfo(dtype).eps / 2


def rounded_between(dtype: torch.dtype) -> float:
    """The factor for the magnitude of what is computed from an earlier result, which was rounded to the dtype."""
    return roundoff(dtype) / roundoff(SUMS_IN[dtype])


def tolerance(dtype: torch.dtype, judged: Tensor, terms: Tensor | float, magnitude: Tensor | float) -> Tensor:
    """The largest allowed |result - judged|, element by element."""
    sums = SUMS_IN[dtype]
    underflow = torch.finfo(dtype).smallest_normal * roundoff(dtype) + torch.finfo(sums).smallest_normal
    walk = 4 * (roundoff(sums) + roundoff(torch.float64)) * torch.as_tensor(terms, dtype=torch.float64).sqrt()
    return roundoff(dtype) * judged.abs() + walk * magnitude + underflow


def errors(result: Tensor, judged: Tensor, terms: Tensor | float = 1, magnitude: Tensor | float = 0) -> Tensor:
    """|result - judged| of a float dtype's result in units of `tolerance`, element by element: above 1 it is wrong.

    It is 0 where the result is the judged number rounded once, infinite where one of the two is NaN or infinite alone.
    """
    rounded = judged.to(result.dtype)
    same = (result == rounded) | (result.isnan() & rounded.isnan())
    error = (result.double() - judged).abs() / tolerance(result.dtype, judged, terms, magnitude)
    return torch.where(same, 0.0, error.nan_to_num(nan=torch.inf, posinf=torch.inf))
