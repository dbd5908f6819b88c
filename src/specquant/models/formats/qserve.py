"""QServe's checkpoints (arXiv 2405.04532), as QServe's and DeepCompressor's converters write them, also as SpecMQuant
has joined their q, k and v, gate and up.

They have no quantization_config; what their tensors are called says what they hold. Of a matrix [out, in] there are

* W4A8: `qweight`, int8 [out, in / 2], in tiles of 32 outputs by 32 inputs: lane 4 g + c of 32 holds, from the outmost,
  inputs + 16, outputs + 8, and inputs 4 c to 4 c + 3 in 16 bytes; a byte has output g in its low half and g + 16 in its
  high one. `s1_scales`, fp16 [out].
  - Per channel: `s1_szeros`, fp16 [out]: zero point times scale. A weight is s1_scales * code - s1_szeros.
  - Per group: `s2_scales` and `s2_zeros`, int8 [in / 128, out], 32 outputs as 8 columns of 4: scale, and minus zero
    point times scale, modulo 256. A weight is s1_scales * (s2_scales * code + s2_zeros), the latter an int8.
* W8A8: `weight`, int8 [out, in]; `dequant_scale` [out].

DeepCompressor can also make zero points that are no multiples of the scale ("PostScale"): these are refused.
"""

from collections.abc import Mapping
from typing import Any

import torch

from specquant.errors import SpecquantError
from specquant.models.formats.common import Format, Matrix, Tensors, field, groups_of, take, take_scales


def read_qserve(quantization: Mapping[str, Any]) -> Format:
    """The format of a checkpoint with that quantization_config, which SGLang calls "qoq"."""
    field(quantization, next((name for name in ("wbits", "weight_bits") if name in quantization), "wbits"), (4,))
    return QOQ if field(quantization, "group_size", (-1, 128)) == -1 else QOQ_GROUP


def qserve_of_tensors(suffixes: set[str]) -> Format | None:
    """The format of a checkpoint whose tensors' names end in these; None for another than QServe's."""
    if "dequant_scale" in suffixes:
        return W8A8
    if "s1_scales" in suffixes:
        return QOQ_GROUP if "s2_scales" in suffixes else QOQ
    return None


def _decode_per_channel(tensors: Tensors) -> Matrix:
    scales, scaled_zeros = (take_scales(tensors, name).float()[:, None] for name in ("s1_scales", "s1_szeros"))
    zeros = scaled_zeros / scales
    # The product was rounded to fp16.
    if not bool(((zeros - zeros.round()).abs() <= 2**-10 * zeros.round().abs()).all()) or not _are_codes(zeros.round()):
        raise SpecquantError(
            "s1_szeros holds zero points that are no whole numbers of steps, 0 to 15: quantize with zero_point PreScale"
        )
    return Matrix(_codes(tensors), unit=scales, zero=zeros.round())


def _decode_per_group(tensors: Tensors) -> Matrix:
    codes = _codes(tensors)
    steps, scaled_zeros = (
        take(tensors, name, torch.int8).int().unflatten(1, (-1, 8, 4)).transpose(2, 3).flatten(1).t()
        for name in ("s2_scales", "s2_zeros")
    )
    if not bool((steps > 0).all()):
        raise SpecquantError("s2_scales holds scales that are not above 0: the checkpoint is damaged")
    zeros, rest = (-scaled_zeros) % 256 // steps, (-scaled_zeros) % 256 % steps
    if rest.any() or not _are_codes(zeros):
        raise SpecquantError(
            "s2_zeros holds zero points that are no whole numbers of steps, 0 to 15: quantize with zero_point PreScale"
        )
    integers = (codes.unflatten(1, (-1, 128)).int() - zeros[..., None]) * steps[..., None]
    if integers.min() < -128 or integers.max() > 127:
        raise SpecquantError("s2_scales and s2_zeros make weights that leave int8: the checkpoint is damaged")
    return Matrix(codes, unit=take_scales(tensors, "s1_scales")[:, None], step=steps, zero=zeros)


def _codes(tensors: Tensors) -> torch.Tensor:
    packed = take(tensors, "qweight", torch.int8).view(torch.uint8)
    outputs, inputs = packed.shape[0] // 32, packed.shape[1] // 16
    tiles = torch.stack((packed & 15, packed >> 4)).reshape(2, outputs, inputs, 8, 4, 2, 2, 4)
    # + 16 outputs, outputs / 32, inputs / 32, g, c, + 16 inputs, + 8 outputs, + 1 inputs
    return tiles.permute(1, 0, 6, 3, 2, 5, 4, 7).reshape(outputs * 32, inputs * 32)


def _are_codes(zeros: torch.Tensor) -> bool:
    return bool(((zeros >= 0) & (zeros <= 15)).all())


def _decode_w8a8(tensors: Tensors) -> Matrix:
    return Matrix(take(tensors, "weight", torch.int8), unit=take_scales(tensors, "dequant_scale")[:, None])


QOQ = Format(
    "w4a8-qoq",
    lambda outputs, inputs: {"qweight": (outputs, inputs // 2), "s1_scales": (outputs,), "s1_szeros": (outputs,)},
    _decode_per_channel,
)
QOQ_GROUP = Format(
    "w4a8-qoq-g128",
    lambda outputs, inputs: {
        "qweight": (outputs, inputs // 2),
        "s1_scales": (outputs,),
        "s2_scales": (groups_of(inputs, 128), outputs),
        "s2_zeros": (groups_of(inputs, 128), outputs),
    },
    _decode_per_group,
)
W8A8 = Format("w8a8", lambda outputs, inputs: {"weight": (outputs, inputs), "dequant_scale": (outputs,)}, _decode_w8a8)
