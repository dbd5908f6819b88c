"""What the kernels that quantize share: each is a function inside a Triton kernel."""

from __future__ import annotations

from specquant.kernels.launch import jit, tl


@jit
def round_half_even(x):
    """x, float32 below 2**22 in magnitude, rounded to an integer: there, adding 1.5 * 2**23 leaves no fraction."""
    return (x + 12582912.0) - 12582912.0


@jit
def int8_row(values, SMALLEST: tl.constexpr):
    """A row of float32 -> its int8 codes and its scale, with the very bits of `quantize_per_token`."""
    scale = int8_scale(tl.max(tl.abs(values), 0), SMALLEST)
    return int8_codes(values, scale), scale


@jit
def int8_scale(largest, SMALLEST: tl.constexpr):
    """The scale of a row by its largest magnitude."""
    return tl.div_rn(tl.maximum(largest, SMALLEST), 127.0)


@jit
def int8_codes(values, scale):
    """The codes of float32 values by their row's scale."""
    return round_half_even(tl.div_rn(values, scale)).to(tl.int8)
