"""QQQ's checkpoints (arXiv 2406.09904), also as SpecMQuant has joined their q, k and v, gate and up.

Of a matrix [out, in] there are `B`, codes in Marlin's order (`formats.marlin`) for 8-bit operands; `s_channel`, float32
[1, out], in the order of its scales of channels; and `s_group`.

* Per channel: codes are signed, in two's complement; `s_channel` is a 16th of the scale, as the kernel multiplies the
  code in the upper half of a byte; `s_group` is empty. A weight is 16 * s_channel * code.
* Per group: codes are 8 more than the integer; `s_group`, fp16 [groups, out] in the order of Marlin's scales of groups,
  is the group's scale over the channel's. A weight is s_channel * round(s_group * (code - 8)), which is an int8 as QQQ
  writes it. GPTQModel lets it reach 160, and the kernel that reads it brings it back to int8.
"""

from collections.abc import Mapping
from typing import Any

import torch

from specquant.errors import SpecquantError
from specquant.models.formats.common import Format, Matrix, Tensors, field, groups_of, take, take_scales
from specquant.models.formats.marlin import (
    INTERLEAVED,
    channel_scales_in_order,
    group_scales_in_order,
    marlin_codes,
)

MOST_BEFORE_CLAMPING = 192  # half as much again as int8 holds
ALTERNATING = (4, 0, 5, 1, 6, 2, 7, 3)  # value of each nibble in codes per channel


def read_qqq(quantization: Mapping[str, Any]) -> Format:
    """The format of a checkpoint with that quantization_config. Raises SpecquantError for what cannot be loaded."""
    field(quantization, "wbits" if "wbits" in quantization else "bits", (4,))
    field(quantization, "sym", (True, None))
    if field(quantization, "group_size", (-1, 128)) == -1:

        def shapes(outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
            return {"B": (inputs // 16, outputs * 2), "s_channel": (1, outputs), "s_group": (0,)}

        return Format("w4a8-qqq", shapes, _decode_per_channel, optional=("s_group",))

    def shapes_per_group(outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        return {
            "B": (inputs // 16, outputs * 2),
            "s_channel": (1, outputs),
            "s_group": (groups_of(inputs, 128), outputs),
        }

    return Format("w4a8-qqq-g128", shapes_per_group, _decode_per_group)


def _decode_per_channel(tensors: Tensors) -> Matrix:
    codes = marlin_codes(take(tensors, "B", torch.int32), ALTERNATING, operand_bits=8)
    scales = channel_scales_in_order(take_scales(tensors, "s_channel")).float()
    return Matrix(codes ^ 8, unit=16 * scales.t())


def _decode_per_group(tensors: Tensors) -> Matrix:
    codes = marlin_codes(take(tensors, "B", torch.int32), INTERLEAVED, operand_bits=8)
    steps = group_scales_in_order(take_scales(tensors, "s_group")).t()
    integers = (codes.unflatten(1, (-1, 128)).float() - 8) * steps[..., None].float()
    if integers.round_().abs().max() > MOST_BEFORE_CLAMPING:
        raise SpecquantError("s_group makes weights that leave int8 by far: the checkpoint is damaged")
    return Matrix(codes, unit=channel_scales_in_order(take_scales(tensors, "s_channel")).t(), step=steps)
