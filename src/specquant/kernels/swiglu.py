"""The gated activation of a Llama MLP (SwiGLU, arXiv 2002.05202), also with quantization."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from specquant.kernels.activations import SMALLEST, quantize_per_token
from specquant.kernels.fp8 import quantize_per_token_e4m3
from specquant.kernels.launch import jit, on_gpu, overlapping, tl, triton, wait_for_previous
from specquant.kernels.rounding import row_codes, row_scale

BLOCK = 512  # columns of a block

# Rows, or their codes and scales.
Gated = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def swiglu(
    gate_up: torch.Tensor,
    quantized: bool = False,
    code_dtype: torch.dtype = torch.int8,
    next_early: bool = False,
) -> Gated:
    """silu(gate) * up of gate_up [rows, 2 * size], the gate in the first half -> [rows, size] in the same dtype.

    Rounded to that dtype after silu and after the product. quantized: codes and scales instead, as `quantize_per_token`
    makes them of the rounded product, or with torch.float8_e4m3fn as `code_dtype` as `quantize_per_token_e4m3` does. A
    row does not depend on the other rows. next_early: as of `overlapping`.
    """
    if on_gpu(gate_up):
        return swiglu_triton(gate_up, quantized, code_dtype, next_early)
    return swiglu_reference(gate_up, quantized, code_dtype)


def swiglu_reference(gate_up: torch.Tensor, quantized: bool = False, code_dtype: torch.dtype = torch.int8) -> Gated:
    """What `swiglu` computes, by torch."""
    gate, up = gate_up.chunk(2, dim=-1)
    product = F.silu(gate) * up
    if quantized:
        return (quantize_per_token if code_dtype == torch.int8 else quantize_per_token_e4m3)(product)
    return product


def swiglu_triton(
    gate_up: torch.Tensor,
    quantized: bool = False,
    code_dtype: torch.dtype = torch.int8,
    next_early: bool = False,
) -> Gated:
    """`swiglu` by one launch, or two where a row's scale must be known first: a row is too long for one block."""
    gate_up = gate_up.contiguous()
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    parts = triton.cdiv(size, BLOCK)
    product = torch.empty(rows, size, dtype=gate_up.dtype, device=gate_up.device)
    largest = torch.empty(rows, parts, dtype=torch.float32, device=gate_up.device) if quantized else None
    options = {"PARTS": parts, "BLOCK": BLOCK, "num_warps": 4} | overlapping(gate_up.device, next_early)
    _swiglu_kernel[(rows, parts)](gate_up, product, largest, size, **options)
    if not quantized:
        return product
    codes = torch.empty_like(product, dtype=code_dtype)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=gate_up.device)
    _quantize_kernel[(rows, parts)](
        product,
        largest,
        codes,
        scales,
        size,
        PADDED_PARTS=triton.next_power_of_2(parts),
        SMALLEST=SMALLEST,
        **options,
    )
    return codes, scales


@jit
def _swiglu_kernel(gate_up, output, largest, size, PARTS: tl.constexpr, BLOCK: tl.constexpr, OVERLAPPING: tl.constexpr):
    wait_for_previous(OVERLAPPING, next_at_once=False)
    row, part = tl.program_id(0), tl.program_id(1)
    column = part * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    gate = tl.load(gate_up + row * 2 * size + column, mask=inside, other=0.0)
    up = tl.load(gate_up + (row * 2 + 1) * size + column, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    gated = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    product = (gated.to(tl.float32) * up.to(tl.float32)).to(gate.dtype)
    tl.store(output + row * size + column, product, mask=inside)
    if largest is not None:
        tl.store(largest + row * PARTS + part, tl.max(tl.abs(product.to(tl.float32)), 0))


@jit
def _quantize_kernel(
    values,
    largest,  # [rows, PARTS]
    codes,
    scales,
    size,
    PARTS: tl.constexpr,
    PADDED_PARTS: tl.constexpr,
    SMALLEST: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAPPING: tl.constexpr,
):
    wait_for_previous(OVERLAPPING, next_at_once=False)
    row, part = tl.program_id(0), tl.program_id(1)
    each = tl.arange(0, PADDED_PARTS)
    peaks = tl.load(largest + row * PARTS + each, mask=each < PARTS, other=0.0)
    scale = row_scale(tl.max(peaks, 0), codes.dtype.element_ty, SMALLEST)
    column = part * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    value = tl.load(values + row * size + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(codes + row * size + column, row_codes(value, scale, codes.dtype.element_ty), mask=inside)
    if part == 0:
        tl.store(scales + row, scale)
