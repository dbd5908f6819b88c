"""4-bit weights with a scale per group of inputs, fp16 activations (GPTQ, arXiv 2210.17323; Marlin, arXiv 2408.11743).

Stored: codes, two per byte, [out, in / 2]; fp16 scales [out, in / group]. A weight is (code - 8) * scale.
"""

import torch
import torch.nn.functional as F

from specquant.kernels.activations import compute_dtype
from specquant.kernels.int4 import unpack_int4


def w4a16_weight(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight matrix [out, in] that a product multiplies: exact in float32, for 4 and 11 bits make 15."""
    integers = unpack_int4(codes).to(dtype) - 8
    return integers.mul_(scales.to(dtype).repeat_interleave(integers.shape[1] // scales.shape[1], dim=1))


def w4a16_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [rows, in] times weight [out, in] -> [rows, out] in x's dtype; float32 (float64) products and sums."""
    return F.linear(x.to(compute_dtype(x)), weight).to(x.dtype)


def w4a16(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x [rows, in] times the stored matrix -> [rows, out] in x's dtype."""
    return w4a16_product(x, w4a16_weight(codes, scales, compute_dtype(x)))
