"""Schemes: how a weight matrix is stored, which kernel multiplies it, and how its numbers are found.

Why our own quantizers: llm-compressor 0.14 (with compressed-tensors 0.19) installs beside our pins and can do W8A8 and
W4A16; gptqmodel 7.6 only with an older NumPy than ours, and can do W4A16 and QQQ. Neither does QoQ, neither writes the
fused matrices and the exact grids that our kernels multiply, and each brings a dozen packages (torchao,
accelerate, datasets) to a study that quantizes eight schemes in seconds. What they share, GPTQ and smoothing, is
about a hundred lines here.
"""

import torch

from specquant.errors import SpecquantError
from specquant.kernels.activations import compute_dtype
from specquant.quant.gptq import gptq, search_clipping
from specquant.quant.grid import in_groups, out_of_groups
from specquant.quant.linear import STORAGE, Float16Linear
from specquant.quant.packed import PackedLinear
from specquant.quant.schemes import SCHEMES, Scheme, get_scheme, scheme_names

__all__ = ["SCHEMES", "PackedLinear", "Scheme", "empty_linear", "get_scheme", "quantize_linear", "scheme_names"]


def empty_linear(scheme: Scheme, out_features: int, in_features: int, bias: bool = False) -> PackedLinear:
    """A matrix of zeros as the scheme stores it, and fp16 biases where there are any, to load a state dict into.

    Raises SpecquantError where out_features is not a multiple that the scheme needs.
    """
    linear = STORAGE[scheme.name](out_features, in_features)
    if bias:
        linear.bias = torch.zeros(out_features, dtype=torch.float16)
    return linear


def quantize_linear(scheme: Scheme, weight: torch.Tensor, hessian: torch.Tensor | None = None) -> PackedLinear:
    """Quantize a float weight [out, in]: by round-to-nearest over each group's full range, or by GPTQ given a Hessian.

    hessian: [in, in], the sum over calibration tokens of x x^T. With it, each group's range is first clipped to where
    its weighted rounding error is least. Raises SpecquantError where the shape does not fit the scheme or a value is
    not finite.
    """
    linear = empty_linear(scheme, *weight.shape).to(weight.device)
    weight = weight.to(compute_dtype(weight))
    if not weight.isfinite().all():
        raise SpecquantError("a weight matrix has values that are not finite: the checkpoint is damaged")
    if isinstance(linear, Float16Linear):
        linear.weight = weight.half()
        return linear
    grouped = in_groups(weight, linear.group_size)
    low, high = grouped.amin(dim=-1).clamp_max_(0), grouped.amax(dim=-1).clamp_min_(0)
    if hessian is None:
        linear.fit(low, high)
        linear.set_codes(out_of_groups(linear.grid().at(..., None).encode(grouped), linear.in_features))
    else:
        search_clipping(linear, weight, low, high, hessian)
        linear.set_codes(gptq(weight, hessian, linear.grid().expand(low.shape), group_size=linear.group_size))
    return linear
