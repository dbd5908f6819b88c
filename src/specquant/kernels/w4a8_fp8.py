"""4-bit weights with a scale per group of 128 inputs, widened to e4m3; e4m3 activations. Needs Hopper or later.

Stored: codes in the order of `int4`, for 8-bit operands; fp16 scales [in / 128, out / 16, 8, 2], in its order too. A
weight is (code - 8) * scale. Code - 8 is stored as its sign and its distance from 0 or -1, code - 8 or 7 - code, which
few instructions widen. The kernel multiplies (code - 8) / 512, which e4m3 holds exactly, and scales a group's sum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from specquant.kernels.activations import compute_dtype
from specquant.kernels.fp8 import quantize_per_token_e4m3, require_e4m3
from specquant.kernels.int4 import TO_E4M3, in_whole_tiles, pack_int4, unpack_int4, unpair_outputs
from specquant.kernels.launch import constexpr, jit, tl
from specquant.kernels.products import Configuration, add_splits, is_last, launch_product, steps, wait_for_inputs
from specquant.kernels.warp_groups import WarpGroups, multiply_by_groups, recorded

WIDEN = constexpr(TO_E4M3)


def pack_codes(codes: torch.Tensor) -> torch.Tensor:
    """Codes 0 to 15 [out, in] -> as they are stored, uint8 [in / 128, out / 16, 32, 32]."""
    return pack_int4(torch.where(codes < 8, 15 - codes, codes - 8), operand_bits=8)


def unpack_codes(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_codes`: uint8 [in / 128, out / 16, 32, 32] -> uint8 [out, in]."""
    stored = unpack_int4(packed, operand_bits=8)
    return torch.where(stored < 8, stored + 8, 15 - stored)


