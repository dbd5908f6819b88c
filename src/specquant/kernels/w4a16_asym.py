"""4-bit weights with a scale and a zero point per group of 128 inputs, 16-bit activations.

Source: AWQ, arXiv 2306.00978.

Stored: codes and scales as `w4a16` does, and uint8 zero points, 0 to 15, in the order of the scales. A weight is
(code - zero) * scale, which is (code - 8) * scale and (8 - zero) * scale: on a GPU, the product of the former, by the
kernel of `w4a16`, and that of the latter with the sums of each group's inputs, a 128th of the work.
"""

from __future__ import annotations

import torch

from specquant.kernels.activations import compute_dtype
from specquant.kernels.int4 import in_whole_tiles, unpack_int4, unpair_outputs
from specquant.kernels.products import Configuration
from specquant.kernels.w4a16 import w4a16_product, w4a16_triton
from specquant.kernels.warp_groups import WarpGroups


def w4a16_asym(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """The reference: x [rows, in] times the stored matrix -> [rows, out] in x's dtype."""
    return w4a16_product(x, w4a16_asym_weight(codes, scales, zeros, compute_dtype(x))[:, : x.shape[1]])


def w4a16_asym_weight(
    codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The weight matrix [out, in] that a product multiplies: exact in float32."""
    integers = unpack_int4(codes, operand_bits=16).to(dtype)
    for function, pairs in ((integers.sub_, zeros), (integers.mul_, scales)):
        function(unpair_outputs(pairs).to(dtype).t().repeat_interleave(128, dim=1))
    return integers


def w4a16_asym_triton(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    row_invariant: bool = False,
    chosen: Configuration | WarpGroups | None = None,
) -> torch.Tensor:
    """The launcher; x is fp16 or bf16, and what the kernel gives is rounded to it once before the rest is added."""
    x = in_whole_tiles(x)
    sums = x.unflatten(1, (-1, 128)).sum(dim=-1, dtype=torch.float32)
    offsets = (8 - unpair_outputs(zeros).float()) * unpair_outputs(scales).float()
    return torch.addmm(w4a16_triton(x, codes, scales, row_invariant, chosen).float(), sums, offsets).to(x.dtype)
