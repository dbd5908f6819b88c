"""4-bit weights, int8 activations with a scale per token: QQQ (arXiv 2406.09904) and QoQ (QServe, arXiv 2405.04532).

All four forms multiply int8 by int8 into int32, as `w8a8` does; they differ in how the int8 weight comes from the
stored 4-bit code, here in registers. Stored are codes in the order of `int4`, for 8-bit operands, and

* QQQ per channel: fp16 `scales` [out]. int8 weight = code - 8.
* QQQ per group: fp16 `scales` [out]; fp16 `group_scales` [in / 128, out / 16, 8, 2] in the same order,
  already divided by the channel's scale.
  int8 weight = (code - 8) * group scale, the exact product rounded once, half to even. (QQQ's kernel does it by one
  fp16 fused multiply-add onto 1152, where fp16 numbers are integers.) Where a checkpoint of others leaves int8, it is
  brought back to -128 or 127, as their kernel does; our quantizer's never leaves it, and its products save the work.
* QoQ per channel: fp16 `scales` [out]; uint8 `zeros` [out], 0 to 15. int8 weight = code - zero. A kernel may multiply
  the codes as they are and subtract the zero point times the sum of the token's int8 activations: the same integer.
  (QServe, section 5.2.2, subtracts its share of the token's sum *before* quantization. Then code and zero point see
  different activations, and the difference grows from layer to layer: on the tiny target rounding errors of 1e-15 grow
  to 1e-6 within nine products and to 0.1 at the end, so that no verification agrees with decoding token by token.
  Integers cost the same.)
* QoQ per group, progressive: fp16 `scales` [out]; uint8 `group_grids` [in / 128, out / 16, 8, 4] in the same order: the
  scales, 1 to 16, of two outputs, then their zero points, 0 to 15. int8 weight = (code - zero) * group scale: integers
  throughout. code * group scale <= 240 fits a byte, and the quantizer keeps every weight within +-127 (QServe, section
  4.1).
"""

from __future__ import annotations

import torch

from specquant.kernels.activations import compute_dtype
from specquant.kernels.int4 import (
    LESS_EIGHT_TIMES_SIXTEEN,
    LESS_ZERO,
    LESS_ZERO_SCALED,
    SCALED,
    SCALED_AND_CLAMPED,
    in_whole_tiles,
    unpack_int4,
    unpair_outputs,
)
from specquant.kernels.launch import constexpr, jit, tl
from specquant.kernels.products import Configuration, add_splits, is_last, launch_product, steps, wait_for_inputs
from specquant.kernels.rounding import round_half_even
from specquant.kernels.w8a8 import store_scaled, w8a8_product
from specquant.kernels.warp_groups import WarpGroups, multiply_by_groups, recorded

EIGHT, ZERO, ZERO_SCALED = constexpr(LESS_EIGHT_TIMES_SIXTEEN), constexpr(LESS_ZERO), constexpr(LESS_ZERO_SCALED)
EIGHT_SCALED, EIGHT_SCALED_CLAMPED = constexpr(SCALED), constexpr(SCALED_AND_CLAMPED)


