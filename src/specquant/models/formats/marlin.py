"""Marlin's order of 4-bit codes and of scales (arXiv 2408.11743), and SpecMQuant's checkpoints, which are in it.

Codes [in, out] are cut into tiles of 16 inputs by 64 outputs. A tile is 32 lanes of 4 words of 8 nibbles, int32
[in / 16, out * 2] in all. Lane 4 g + c of word j holds outputs 16 j + 8 b + g for b of 0 and 1, of four inputs each:
2 c, 2 c + 1, 2 c + 8 and 2 c + 9 for 16-bit operands, 4 c to 4 c + 3 for 8-bit ones. In which nibble each lies is up to
the kernel.

SpecMQuant joins q, k and v along the outputs to `qkv_proj`, gate and up to `gate_up_proj`, and then repacks what
AutoGPTQ wrote: `qweight` in this order, `scales` [groups, out] in the order of its accumulators. Its zero points are
all 8, and left out.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from specquant.models.formats.common import (
    Format,
    Matrix,
    Tensors,
    field,
    groups_of,
    nibbles,
    per_128,
    take,
    take_scales,
)
from specquant.models.formats.gptq import gptq_fields

INTERLEAVED = (0, 2, 4, 6, 1, 3, 5, 7)  # value of each nibble, from the lowest: both outputs of a lane, inputs inmost


def read_specmquant_w4a16(quantization: Mapping[str, Any]) -> Format:
    """The format of a W4A16 checkpoint that SpecMQuant has converted; its quantization_config is still AutoGPTQ's."""
    group_size, _ = gptq_fields(quantization)
    field(quantization, "sym", (True,))
    if quantization.get("desc_act") and group_size:
        field(quantization, "static_groups", (True,))  # else inputs have moved between groups; where to, is left out

    def shapes(outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        return {"qweight": (inputs // 16, outputs * 2), "scales": (groups_of(inputs, group_size), outputs)}

    return Format("w4a16-g128", shapes, partial(_decode, per_group=group_size > 0))


def _decode(tensors: Tensors, per_group: bool) -> Matrix:
    codes = marlin_codes(take(tensors, "qweight", torch.int32), INTERLEAVED, operand_bits=16)
    scales = take_scales(tensors, "scales")
    scales = group_scales_in_order(scales) if per_group and len(scales) > 1 else channel_scales_in_order(scales)
    return Matrix(codes, step=per_128(scales.t(), codes.shape[1]))


def marlin_codes(words: torch.Tensor, value_of_nibble: tuple[int, ...], operand_bits: int) -> torch.Tensor:
    """int32 [in / 16, out * 2] -> numbers 0 to 15, uint8 [out, in]."""
    nibble_of_value = torch.tensor(value_of_nibble).argsort()
    inputs, outputs = words.shape[0], words.shape[1] // 128
    values = nibbles(words)[..., nibble_of_value].reshape(inputs, outputs, 8, 4, 4, 2, 2, 2)
    # inputs / 16, outputs / 64, g, c, j, b, and the four inputs: + 8 and + 1, or + 2 and + 1
    input_dims = (0, 6, 3, 7) if operand_bits == 16 else (0, 3, 6, 7)
    return values.permute(1, 4, 5, 2, *input_dims).reshape(outputs * 64, inputs * 16)


def group_scales_in_order(scales: torch.Tensor) -> torch.Tensor:
    """Scales of groups [groups, out] out of Marlin's order: 64 outputs lie as 8 columns of 8."""
    return scales.unflatten(1, (-1, 8, 8)).transpose(2, 3).flatten(1)


def channel_scales_in_order(scales: torch.Tensor) -> torch.Tensor:
    """Scales of channels [1, out] out of Marlin's order: 32 outputs lie as pairs, every fourth pair first."""
    return scales.unflatten(1, (-1, 4, 4, 2)).transpose(2, 3).flatten(1)
