"""The product with fp16 weights: cuBLAS through torch; on a CPU, which has no fp16 arithmetic, in float32."""

import torch
import torch.nn.functional as F

from specquant.kernels.activations import compute_dtype


def fp16_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [rows, in] times weight [out, in] -> [rows, out] in x's dtype, computed in the weight's dtype."""
    return F.linear(x.to(weight.dtype), weight).to(x.dtype)


def fp16_operand_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype that the weight is multiplied in."""
    return torch.float16 if x.is_cuda and x.dtype == torch.float16 else compute_dtype(x)
