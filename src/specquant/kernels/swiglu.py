"""The gated activation of a Llama MLP (SwiGLU, arXiv 2002.05202), also with int8 quantization, in one pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from specquant.kernels.activations import SMALLEST, quantize_per_token
from specquant.kernels.launch import jit, on_gpu, tl, triton
from specquant.kernels.rounding import int8_row

BLOCK = 1024  # columns of a block where nothing needs the whole row


def swiglu(gate_up: torch.Tensor, quantized: bool = False) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """silu(gate) * up of gate_up [rows, 2 * size], the gate in the first half -> [rows, size] in the same dtype.

    Rounded to that dtype after silu and after the product. quantized: codes and scales instead, as `quantize_per_token`
    makes them of the rounded product. A row does not depend on the other rows.
    """
    return (swiglu_triton if on_gpu(gate_up) else swiglu_reference)(gate_up, quantized)


def swiglu_reference(
    gate_up: torch.Tensor, quantized: bool = False
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """What `swiglu` computes, by torch."""
    gate, up = gate_up.chunk(2, dim=-1)
    product = F.silu(gate) * up
    return quantize_per_token(product) if quantized else product


def swiglu_triton(gate_up: torch.Tensor, quantized: bool = False) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`swiglu` by one launch; codes are int8. One block takes a whole row where it is quantized, for its largest."""
    gate_up = gate_up.contiguous()
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    output = torch.empty(rows, size, dtype=torch.int8 if quantized else gate_up.dtype, device=gate_up.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=gate_up.device) if quantized else None
    block = triton.next_power_of_2(size) if quantized else BLOCK
    _swiglu_kernel[(rows, triton.cdiv(size, block))](
        gate_up, output, scales, size, SMALLEST=SMALLEST, BLOCK=block, num_warps=max(4, min(32, block // 512))
    )
    return (output, scales) if quantized else output


@jit
def _swiglu_kernel(gate_up, output, scales, size, SMALLEST: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    gate = tl.load(gate_up + row * 2 * size + column, mask=inside, other=0.0)
    up = tl.load(gate_up + (row * 2 + 1) * size + column, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    gated = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    product = (gated.to(tl.float32) * up.to(tl.float32)).to(gate.dtype)
    if scales is not None:
        codes, scale = int8_row(product.to(tl.float32), SMALLEST)
        tl.store(output + row * size + column, codes, mask=inside)
        tl.store(scales + row, scale)
    else:
        tl.store(output + row * size + column, product, mask=inside)
