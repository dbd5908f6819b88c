"""Per-token int8 quantization of activations."""

import torch

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
    scales = x.abs().amax(dim=-1, keepdim=True).clamp_min_(SMALLEST).div_(127)
    return (x / scales).round_(), scales
