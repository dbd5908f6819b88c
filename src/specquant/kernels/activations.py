"""Per-token int8 quantization of activations."""

from __future__ import annotations

import torch

from specquant.kernels.launch import jit, overlapping, tl, triton, wait_for_previous
from specquant.kernels.rounding import row_codes, row_scale

SMALLEST = 1e-30  # a row whose largest magnitude is below this quantizes to zeros, without a division by zero


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The precision that references compute in: float64 for float64 inputs, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def quantize_per_token(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize each row of x [rows, features] to int8, symmetric, with its own scale, found while running.

    scale = max|x| / 127 and code = x / scale, both correctly rounded in float32 (float64 for float64 inputs), then
    rounded to an integer, half to even. No code exceeds 127, so nothing needs to be clamped. Returns the codes
    [rows, features] as integers in float32 (float64), which is what the reference products multiply, and the scales
    [rows, 1].
    """
    x = x.to(compute_dtype(x))
    largest = x.abs().amax(dim=-1, keepdim=True).clamp_min_(SMALLEST)
    scales = largest / torch.full_like(largest, 127)  # by a number, torch on a GPU would multiply with its reciprocal
    return (x / scales).round_(), scales


def quantize_per_token_triton(
    x: torch.Tensor, code_dtype: torch.dtype = torch.int8, next_early: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantize_per_token` by one launch, a block for each row: the same bits, the codes as int8; or, with
    torch.float8_e4m3fn as `code_dtype`, `fp8.quantize_per_token_e4m3`. next_early: as of `overlapping`."""
    x = x.contiguous()
    rows, features = x.shape
    codes = torch.empty_like(x, dtype=code_dtype)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    if rows:
        block = triton.next_power_of_2(features)
        options = {"num_warps": min(max(block // 1024, 1), 16)} | overlapping(x.device, next_early)
        _kernel[(rows,)](x, codes, scales, features, SMALLEST=SMALLEST, BLOCK=block, **options)
    return codes, scales


@jit
def _kernel(x, codes, scales, features, SMALLEST: tl.constexpr, BLOCK: tl.constexpr, OVERLAPPING: tl.constexpr):
    wait_for_previous(OVERLAPPING)
    row = tl.program_id(0)
    feature = tl.arange(0, BLOCK)
    values = tl.load(x + row * features + feature, mask=feature < features, other=0).to(tl.float32)
    scale = row_scale(tl.max(tl.abs(values), 0), codes.dtype.element_ty, SMALLEST)
    quantized = row_codes(values, scale, codes.dtype.element_ty)
    tl.store(codes + row * features + feature, quantized, mask=feature < features)
    tl.store(scales + row, scale)
