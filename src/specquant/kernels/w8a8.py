"""int8 weights with a scale per output channel, int8 activations with a scale per token.

Source: SmoothQuant, arXiv 2211.10438; its per-token dynamic form.

Stored: int8 codes [out, in] within +-127; fp16 scales [out]. A weight is code * scale.
"""

import torch
import torch.nn.functional as F

from specquant.kernels.activations import compute_dtype, quantize_per_token

EXACT_CHUNK = 1024  # 1024 * 127 * 127 < 2**24: up to here float32 sums of int8 products are exact in any order


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


def w8a8(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x [rows, in] times the stored matrix -> [rows, out] in x's dtype."""
    return w8a8_product(x, codes.to(compute_dtype(x)), scales)
