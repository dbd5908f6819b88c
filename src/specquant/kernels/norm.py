"""The residual stream's sum and its RMS norm (arXiv 1910.07467), also with quantization, in one pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from specquant.kernels.activations import SMALLEST, quantize_per_token
from specquant.kernels.fp8 import quantize_per_token_e4m3
from specquant.kernels.launch import jit, on_gpu, overlapping, tl, triton, wait_for_previous
from specquant.kernels.rounding import row_codes, row_scale

# Normed rows, or their codes and scales.
Normed = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def add_rms_norm(
    x: torch.Tensor,
    delta: torch.Tensor | None,
    weight: torch.Tensor,
    epsilon: float,
    quantized: bool = False,
    code_dtype: torch.dtype = torch.int8,
    next_early: bool = False,
) -> tuple[torch.Tensor, Normed]:
    """Add delta to x and normalize the sum, both [rows, size] of one dtype; weight: [size].

    Returns the sum (x itself where delta is None) and its norm: x / sqrt(mean(x**2) + epsilon) * weight, computed in
    float32 (float64 for float64 inputs) from the rounded sum and rounded once. quantized: the norm's codes and scales
    instead, as `quantize_per_token` makes them of the rounded norm, or with torch.float8_e4m3fn as `code_dtype` as
    `quantize_per_token_e4m3` does. A row does not depend on the other rows. next_early: as of `overlapping`.
    """
    if on_gpu(x):
        return add_rms_norm_triton(x, delta, weight, epsilon, quantized, code_dtype, next_early)
    return add_rms_norm_reference(x, delta, weight, epsilon, quantized, code_dtype)


def add_rms_norm_reference(
    x: torch.Tensor,
    delta: torch.Tensor | None,
    weight: torch.Tensor,
    epsilon: float,
    quantized: bool = False,
    code_dtype: torch.dtype = torch.int8,
) -> tuple[torch.Tensor, Normed]:
    """What `add_rms_norm` computes, by torch."""
    x = x if delta is None else x + delta
    normed = F.rms_norm(x, weight.shape, weight, epsilon)
    if quantized:
        return x, (quantize_per_token if code_dtype == torch.int8 else quantize_per_token_e4m3)(normed)
    return x, normed


def add_rms_norm_triton(
    x: torch.Tensor,
    delta: torch.Tensor | None,
    weight: torch.Tensor,
    epsilon: float,
    quantized: bool = False,
    code_dtype: torch.dtype = torch.int8,
    next_early: bool = False,
) -> tuple[torch.Tensor, Normed]:
    """`add_rms_norm` by one launch, a block for each row; codes have their own dtype."""
    rows, size = x.shape
    x = x.contiguous()
    total = x if delta is None else torch.empty_like(x)
    normed = torch.empty_like(x, dtype=code_dtype if quantized else x.dtype)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device) if quantized else None
    block = triton.next_power_of_2(size)
    _add_rms_norm_kernel[(rows,)](
        x,
        None if delta is None else delta.contiguous(),
        weight,
        total,
        normed,
        scales,
        size,
        epsilon,
        SMALLEST=SMALLEST,
        BLOCK=block,
        num_warps=max(1, min(16, block // 512)),
        **overlapping(x.device, next_early),
    )
    return total, (normed, scales) if quantized else normed


@jit
def _add_rms_norm_kernel(
    x,
    delta,
    weight,
    total,
    normed,
    scales,
    size,
    epsilon,
    SMALLEST: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAPPING: tl.constexpr,
):
    wait_for_previous(OVERLAPPING)
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < size
    at = row * size + column
    values = tl.load(x + at, mask=inside, other=0.0)
    factor = tl.load(weight + column, mask=inside, other=0.0)  # now, that it need not be waited for after the sum
    if delta is not None:
        added = tl.load(delta + at, mask=inside, other=0.0)
        values = (values.to(tl.float32) + added.to(tl.float32)).to(values.dtype)
        tl.store(total + at, values, mask=inside)
    values = values.to(tl.float32)
    shrink = tl.rsqrt(tl.sum(values * values, 0) / size + epsilon)
    result = values * shrink * factor.to(tl.float32)
    result = result.to(x.dtype.element_ty)
    if scales is not None:
        result = result.to(tl.float32)
        scale = row_scale(tl.max(tl.abs(result), 0), normed.dtype.element_ty, SMALLEST)
        tl.store(normed + at, row_codes(result, scale, normed.dtype.element_ty), mask=inside)
        tl.store(scales + row, scale)
    else:
        tl.store(normed + at, result, mask=inside)
