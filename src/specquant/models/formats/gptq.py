"""GPTQ's checkpoints, as AutoGPTQ and GPTQModel write them.

Of a matrix [out, in] there are `qweight`, int32 [in / 8, out]: eight consecutive inputs in a word, the first one
lowest; `scales` [groups, out]; `qzeros`, int32 [groups, out / 8]: zero points of eight consecutive outputs, less 1 in
the first version of the format ("gptq"), as they are in the second ("gptq_v2"); `g_idx` [in]: each input's group. A
weight is scale * (code - zero), and a symmetric one has zero point 8.

Inputs may be quantized in the order of their activations ("desc_act"). With static groups, groups are still those of
consecutive inputs, so that nothing of the order remains; otherwise every product would have to permute its inputs.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from specquant.errors import SpecquantError
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
    words,
)


def read_gptq(quantization: Mapping[str, Any]) -> Format:
    """The format of a checkpoint with that quantization_config. Raises SpecquantError for what cannot be loaded."""
    group_size, version = gptq_fields(quantization)

    def shapes(outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        groups = groups_of(inputs, group_size)
        return {
            "qweight": (inputs // 8, outputs),
            "qzeros": (groups, outputs // 8),
            "scales": (groups, outputs),
            "g_idx": (inputs,),
        }

    # Without an order of activations, or without groups, g_idx says nothing that is not known.
    optional = () if quantization.get("desc_act") and group_size else ("g_idx",)
    return Format("w4a16-g128", shapes, partial(decode_gptq, version=version), optional)


def gptq_config(group_size: int) -> dict[str, Any]:
    """quantization_config of our weights in w4a16-g128, as `encode_gptq` writes them in groups of that size."""
    sizes = {"bits": 4, "group_size": group_size, "sym": True, "desc_act": False}
    return {"quant_method": "gptq"} | sizes | {"checkpoint_format": "gptq"}


def encode_gptq(matrix: Matrix) -> dict[str, torch.Tensor]:
    """The inverse of `decode_gptq` for version 1."""
    outputs, inputs = matrix.codes.shape
    groups = matrix.step.shape[1]
    return {
        "qweight": words(matrix.codes.unflatten(1, (-1, 8))).t(),
        "qzeros": words(torch.full((groups, outputs // 8, 8), 7)),
        "scales": matrix.step.half().t(),
        "g_idx": torch.arange(inputs, dtype=torch.int32) // (inputs // groups),
    }


def gptq_fields(quantization: Mapping[str, Any]) -> tuple[int, int]:
    """Group size (0: all inputs) and version of the format."""
    field(quantization, "bits", (4,))
    field(quantization, "sym", (True,), default=True)
    field(quantization, "lm_head", (False, None))
    field(quantization, "dynamic", (None, {}))
    field(quantization, "pack_dtype", ("int32", None))
    field(quantization, "is_marlin_format", (False, None))
    versions = {"gptq": 1, "gptq_v2": 2}
    fields = [name for name in ("checkpoint_format", "format") if quantization.get(name)]
    named = {versions[field(quantization, name, list(versions))] for name in fields}
    if len(named) > 1:
        raise SpecquantError("quantization_config: checkpoint_format and format contradict each other")
    return group_size_field(quantization), named.pop() if named else 1


def decode_gptq(tensors: Tensors, version: int) -> Matrix:
    """Codes, and a scale for every 128 inputs."""
    codes = nibbles(take(tensors, "qweight", torch.int32)).transpose(1, 2).flatten(0, 1).t()
    inputs = codes.shape[1]
    scales = take_scales(tensors, "scales").t()
    zeros = nibbles(take(tensors, "qzeros", torch.int32))
    wanted = 8 if version == 2 else 7
    if (zeros != wanted).any():
        found = zeros[zeros != wanted][0].item()
        raise SpecquantError(
            f"qzeros holds {found} where symmetric weights (sym true) have {wanted} in version {version} of the "
            "format: sym or checkpoint_format in quantization_config is wrong"
        )
    if "g_idx" in tensors:
        group_of = take(tensors, "g_idx", torch.int32, torch.int64)
        if (group_of != torch.arange(inputs, device=group_of.device) // (inputs // scales.shape[1])).any():
            raise SpecquantError(
                "g_idx is not that of groups of consecutive inputs: with desc_act true, quantize with static groups"
            )
    return Matrix(codes, step=per_128(scales, inputs))
