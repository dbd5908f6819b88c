"""int8 weights with a scale per output channel, int8 activations with a scale per token.

Source: SmoothQuant, arXiv 2211.10438; its per-token dynamic form.

Stored: int8 codes [out, in] within +-127; fp16 scales [out]. A weight is code * scale.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from specquant.kernels.activations import compute_dtype, quantize_per_token
from specquant.kernels.launch import jit, tl, wait_for_previous
from specquant.kernels.products import GROUP, Configuration, add_splits, is_last, launch_product, steps
from specquant.kernels.warp_groups import WarpGroups, multiply_by_groups, recorded

EXACT_CHUNK = 1024  # 1024 * 127 * 127 < 2**24: up to here float32 sums of int8 products are exact in any order


def w8a8(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The reference: x [rows, in] times the stored matrix -> [rows, out] in x's dtype."""
    return w8a8_product(x, codes.to(compute_dtype(x)), scales)


def integer_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Exact a [rows, in] times b [out, in] of integers within +-127, held in float32 or float64.

    Returns what an int32 accumulator holds, converted to the inputs' dtype. Float products are portable, and as fast as
    this machine's own for one row; int8 products of CPUs without VNNI saturate, which would be a silent wrong number.
    """
    if a.dtype == torch.float64 or a.shape[1] <= EXACT_CHUNK:
        return F.linear(a, b)
    chunks = zip(a.split(EXACT_CHUNK, dim=1), b.split(EXACT_CHUNK, dim=1), strict=True)
    return sum(F.linear(*chunk).to(torch.int32) for chunk in chunks).to(a.dtype)


def w8a8_product(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x [rows, in] times integer weight [out, in] times scales [out] -> [rows, out] in x's dtype.

    The int32 sum is rounded to float32, multiplied by the token's scale, then by the channel's. weight: int8 values in
    float32 (float64 where x is).
    """
    activations, token_scales = quantize_per_token(x)
    return integer_product(activations, weight).mul_(token_scales).mul_(scales).to(x.dtype)


def w8a8_triton(
    x: torch.Tensor,
    token_scales: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    *,
    out_dtype: torch.dtype,
    chosen: Configuration | WarpGroups | None = None,
) -> torch.Tensor:
    """The kernel's launcher for x already quantized: int8 [rows, in], and its scales, float32 [rows, 1].

    Integer sums are exact, so that a row never depends on the others.
    """
    chosen = chosen or recorded("w8a8", x, len(codes))
    if isinstance(chosen, WarpGroups):
        return multiply_by_groups("w8a8", x, codes, chosen, out_dtype, token_scales=token_scales, scales=scales)
    return launch_product(
        eight_bit_kernel,
        "w8a8",
        x,
        (token_scales, codes, scales),
        len(codes),
        out_dtype,
        accumulator=torch.int32,
        chosen=chosen,
        INTEGER=True,
        EVEN=x.shape[1] % GROUP == 0,
        enable_fp_fusion=False,
    )


@jit(do_not_specialize=["rows"])
def eight_bit_kernel(
    x, token_scales, codes, scales, out, partials, arrivals, rows, out_features, in_features,
    OUTPUTS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr, WHOLE: tl.constexpr,
    OVERLAPPING: tl.constexpr, INTEGER: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Integers are summed in int32; e4m3 in float32, step by step, for tensor cores add them with fewer bits.
    EVEN: the inputs are whole steps."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    first, end = steps(in_features if EVEN else in_features + 127)
    wait_for_previous(OVERLAPPING, next_at_once=False)
    step = first * 128 + tl.arange(0, 128)
    codes += output[:, None].to(tl.int64) * in_features + step[None, :]
    x += row[None, :] * in_features + step[:, None]
    sums = tl.zeros((OUTPUTS, ROWS), tl.int32 if INTEGER else tl.float32)
    for _ in tl.range(first, end, num_stages=STAGES):
        if EVEN:
            weights = tl.load(codes) if WHOLE else tl.load(codes, mask=output[:, None] < out_features, other=0.0)
            activations = tl.load(x, mask=row[None, :] < rows, other=0.0)
        else:
            weights = tl.load(codes, mask=(output[:, None] < out_features) & (step[None, :] < in_features), other=0.0)
            activations = tl.load(x, mask=(row[None, :] < rows) & (step[:, None] < in_features), other=0.0)
            step += 128
        if INTEGER:
            sums = tl.dot(weights, activations, sums, out_dtype=tl.int32)
        else:
            sums += tl.dot(weights, activations)
        codes += 128
        x += 128
    mask = (row[None, :] < rows) & (output[:, None] < out_features)
    if partials is None:
        store_scaled(sums, mask, token_scales, scales, out, row, output, rows, out_features)
    elif is_last(sums, mask, partials, arrivals, OUTPUTS, ROWS):
        sums = add_splits(sums, mask, partials, OUTPUTS, ROWS)
        store_scaled(sums, mask, token_scales, scales, out, row, output, rows, out_features)


@jit
def store_scaled(sums, mask, token_scales, scales, out, row, output, rows, out_features):
    """Store sums [outputs, rows] as the reference does: in float32, times the token's scale, times the channel's."""
    token_scale = tl.load(token_scales + row, mask=row < rows, other=0)
    scale = tl.load(scales + output, mask=output < out_features, other=0).to(tl.float32)
    result = sums.to(tl.float32) * token_scale[None, :] * scale[:, None]
    tl.store(out + row[None, :] * out_features + output[:, None], result.to(out.dtype.element_ty), mask=mask)
