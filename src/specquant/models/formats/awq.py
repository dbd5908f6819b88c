"""AWQ's checkpoints, as AutoAWQ writes them in its GEMM version.

Of a matrix [out, in] there are `qweight`, int32 [in, out / 8], and `qzeros`, int32 [groups, out / 8]: eight consecutive
outputs in a word, from the lowest nibble those at 0, 2, 4, 6, 1, 3, 5 and 7; `scales`, [groups, out]. A weight is
scale * (code - zero).
"""

from collections.abc import Mapping
from typing import Any

import torch

from specquant.models.formats.common import (
    Format,
    Matrix,
    Tensors,
    field,
    group_size_field,
    groups_of,
    nibbles,
    per_128,
    take,
    take_scales,
)

NIBBLE_OF_OUTPUT = (0, 4, 1, 5, 2, 6, 3, 7)


def read_awq(quantization: Mapping[str, Any]) -> Format:
    """The format of a checkpoint with that quantization_config. Raises SpecquantError for what cannot be loaded."""
    field(quantization, "bits", (4,))
    field(quantization, "zero_point", (True,))
    field(quantization, "version", ("gemm", "GEMM"), default="gemm")
    group_size = group_size_field(quantization)

    def shapes(outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        groups = groups_of(inputs, group_size)
        return {"qweight": (inputs, outputs // 8), "qzeros": (groups, outputs // 8), "scales": (groups, outputs)}

    return Format("w4a16-g128-asym", shapes, decode_awq)


def decode_awq(tensors: Tensors) -> Matrix:
    """Codes, and scales and zero points for every 128 inputs."""
    codes, zeros = (
        nibbles(take(tensors, name, torch.int32))[..., NIBBLE_OF_OUTPUT].flatten(1).t()
        for name in ("qweight", "qzeros")
    )
    inputs = codes.shape[1]
    return Matrix(codes, step=per_128(take_scales(tensors, "scales").t(), inputs), zero=per_128(zeros, inputs))