def w4a8_fp8(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The reference: x [rows, in] times the stored matrix -> [rows, out] in x's dtype."""
    return w4a8_fp8_product(x, w4a8_fp8_weight(codes, scales, compute_dtype(x))[:, : x.shape[1]])


def w4a8_fp8_weight(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight matrix [out, in] that a product multiplies: exact in float32."""
    integers = unpack_codes(codes).to(dtype) - 8
    return integers.mul_(unpair_outputs(scales).to(dtype).t().repeat_interleave(128, dim=1))


def w4a8_fp8_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [rows, in], quantized to e4m3, times weight [out, in] -> [rows, out] in x's dtype; float32 (float64) sums."""
    activations, token_scales = quantize_per_token_e4m3(x)
    return F.linear(activations, weight).mul_(token_scales).to(x.dtype)


def w4a8_fp8_triton(
    x: torch.Tensor,
    token_scales: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    *,
    out_dtype: torch.dtype,
    row_invariant: bool = False,
    chosen: Configuration | WarpGroups | None = None,
    assembly: bool | None = None,
) -> torch.Tensor:
    """The launcher for x already quantized: e4m3 [rows, in], and its scales, float32 [rows, 1].

    row_invariant: a row's result does not depend on how many other rows there are. assembly: widen codes by inline
    assembly, as is done on a GPU. Raises SpecquantError where the GPU has no e4m3 products.
    """
    x = in_whole_tiles(x)
    require_e4m3(x)
    if chosen is None and not row_invariant:
        chosen = recorded("w4a8-fp8-g128", x, codes.shape[1] * 16)
    if isinstance(chosen, WarpGroups):
        how = {"token_scales": token_scales, "grid": scales}
        return multiply_by_groups("w4a8-fp8-g128", x, codes, chosen, out_dtype, **how)
    return launch_product(
        _kernel,
        "w4a8-fp8-g128",
        x,
        (token_scales, codes, scales.view(torch.int32)),
        codes.shape[1] * 16,
        out_dtype,
        accumulator=torch.float32,
        row_invariant=row_invariant,
        chosen=chosen,
        ASSEMBLY=x.is_cuda if assembly is None else assembly,
    )


@jit(do_not_specialize=["rows"])
def _kernel(
    x, token_scales, codes, scales, out, partials, arrivals, rows, out_features, in_features,
    OUTPUTS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr, WHOLE: tl.constexpr,
    OVERLAPPING: tl.constexpr, ASSEMBLY: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    lane = tl.program_id(1) * (OUTPUTS * 2) + tl.arange(0, OUTPUTS * 2)
    pair = tl.program_id(1) * (OUTPUTS // 2) + tl.arange(0, OUTPUTS // 2)
    first, end = steps(in_features)
    tile = codes + first.to(tl.int64) * (out_features * 64) + tl.program_id(1) * (OUTPUTS * 64)
    wait_for_inputs(tile, out_features * 64, end - first, OUTPUTS * 64 if WHOLE else 0, OVERLAPPING)
    codes += first.to(tl.int64) * (out_features * 64) + lane[:, None] * 32 + tl.arange(0, 32)[None, :]
    scales += first * (out_features // 2) + pair
    x += row[None, :] * in_features + (first * 128 + tl.arange(0, 128))[:, None]
    sums = tl.zeros((OUTPUTS, ROWS), tl.float32)
    for _ in tl.range(first, end, num_stages=STAGES):
        pairs = tl.load(codes) if WHOLE else tl.load(codes, mask=lane[:, None] < out_features * 2, other=0)
        word = tl.load(scales) if WHOLE else tl.load(scales, mask=pair < out_features // 2, other=0)
        activations = tl.load(x, mask=row[None, :] < rows, other=0.0)
        low, high = _widen(pairs, ASSEMBLY)
        # output: tile, + 8, lane / 4; input: slab, + 16, lane % 4, byte
        weights = tl.reshape(tl.join(low, high), (OUTPUTS // 16, 8, 4, 4, 2, 4, 2))
        weights = tl.reshape(tl.permute(weights, (0, 6, 1, 3, 4, 2, 5)), (OUTPUTS, 128))
        if ASSEMBLY:
            products = tl.dot(weights, activations)
        else:
            products = tl.dot(weights, activations.to(tl.float32), input_precision="ieee")
        low_scale, high_scale = (word & 0xFFFF).to(tl.int16), (word >> 16).to(tl.int16)
        scale = tl.join(low_scale.to(tl.float16, bitcast=True), high_scale.to(tl.float16, bitcast=True))
        scale = tl.reshape(tl.permute(tl.reshape(scale, (OUTPUTS // 16, 8, 2)), (0, 2, 1)), (OUTPUTS,))
        sums += products * (scale.to(tl.float32) * 512)[:, None]
        codes += out_features * 64
        scales += out_features // 2
        x += 128
    mask = (row[None, :] < rows) & (output[:, None] < out_features)
    out += row[None, :] * out_features + output[:, None]
    token_scale = tl.load(token_scales + row, mask=row < rows, other=0)[None, :]
    if partials is None:
        tl.store(out, (sums * token_scale).to(out.dtype.element_ty), mask=mask)
    elif is_last(sums, mask, partials, arrivals, OUTPUTS, ROWS):
        sums = add_splits(sums, mask, partials, OUTPUTS, ROWS)
        tl.store(out, (sums * token_scale).to(out.dtype.element_ty), mask=mask)


@jit
def _widen(pairs, ASSEMBLY: tl.constexpr):
    """(code - 8) / 512 of the low and of the high halves of bytes.

    In e4m3, the byte n is n / 512 up to 16, and the byte 128 + n is -n / 512. What is stored, t, is that byte up to 7;
    from 8 on it stands for -(t - 7), which is the byte t + 121. The assembly takes four bytes at a time.
    """
    if ASSEMBLY:
        low, high = tl.inline_asm_elementwise(
            WIDEN,
            "=&r,=&r,r", [pairs], dtype=(tl.int8, tl.int8), is_pure=True, pack=4,
        )  # fmt: skip
        low, high = low.to(tl.float8e4nv, bitcast=True), high.to(tl.float8e4nv, bitcast=True)
    else:
        low, high = (pairs & 15).to(tl.float32), (pairs >> 4).to(tl.float32)
        low = tl.where(low < 8, low, 7 - low) * 0.001953125
        high = tl.where(high < 8, high, 7 - high) * 0.001953125
    return low, high
