"""What the kernels that quantize share: each is a function inside a Triton kernel."""

from __future__ import annotations

from specquant.kernels.launch import constexpr, jit, tl, triton

FUSED = constexpr(triton is not None and not triton.knobs.runtime.interpret)


@jit
def round_half_even(x):
    """x, float32 below 2**22 in magnitude, rounded to an integer: there, adding 1.5 * 2**23 leaves no fraction."""
    return (x + 12582912.0) - 12582912.0


@jit
def row_scale(largest, dtype: tl.constexpr, SMALLEST: tl.constexpr):
    """The scale of a row with this largest magnitude, for codes of int8 or e4m3, with the very bits of
    `quantize_per_token` and `quantize_per_token_e4m3`."""
    return tl.div_rn(tl.maximum(largest, SMALLEST), 127.0 if dtype == tl.int8 else 448.0)


@jit
def row_codes(values, scale, dtype: tl.constexpr):
    """The codes, int8 or e4m3, of float32 values by their row's scale.

    On a GPU a quotient is a product with the rounded reciprocal, mended once by the exact remainder: so it is rounded
    as a division is (Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor", 1990), by
    three instructions. The interpreter has no fused multiply-add.
    """
    if FUSED:
        reciprocal = tl.div_rn(1.0, scale)
        quotient = values * reciprocal
        values = tl.fma(tl.fma(-quotient, scale, values), reciprocal, quotient)
    else:
        values = tl.div_rn(values, scale)
    if dtype == tl.int8:
        return round_half_even(values).to(dtype)
    else:
        bits = values.to(tl.int32, bitcast=True)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)  # 3 bits of mantissa
        subnormal = (values + 24576.0) - 24576.0  # multiples of 2**-9
        return tl.where(tl.abs(values) < 0.015625, subnormal, normal).to(dtype)
