"""4-bit weights, int8 activations with a scale per token: QQQ (arXiv 2406.09904) and QoQ (QServe, arXiv 2405.04532).

All four forms multiply int8 by int8 into int32, as `w8a8` does; they differ in how the int8 weight comes from the
stored 4-bit code. Stored are codes, two per byte, [out, in / 2], and

* QQQ per channel: fp16 `scales` [out]. int8 weight = code - 8.
* QQQ per group: fp16 `scales` [out]; fp16 `group_scales` [out, in / 128], already divided by the channel's scale.
  int8 weight = (code - 8) * group scale, the exact product rounded once, half to even. (QQQ's kernel does it by one
  fp16 fused multiply-add onto 1152, where fp16 numbers are integers.)
* QoQ per channel: fp16 `scales` [out]; uint8 `zeros` [out], 0 to 15. int8 weight = code - zero. A kernel may multiply
  the codes as they are and subtract the zero point times the sum of the token's int8 activations: the same integer.
  (QServe, section 5.2.2, subtracts its share of the token's sum *before* quantization. Then code and zero point see
  different activations, and the difference grows from layer to layer: on the tiny target rounding errors of 1e-15 grow
  to 1e-2 within nine products, so that no verification agrees with decoding token by token. Integers cost the same.)
* QoQ per group, progressive: fp16 `scales` [out]; uint8 `group_scales` [out, in / 128], 1 to 16; uint8 `group_zeros`,
  0 to 15. int8 weight = (code - zero) * group scale: integers throughout. code * group scale <= 240 fits a byte, and
  the quantizer keeps every weight within +-127 (QServe, section 4.1).
"""

import torch

from specquant.kernels.activations import compute_dtype
from specquant.kernels.int4 import unpack_int4
from specquant.kernels.w8a8 import w8a8_product


def qqq_weight(codes: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The int8 weights [out, in] of QQQ per channel, held in `dtype`."""
    return unpack_int4(codes).to(dtype) - 8


def qqq_group_weight(
    codes: torch.Tensor, group_scales: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The int8 weights [out, in] of QQQ per group, held in `dtype`."""
    integers = qqq_weight(codes, dtype)
    return integers.mul_(_per_input(group_scales, integers)).round_()


def qoq_weight(codes: torch.Tensor, zeros: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The int8 weights [out, in] of QoQ per channel, held in `dtype`."""
    return unpack_int4(codes).to(dtype).sub_(zeros[:, None])


def qoq_group_weight(
    codes: torch.Tensor, group_scales: torch.Tensor, group_zeros: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The int8 weights [out, in] of QoQ per group, held in `dtype`."""
    integers = unpack_int4(codes).to(dtype)
    return integers.sub_(_per_input(group_zeros, integers)).mul_(_per_input(group_scales, integers))


def qqq(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x [rows, in] times the matrix stored as QQQ per channel -> [rows, out] in x's dtype."""
    return w8a8_product(x, qqq_weight(codes, compute_dtype(x)), scales)


def qqq_group(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, group_scales: torch.Tensor) -> torch.Tensor:
    """x [rows, in] times the matrix stored as QQQ per group -> [rows, out] in x's dtype."""
    return w8a8_product(x, qqq_group_weight(codes, group_scales, compute_dtype(x)), scales)


def qoq(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """x [rows, in] times the matrix stored as QoQ per channel -> [rows, out] in x's dtype."""
    return w8a8_product(x, qoq_weight(codes, zeros, compute_dtype(x)), scales)


def qoq_group(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    group_scales: torch.Tensor,
    group_zeros: torch.Tensor,
) -> torch.Tensor:
    """x [rows, in] times the matrix stored as QoQ per group -> [rows, out] in x's dtype."""
    return w8a8_product(x, qoq_group_weight(codes, group_scales, group_zeros, compute_dtype(x)), scales)


def _per_input(group_values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Values of groups [out, groups] -> one per input [out, in], in `like`'s dtype."""
    return group_values.to(like.dtype).repeat_interleave(like.shape[1] // group_values.shape[1], dim=1)