def qqq(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The reference: x [rows, in] times the matrix stored as QQQ per channel -> [rows, out] in x's dtype."""
    return w8a8_product(x, qqq_weight(codes, compute_dtype(x))[:, : x.shape[1]], scales)


def qqq_group(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, group_scales: torch.Tensor) -> torch.Tensor:
    """The reference: x [rows, in] times the matrix stored as QQQ per group -> [rows, out] in x's dtype."""
    return w8a8_product(x, qqq_group_weight(codes, group_scales, compute_dtype(x))[:, : x.shape[1]], scales)


def qoq(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """The reference: x [rows, in] times the matrix stored as QoQ per channel -> [rows, out] in x's dtype."""
    return w8a8_product(x, qoq_weight(codes, zeros, compute_dtype(x))[:, : x.shape[1]], scales)


def qoq_group(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, group_grids: torch.Tensor) -> torch.Tensor:
    """The reference: x [rows, in] times the matrix stored as QoQ per group -> [rows, out] in x's dtype."""
    return w8a8_product(x, qoq_group_weight(codes, group_grids, compute_dtype(x))[:, : x.shape[1]], scales)


def qqq_weight(codes: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The int8 weights [out, in] of QQQ per channel, held in `dtype`."""
    return unpack_int4(codes, operand_bits=8).to(dtype) - 8


def qqq_group_weight(
    codes: torch.Tensor, group_scales: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The int8 weights [out, in] of QQQ per group, held in `dtype`."""
    integers = qqq_weight(codes, dtype)
    return integers.mul_(_per_input(group_scales, integers)).round_().clamp_(-128, 127)


def qoq_weight(codes: torch.Tensor, zeros: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The int8 weights [out, in] of QoQ per channel, held in `dtype`."""
    return unpack_int4(codes, operand_bits=8).to(dtype).sub_(zeros[:, None])


def qoq_group_weight(
    codes: torch.Tensor, group_grids: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The int8 weights [out, in] of QoQ per group, held in `dtype`."""
    group_scales, group_zeros = group_grids.chunk(2, dim=-1)
    integers = unpack_int4(codes, operand_bits=8).to(dtype)
    return integers.sub_(_per_input(group_zeros, integers)).mul_(_per_input(group_scales, integers))


def _per_input(pairs: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Values of groups, in the lanes' order -> one per input [out, in], in `like`'s dtype."""
    return unpair_outputs(pairs).to(like.dtype).t().repeat_interleave(128, dim=1)


def w4a8_triton(
    form: str,
    x: torch.Tensor,
    token_scales: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    grid: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype,
    chosen: Configuration | WarpGroups | None = None,
    assembly: bool | None = None,
    clamped: bool = False,
) -> torch.Tensor:
    """The kernel's launcher for x already quantized: int8 [rows, in], and its scales, float32 [rows, 1].

    form: "qqq", "qqq-g128", "qoq" or "qoq-g128"; grid: what the form stores beside codes and scales. assembly: widen
    codes by inline assembly, as is done on a GPU. clamped: weights of qqq-g128 may leave int8. Integer sums are exact,
    so that a row never depends on the others.
    """
    x = in_whole_tiles(x)
    chosen = chosen or recorded(f"w4a8-{form}", x, len(scales))
    if isinstance(chosen, WarpGroups):
        how = {"token_scales": token_scales, "scales": scales, "grid": grid, "clamped": clamped}
        return multiply_by_groups(f"w4a8-{form}", x, codes, chosen, out_dtype, **how)
    if form.endswith("g128"):
        grid = grid.view(torch.int32)
    return launch_product(
        _kernel,
        f"w4a8-{form}",
        x,
        (token_scales, codes, scales, grid),
        len(scales),
        out_dtype,
        accumulator=torch.int32,
        chosen=chosen,
        FORM=form,
        ASSEMBLY=x.is_cuda if assembly is None else assembly,
        CLAMPED=clamped,
        enable_fp_fusion=False,
    )


@jit(do_not_specialize=["rows"])
def _kernel(
    x, token_scales, codes, scales, grid, out, partials, arrivals, rows, out_features, in_features,
    OUTPUTS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr, WHOLE: tl.constexpr,
    OVERLAPPING: tl.constexpr, FORM: tl.constexpr, ASSEMBLY: tl.constexpr, CLAMPED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    lane = tl.program_id(1) * (OUTPUTS * 2) + tl.arange(0, OUTPUTS * 2)
    begin, end = steps(in_features)
    tile = codes + begin.to(tl.int64) * (out_features * 64) + tl.program_id(1) * (OUTPUTS * 64)
    wait_for_inputs(tile, out_features * 64, end - begin, OUTPUTS * 64 if WHOLE else 0, OVERLAPPING)
    codes += begin.to(tl.int64) * (out_features * 64) + lane[:, None] * 32 + tl.arange(0, 32)[None, :]
    x += row[None, :] * in_features + (begin * 128 + tl.arange(0, 128))[:, None]
    if FORM == "qoq":
        zero = tl.reshape(tl.load(grid + output, mask=output < out_features, other=0), (OUTPUTS // 16, 2, 8))
        low_zero, high_zero = tl.split(tl.permute(zero, (0, 2, 1)))
        low_zero, high_zero = _per_lane(low_zero, OUTPUTS), _per_lane(high_zero, OUTPUTS)
    elif FORM != "qqq":
        pair = tl.program_id(1) * (OUTPUTS // 2) + tl.arange(0, OUTPUTS // 2)
        grid += begin * (out_features // 2) + pair
    sums = tl.zeros((OUTPUTS, ROWS), tl.int32)
    for _ in tl.range(begin, end, num_stages=STAGES):
        pairs = tl.load(codes) if WHOLE else tl.load(codes, mask=lane[:, None] < out_features * 2, other=0)
        activations = tl.load(x, mask=row[None, :] < rows, other=0)
        if FORM == "qqq":
            low, high = _less_eight_times_sixteen(pairs, ASSEMBLY)
        elif FORM == "qoq":
            low, high = _less_zero(pairs, low_zero, high_zero, ASSEMBLY)
        else:
            word = tl.load(grid) if WHOLE else tl.load(grid, mask=pair < out_features // 2, other=0)
            word = _per_lane(word, OUTPUTS)
            if FORM == "qqq-g128":
                low, high = _less_eight_scaled(pairs, word, ASSEMBLY, CLAMPED)
            else:
                low, high = _less_zero_scaled(pairs, word, ASSEMBLY)
            grid += out_features // 2
        weights = tl.reshape(tl.join(low, high), (OUTPUTS // 16, 8, 4, 4, 2, 4, 2))
        weights = tl.permute(weights, (0, 6, 1, 3, 4, 2, 5))  # output: tile, + 8, lane / 4; input: slab, + 16, lane % 4
        sums = tl.dot(tl.reshape(weights, (OUTPUTS, 128)), activations, sums, out_dtype=tl.int32)
        codes += out_features * 64
        x += 128
    mask = (row[None, :] < rows) & (output[:, None] < out_features)
    if partials is None:
        _store(sums, mask, token_scales, scales, out, row, output, rows, out_features, FORM)
    elif is_last(sums, mask, partials, arrivals, OUTPUTS, ROWS):
        sums = add_splits(sums, mask, partials, OUTPUTS, ROWS)
        _store(sums, mask, token_scales, scales, out, row, output, rows, out_features, FORM)


@jit
def _store(sums, mask, token_scales, scales, out, row, output, rows, out_features, FORM: tl.constexpr):
    if FORM == "qqq":
        sums = sums >> 4  # exact: every weight was sixteen times too large
    store_scaled(sums, mask, token_scales, scales, out, row, output, rows, out_features)


@jit
def _per_lane(values, OUTPUTS: tl.constexpr):
    """A value for each pair of outputs -> those of each lane's bytes, [lanes, 1]."""
    values = tl.reshape(values, (OUTPUTS // 16, 8, 1))
    return tl.reshape(tl.broadcast_to(values, (OUTPUTS // 16, 8, 4)), (OUTPUTS * 2, 1))


# What follows makes the int8 weights of the low and the high halves of bytes. The assembly takes four bytes at a time.


@jit
def _less_eight_times_sixteen(pairs, ASSEMBLY: tl.constexpr):
    """16 (code - 8): the code in a byte's high half, its highest bit turned."""
    if ASSEMBLY:
        low, high = tl.inline_asm_elementwise(
            EIGHT,
            "=&r,=&r,r", [pairs], dtype=(tl.int8, tl.int8), is_pure=True, pack=4,
        )  # fmt: skip
    else:
        low = ((pairs << 4) ^ 128).to(tl.int8, bitcast=True)
        high = ((pairs & 240) ^ 128).to(tl.int8, bitcast=True)
    return low, high


@jit
def _less_zero(pairs, low_zero, high_zero, ASSEMBLY: tl.constexpr):
    """code - zero: 128 is added before and turned off after, so that no byte borrows from the next."""
    low_zero, high_zero = tl.broadcast_to(low_zero, pairs.shape), tl.broadcast_to(high_zero, pairs.shape)
    if ASSEMBLY:
        low, high = tl.inline_asm_elementwise(
            ZERO,
            "=&r,=&r,r,r,r", [pairs, low_zero, high_zero], dtype=(tl.int8, tl.int8), is_pure=True, pack=4,
        )  # fmt: skip
    else:
        low = (pairs & 15).to(tl.int8) - low_zero.to(tl.int8)
        high = (pairs >> 4).to(tl.int8) - high_zero.to(tl.int8)
    return low, high


@jit
def _less_eight_scaled(pairs, word, ASSEMBLY: tl.constexpr, CLAMPED: tl.constexpr):
    """(code - 8) * scale, rounded half to even: fp16 rounds 1280 plus a number within +-127 to an integer whose lowest
    byte is that number's; clamped, to 1152 at least and 1407 at most. word: two fp16 scales."""
    low_scale = (word & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)
    high_scale = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    low_scale, high_scale = tl.broadcast_to(low_scale, pairs.shape), tl.broadcast_to(high_scale, pairs.shape)
    if ASSEMBLY:
        low, high = tl.inline_asm_elementwise(
            EIGHT_SCALED_CLAMPED if CLAMPED else EIGHT_SCALED,
            "=&r,=&r,r,r,r,r,r", [pairs, low_scale, high_scale], dtype=(tl.int8, tl.int8), is_pure=True, pack=4,
        )  # fmt: skip
    else:
        low = round_half_even(((pairs & 15).to(tl.float32) - 8) * low_scale.to(tl.float32))
        high = round_half_even(((pairs >> 4).to(tl.float32) - 8) * high_scale.to(tl.float32))
        if CLAMPED:
            low, high = tl.minimum(tl.maximum(low, -128), 127), tl.minimum(tl.maximum(high, -128), 127)
        low, high = low.to(tl.int8), high.to(tl.int8)
    return low, high


@jit
def _less_zero_scaled(pairs, word, ASSEMBLY: tl.constexpr):
    """(code - zero) * scale, two at a time in 16 bits: the low byte of code * scale + (256 - zero * scale).

    word: two scales, two zero points.
    """
    low_scale, high_scale = word & 255, (word >> 8) & 255
    low_bias = (256 - ((word >> 16) & 255) * low_scale) * 0x10001
    high_bias = (256 - ((word >> 24) & 255) * high_scale) * 0x10001
    low_scale, high_scale = tl.broadcast_to(low_scale, pairs.shape), tl.broadcast_to(high_scale, pairs.shape)
    low_bias, high_bias = tl.broadcast_to(low_bias, pairs.shape), tl.broadcast_to(high_bias, pairs.shape)
    if ASSEMBLY:
        low, high = tl.inline_asm_elementwise(
            ZERO_SCALED,
            "=&r,=&r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r", [pairs, low_scale, high_scale, low_bias, high_bias],
            dtype=(tl.int8, tl.int8), is_pure=True, pack=4,
        )  # fmt: skip
    else:
        low = ((pairs & 15).to(tl.int32) * low_scale + low_bias).to(tl.int8)
        high = ((pairs >> 4).to(tl.int32) * high_scale + high_bias).to(tl.int8)
    return low, high
