"""4-bit weights with a scale per group of 128 inputs, 16-bit activations.

Sources: GPTQ, arXiv 2210.17323; Marlin, arXiv 2408.11743.

Stored: codes in the order of `int4`, for 16-bit operands; fp16 scales [in / 128, out / 16, 8, 2], in its order too. A
weight is (code - 8) * scale.

The kernel multiplies the integers, which are exact in fp16 and bf16, and scales a group's sum. On Hopper `warp_groups`
takes over where it is faster.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from specquant.kernels.activations import compute_dtype
from specquant.kernels.int4 import WORD_TO_FP16, in_whole_tiles, unpack_int4, unpair_outputs
from specquant.kernels.launch import constexpr, jit, tl
from specquant.kernels.products import Configuration, add_splits, is_last, launch_product, steps, wait_for_inputs
from specquant.kernels.warp_groups import WarpGroups, multiply_by_groups, recorded

WIDEN = constexpr(f"{{{WORD_TO_FP16}}}")


def w4a16(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The reference: x [rows, in] times the stored matrix -> [rows, out] in x's dtype."""
    return w4a16_product(x, w4a16_weight(codes, scales, compute_dtype(x))[:, : x.shape[1]])


def w4a16_weight(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weight matrix [out, in] that a product multiplies, in whole tiles: exact in float32, for 4 and 11 bits make
    15."""
    integers = unpack_int4(codes, operand_bits=16).to(dtype) - 8
    return integers.mul_(unpair_outputs(scales).to(dtype).t().repeat_interleave(128, dim=1))


def w4a16_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [rows, in] times weight [out, in] -> [rows, out] in x's dtype; float32 (float64) products and sums."""
    return F.linear(x.to(compute_dtype(x)), weight).to(x.dtype)


def w4a16_triton(
    x: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    row_invariant: bool = False,
    chosen: Configuration | WarpGroups | None = None,
    assembly: bool | None = None,
) -> torch.Tensor:
    """The kernels' launcher; x is fp16 or bf16.

    row_invariant: a row's result does not depend on how many other rows there are. chosen: how the product is cut up,
    and so by which kernel; by default as recorded. assembly: widen codes by inline assembly, as is done on a GPU.
    """
    x = in_whole_tiles(x)
    if chosen is None and not row_invariant:
        chosen = recorded("w4a16", x, codes.shape[1] * 16)
    if isinstance(chosen, WarpGroups):
        return multiply_by_groups("w4a16", x, codes, chosen, x.dtype, grid=scales)
    return launch_product(
        _kernel,
        "w4a16",
        x,
        (codes.view(torch.int32), scales.view(torch.int32)),
        codes.shape[1] * 16,
        x.dtype,
        accumulator=torch.float32,
        row_invariant=row_invariant,
        chosen=chosen,
        ASSEMBLY=x.is_cuda if assembly is None else assembly,
    )


@jit(do_not_specialize=["rows"])
def _kernel(
    x, codes, scales, out, partials, arrivals, rows, out_features, in_features,
    OUTPUTS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr, WHOLE: tl.constexpr,
    OVERLAPPING: tl.constexpr, ASSEMBLY: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    lane = tl.program_id(1) * (OUTPUTS * 2) + tl.arange(0, OUTPUTS * 2)
    first, end = steps(in_features)
    tile = codes + first * (out_features * 16) + tl.program_id(1) * (OUTPUTS * 16)
    wait_for_inputs(tile, out_features * 16, end - first, OUTPUTS * 64 if WHOLE else 0, OVERLAPPING)
    codes += first * (out_features * 16) + lane[:, None] * 8 + tl.arange(0, 8)[None, :]
    pair = tl.program_id(1) * (OUTPUTS // 2) + tl.arange(0, OUTPUTS // 2)
    scales += first * (out_features // 2) + pair
    x += row[None, :] * in_features + (first * 128 + tl.arange(0, 128))[:, None]
    sums = tl.zeros((OUTPUTS, ROWS), tl.float32)
    for _ in tl.range(first, end, num_stages=STAGES):
        words = tl.load(codes) if WHOLE else tl.load(codes, mask=lane[:, None] < out_features * 2, other=0)
        pairs = tl.load(scales) if WHOLE else tl.load(scales, mask=pair < out_features // 2, other=0)
        activations = tl.load(x, mask=row[None, :] < rows, other=0)
        weights = _widen(words, OUTPUTS, activations.dtype, ASSEMBLY)
        if ASSEMBLY:
            products = tl.dot(weights, activations)
        else:  # the interpreter has no bf16 products
            products = tl.dot(weights.to(tl.float32), activations.to(tl.float32), input_precision="ieee")
        scale = tl.permute(tl.reshape(_halves(pairs, tl.float16), (OUTPUTS // 16, 8, 2)), (0, 2, 1))
        sums += products * tl.reshape(scale, (OUTPUTS,))[:, None].to(tl.float32)
        codes += out_features * 16
        scales += out_features // 2
        x += 128
    out += row[None, :] * out_features + output[:, None]
    mask = (row[None, :] < rows) & (output[:, None] < out_features)
    if partials is None:
        tl.store(out, sums.to(out.dtype.element_ty), mask=mask)
    elif is_last(sums, mask, partials, arrivals, OUTPUTS, ROWS):
        tl.store(out, add_splits(sums, mask, partials, OUTPUTS, ROWS).to(out.dtype.element_ty), mask=mask)


@jit
def _widen(words, OUTPUTS: tl.constexpr, DTYPE: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Words [lanes, 8 slabs] -> integer weights [OUTPUTS, 128], already where the tensor cores want them."""
    if ASSEMBLY:
        # A number with a code in its lowest bits is 2^m + code; in fp16, four bits higher, it is 1024 + 16 code.
        if DTYPE.is_fp16():
            pairs = tl.inline_asm_elementwise(
                WIDEN,
                "=&r,=&r,=&r,=&r,r", [words], dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1,
            )  # fmt: skip
        else:
            pairs = tl.inline_asm_elementwise(
                """{
                .reg .b32 one, bias;
                mov.b32 one, 0x3f803f80; mov.b32 bias, 0xc308c308;
                shr.u32 $1, $4, 4; shr.u32 $2, $4, 8; shr.u32 $3, $4, 12;
                lop3.b32 $0, $4, 0x000f000f, 0x43004300, 0xea;
                lop3.b32 $1, $1, 0x000f000f, 0x43004300, 0xea;
                lop3.b32 $2, $2, 0x000f000f, 0x43004300, 0xea;
                lop3.b32 $3, $3, 0x000f000f, 0x43004300, 0xea;
                fma.rn.bf16x2 $0, $0, one, bias;
                fma.rn.bf16x2 $1, $1, one, bias;
                fma.rn.bf16x2 $2, $2, one, bias;
                fma.rn.bf16x2 $3, $3, one, bias;
                }""",
                "=&r,=&r,=&r,=&r,r", [words], dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1,
            )  # fmt: skip
        p0, p1 = _halves(pairs[0], DTYPE), _halves(pairs[1], DTYPE)
        p2, p3 = _halves(pairs[2], DTYPE), _halves(pairs[3], DTYPE)
    else:
        p0, p1, p2, p3 = _codes(words, 0), _codes(words, 4), _codes(words, 8), _codes(words, 12)
    weights = tl.join(tl.join(p0, p1), tl.join(p2, p3))  # lane, slab | input + 1, output + 8, input + 8
    weights = tl.reshape(weights, (OUTPUTS // 16, 8, 4, 8, 2, 2, 2))
    weights = tl.permute(weights, (0, 5, 1, 3, 6, 2, 4))  # output: tile, + 8, lane / 4; input: slab, + 8, lane % 4, + 1
    return tl.reshape(weights, (OUTPUTS, 128))


@jit
def _halves(pair, DTYPE: tl.constexpr):
    low, high = (pair & 0xFFFF).to(tl.int16), (pair >> 16).to(tl.int16)
    return tl.join(low.to(DTYPE, bitcast=True), high.to(DTYPE, bitcast=True))


@jit
def _codes(words, SHIFT: tl.constexpr):
    """The plain twin of the assembly: the codes at one place in both halves of each word, less 8."""
    return tl.join(((words >> SHIFT) & 15) - 8, ((words >> (SHIFT + 16)) & 15) - 8)
