"""e4m3 weights with a scale per output channel, e4m3 activations with a scale per token. Needs Hopper or later.

Source of the format: FP8 Formats for Deep Learning, arXiv 2209.05433.

Stored: e4m3 codes [out, in]; float32 scales [out], for small ones would be subnormal in fp16. A weight is code * scale.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from specquant.errors import SpecquantError
from specquant.kernels.activations import SMALLEST, compute_dtype
from specquant.kernels.products import GROUP, Configuration, launch_product
from specquant.kernels.w8a8 import eight_bit_kernel
from specquant.kernels.warp_groups import WarpGroups, multiply_by_groups, recorded

LARGEST = 448.0


def fp8(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The reference: x [rows, in] times the stored matrix -> [rows, out] in x's dtype."""
    return fp8_product(x, codes.to(compute_dtype(x)), scales)


def fp8_product(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x [rows, in] times weight [out, in] times scales [out] -> [rows, out] in x's dtype; float32 (float64) sums."""
    activations, token_scales = quantize_per_token_e4m3(x)
    return F.linear(activations, weight).mul_(token_scales).mul_(scales).to(x.dtype)


def quantize_per_token_e4m3(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize each row of x [rows, features] to e4m3 with its own scale, found while running.

    scale = max|x| / 448 and x / scale, both correctly rounded in float32, then rounded to e4m3, half to even. Returns
    the codes [rows, features] in float32 (float64 where x is), and the scales [rows, 1].
    """
    dtype = compute_dtype(x)
    x = x.float()
    largest = x.abs().amax(dim=-1, keepdim=True).clamp_min_(SMALLEST)
    scales = largest / torch.full_like(largest, LARGEST)
    return (x / scales).to(torch.float8_e4m3fn).to(dtype), scales.to(dtype)


def fp8_triton(
    x: torch.Tensor,
    token_scales: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    *,
    out_dtype: torch.dtype,
    row_invariant: bool = False,
    chosen: Configuration | WarpGroups | None = None,
) -> torch.Tensor:
    """The launcher for x already quantized: e4m3 [rows, in], and its scales, float32 [rows, 1].

    row_invariant: a row's result does not depend on how many other rows there are. Raises SpecquantError where the GPU
    has no e4m3 products.
    """
    require_e4m3(x)
    if chosen is None and not row_invariant:
        chosen = recorded("fp8", x, len(codes))
    if isinstance(chosen, WarpGroups):
        return multiply_by_groups("fp8", x, codes, chosen, out_dtype, token_scales=token_scales, scales=scales)
    return launch_product(
        eight_bit_kernel,
        "fp8",
        x,
        (token_scales, codes, scales),
        len(codes),
        out_dtype,
        accumulator=torch.float32,
        row_invariant=row_invariant,
        chosen=chosen,
        INTEGER=False,
        EVEN=x.shape[1] % GROUP == 0,
    )


def multiplies_e4m3(device: torch.device | str) -> bool:
    """Whether a GPU has the fp8 products that the kernels use: from Hopper on."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= (9, 0)


def require_e4m3(x: torch.Tensor) -> None:
    """Raises SpecquantError where x is on a GPU before Hopper."""
    if x.is_cuda and not multiplies_e4m3(x.device):
        raise SpecquantError(f"{torch.cuda.get_device_name(x.device)} has no fp8 products: choose another scheme")
