"""compressed-tensors' checkpoints, as llm-compressor writes them: W4A16, W8A8 and FP8.

`config_groups` of quantization_config says what is quantized how. Of a matrix [out, in] there are

* packed ("pack-quantized", 4 bits): `weight_packed`, int32 [out, in / 8]: eight consecutive inputs in a word, the first
  one lowest, each 8 more than the signed integer; `weight_scale` [out, groups]; `weight_shape`; where asymmetric,
  `weight_zero_point`, int32 [out / 8, groups]: eight consecutive outputs in a word, likewise.
* plain ("int-quantized" or "float-quantized", 8 bits): `weight`, int8 or e4m3 [out, in]; `weight_scale` [out, 1], or
  [1] for all of it.

A weight is scale * (number - zero).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

from specquant.errors import SpecquantError
from specquant.models.fields import shown
from specquant.models.formats.common import (
    Format,
    Matrix,
    Tensors,
    field,
    group_size_field,
    groups_of,
    nibbles,
    part_of,
    per_128,
    take,
    take_scales,
    words,
)
from specquant.quant import Scheme


class Plain(NamedTuple):
    """What a plain format is called in our terms, and in those of quantization_config."""

    scheme: str
    type: str
    dtype: torch.dtype


PLAIN = {
    "int-quantized": Plain("w8a8", "int", torch.int8),
    "float-quantized": Plain("fp8", "float", torch.float8_e4m3fn),
}


def read_compressed_tensors(quantization: Mapping[str, Any]) -> Format:
    """The format of a checkpoint with that quantization_config. Raises SpecquantError for what cannot be loaded."""
    field(quantization, "quantization_status", ("compressed", "frozen", None))  # the second: compressed, at first
    field(quantization, "kv_cache_scheme", (None,))
    field(quantization, "transform_config", (None, {}))
    field(part_of(quantization, "sparsity_config"), "format", (None, "dense"), where="sparsity_config.")
    groups = quantization.get("config_groups")
    if not (isinstance(groups, dict) and len(groups) == 1 and all(isinstance(part, dict) for part in groups.values())):
        raise SpecquantError("quantization_config: config_groups has not one group; what can be loaded is one")
    ((group, section),) = groups.items()
    where = f"config_groups.{group}."
    field(section, "targets", (["Linear"],), where=where)
    field(section, "output_activations", (None,), where=where)
    weights = part_of(section, "weights", where)
    activations = part_of(section, "input_activations", where)
    name = section.get("format") or quantization.get("format")
    if name == "pack-quantized":
        if activations:
            raise SpecquantError(f"quantization_config: {where}input_activations are quantized; W4A16 can be loaded")
        return _read_w4a16(weights, f"{where}weights.")
    if name == "naive-quantized":  # what both were called at first
        name = next((name for name, plain in PLAIN.items() if plain.type == weights.get("type")), name)
    if isinstance(name, str) and name in PLAIN:
        return _read_8_bits(PLAIN[name], weights, activations, where)
    choice = ", ".join(map(repr, ["pack-quantized", *PLAIN]))
    raise SpecquantError(f"quantization_config: format is {shown(name)}; what can be loaded is {choice}")


def _read_w4a16(weights: Mapping[str, Any], where: str) -> Format:
    field(weights, "num_bits", (4,), where=where)
    field(weights, "type", ("int",), where=where)
    field(weights, "actorder", (None, "weight", "static"), where=where)  # "group" moves inputs between groups
    symmetric = field(weights, "symmetric", (True, False), where=where)
    per_group = field(weights, "strategy", ("group", "channel"), where=where) == "group"
    group_size = group_size_field(weights, where) if per_group else 0

    def shapes(outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        groups = groups_of(inputs, group_size)
        shapes = {"weight_packed": (outputs, inputs // 8), "weight_scale": (outputs, groups), "weight_shape": (2,)}
        return shapes if symmetric else shapes | {"weight_zero_point": (outputs // 8, groups)}

    return Format("w4a16-g128" if symmetric else "w4a16-g128-asym", shapes, partial(_decode_w4a16, symmetric))


def _decode_w4a16(symmetric: bool, tensors: Tensors) -> Matrix:
    codes = nibbles(take(tensors, "weight_packed", torch.int32)).flatten(1)
    inputs = codes.shape[1]
    shape = take(tensors, "weight_shape", torch.int32, torch.int64).tolist()
    if shape != list(codes.shape):
        raise SpecquantError(f"weight_shape says {shape} and weight_packed has {list(codes.shape)}")
    scales = per_128(take_scales(tensors, "weight_scale"), inputs)
    if symmetric:
        return Matrix(codes, step=scales)
    zeros = nibbles(take(tensors, "weight_zero_point", torch.int32)).transpose(1, 2).flatten(0, 1)
    return Matrix(codes, step=scales, zero=per_128(zeros, inputs))


def _read_8_bits(plain: Plain, weights: Mapping[str, Any], activations: Mapping[str, Any], where: str) -> Format:
    for part, section in (("weights", weights), ("input_activations", activations)):
        for name, value in (("num_bits", 8), ("type", plain.type), ("symmetric", True)):
            field(section, name, (value,), where=f"{where}{part}.")
    field(activations, "dynamic", (True,), where=f"{where}input_activations.")
    field(activations, "strategy", ("token",), where=f"{where}input_activations.")
    per_channel = field(weights, "strategy", ("channel", "tensor"), where=f"{where}weights.") == "channel"

    def shapes(outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
        return {"weight": (outputs, inputs), "weight_scale": (outputs, 1) if per_channel else (1,)}

    return Format(plain.scheme, shapes, partial(_decode_8_bits, plain.dtype))


def _decode_8_bits(dtype: torch.dtype, tensors: Tensors) -> Matrix:
    codes = take(tensors, "weight", dtype)
    if dtype.is_floating_point and bool(codes.float().isnan().any()):
        raise SpecquantError("weight holds NaN: copy it again")
    return Matrix(codes, unit=take_scales(tensors, "weight_scale").reshape(-1, 1).expand(len(codes), 1))


def compressed_tensors_config(scheme: Scheme, group_size: int) -> dict[str, Any]:
    """quantization_config of our weights in that scheme, which is w8a8, fp8, or w4a16 in groups of that size."""
    plain = next((name for name, plain in PLAIN.items() if plain.scheme == scheme.name), None)
    kind = PLAIN[plain].type if plain else "int"
    numbers = {"num_bits": scheme.weight_bits, "type": kind, "symmetric": scheme.symmetric}
    weights = numbers | ({"strategy": "channel"} if plain else {"strategy": "group", "group_size": group_size})
    activations = numbers | {"strategy": "token", "dynamic": True} if plain else None
    name = plain or "pack-quantized"
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations, "format": name}
    return {
        "quant_method": "compressed-tensors",
        "format": name,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def encode_compressed_tensors(scheme: Scheme, matrix: Matrix) -> dict[str, torch.Tensor]:
    """The tensors of a matrix of ours in that scheme."""
    if scheme.name == "fp8":
        return {"weight": matrix.codes.to(torch.float8_e4m3fn), "weight_scale": matrix.unit}
    if scheme.name == "w8a8":
        return {"weight": matrix.codes, "weight_scale": matrix.unit.half()}
    tensors = {
        "weight_packed": words(matrix.codes.unflatten(1, (-1, 8))),
        "weight_scale": matrix.step.half(),
        "weight_shape": torch.tensor(matrix.codes.shape),
    }
    if not scheme.symmetric:
        tensors["weight_zero_point"] = words(matrix.zero.t().unflatten(1, (-1, 8))).t()
    return tensors
