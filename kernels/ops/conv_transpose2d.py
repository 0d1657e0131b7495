"""Two-dimensional transposed convolution, as torch.nn.functional.conv_transpose2d.

    y[n, o, i sh + p dh - ph, j sw + q dw - pw] = bias[o] + sum over c, i, j, p, q of input[n, c, i, j] weight[c, o, p, q]

Each output map o of group g sums over that group's input maps c, and over all (i, j, p, q) that meet there. Without the
bias it is the gradient of a convolution's input: of the convolution with this weight that makes (C, H, W) of (O, OH, OW).
So there is no primitive here: that gradient is one, and its derivatives are the two others of conv2d.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function, has_torch_function_variadic

from kernels.backend import chosen
from kernels.integration.autocast import low_precision
from kernels.integration.memory_format import is_channels_last, to_channels_last
from kernels.ops.arguments import LARGE, MOST_PIXELS, bounded, check_layer, pair, remembered, whole
from kernels.ops.conv2d import as_batch, check_dimensions, check_maps, check_pixels, input_grad
from kernels.sizes import Pair, spanned_size

NAME = "conv_transpose2d"


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Spreads input (N, C, H, W) or (C, H, W) by weight (C, O/groups, KH, KW), adds bias (O), gives (N, O, OH, OW).

    OH = (H - 1) stride - 2 padding + dilation (KH - 1) + output_padding + 1; output_padding is less than stride or dilation.
    float16, bfloat16 (summed in float32, rounded, the bias added), float32, float64. Raises RuntimeError, TypeError,
    ValueError as torch does.
    """
    if has_torch_function_variadic(input, weight, bias) and not is_compiling():
        arguments = (input, weight, bias, stride, padding, output_padding, groups, dilation)
        return handle_torch_function(conv_transpose2d, arguments[:3], *arguments)
    input, weight, bias = low_precision(input, weight, bias)
    check_layer(NAME, input, weight, bias)
    shapes = input.shape, weight.shape, None if bias is None else bias.shape
    geometry, size, beyond = checked_geometry(
        *shapes,
        pair(NAME, "stride", stride, 1),
        pair(NAME, "padding", padding, 0),
        pair(NAME, "output_padding", output_padding, 0),
        pair(NAME, "dilation", dilation, 1),
        whole(NAME, "groups", groups),
    )
    images = as_batch(input, beyond)
    y = input_grad(images, weight, size, *geometry, chosen())
    if bias is not None:
        y = y + bias.view(-1, 1, 1)
    if is_channels_last(images) or is_channels_last(weight):
        y = to_channels_last(y)
    return y if input.dim() == 4 else y.squeeze(0)


@remembered
def checked_geometry(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    bias_shape: Sequence[int] | None,
    stride: Pair,
    padding: Pair,
    output_padding: Pair,
    dilation: Pair,
    groups: int,
) -> tuple[tuple[Pair, Pair, Pair, int], Pair, tuple[int, int, int, int] | None]:
    """The convolution's geometry, (OH, OW), and zeros beyond the input, None where none; RuntimeError for what does not fit.

    Where output_padding is a whole stride and more, the convolution has windows beyond those whose gradient the input is.
    """
    check_dimensions(NAME, "(C, O/groups, KH, KW)", input_shape, weight_shape, groups)
    c_in, c_group, kh, kw = weight_shape
    h, w = input_shape[-2:]
    check_maps(NAME, "weight.shape[0]", c_in, c_group * groups, input_shape, weight_shape, bias_shape)
    if 0 in (c_group, kh, kw):
        raise RuntimeError(f"{NAME}: expected weight to have no empty dimension, got shape {tuple(weight_shape)}")
    check_pixels(NAME, (h, w), input_shape)
    if any(o >= max(s, d) for o, s, d in zip(output_padding, stride, dilation, strict=True)):
        raise RuntimeError(
            f"{NAME}: expected output_padding to be less than stride {stride} or dilation {dilation}, got {output_padding}"
        )
    oh, ow = spanned_size((h, w), (kh, kw), stride, padding, dilation)
    size = oh + output_padding[0], ow + output_padding[1]
    if min(size) < 1:
        raise RuntimeError(
            f"{NAME}: expected padding to leave an output, got input {tuple(input_shape)}, weight {tuple(weight_shape)},"
            f" stride {stride}, padding {padding}, dilation {dilation}: output size would be {size}"
        )
    whole_h, whole_w = (n + 2 * p for n, p in zip(size, padding, strict=True))
    if max(*stride, *padding, *dilation) >= LARGE and whole_h * whole_w > MOST_PIXELS:  # as check_padding
        raise RuntimeError(
            f"{NAME}: expected stride, padding and dilation to give at most {MOST_PIXELS} pixels an image,"
            f" got {stride}, {padding} and {dilation}"
        )
    bottom, right = (o // s for o, s in zip(output_padding, stride, strict=True))
    dilation = (dilation[0] if kh > 1 else 1, dilation[1] if kw > 1 else 1)  # of one element it may be any number
    geometry = bounded(stride, size, padding), padding, dilation, groups
    return geometry, size, (0, right, 0, bottom) if bottom or right else None
