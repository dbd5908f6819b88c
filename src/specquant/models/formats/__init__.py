"""Checkpoints that other tools have quantized: each module knows one format, and what its tensors mean.

The facts are from the tools that write them and the programs that read them: AutoGPTQ and GPTQModel, AutoAWQ,
compressed-tensors, QQQ, QServe with DeepCompressor, SpecMQuant, vLLM.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from specquant.errors import SpecquantError
from specquant.models.checkpoint import Checkpoint
from specquant.models.fields import read_json, shown
from specquant.models.formats.awq import read_awq
from specquant.models.formats.common import Format, Matrix, left_out_by
from specquant.models.formats.compressed_tensors import read_compressed_tensors
from specquant.models.formats.gptq import read_gptq
from specquant.models.formats.marlin import read_specmquant_w4a16
from specquant.models.formats.qqq import read_qqq
from specquant.models.formats.qserve import qserve_of_tensors, read_qserve
from specquant.models.weights import LAYER_TENSORS, HuggingFaceWeights
from specquant.quant import PackedLinear, get_scheme

# Files in which AutoGPTQ and AutoAWQ wrote what is in config.json today, and names that have changed since.
SECTION_FILES = ("quantize_config.json", "quant_config.json")
TODAYS_NAMES = {"w_bit": "bits", "q_group_size": "group_size"}
SAID_TWICE = ("quant_method", "bits", "group_size", "sym", "desc_act", "checkpoint_format")
TILE_INPUTS = 32  # of which packed matrices are made, in every format
# quant_method in config.json's quantization_config -> what reads the rest of it.
FORMATS: dict[str, Callable[[Mapping[str, Any]], Format]] = {
    "gptq": read_gptq,
    "awq": read_awq,
    "compressed-tensors": read_compressed_tensors,
    "sparseml": read_compressed_tensors,  # its name at first
    "qqq": read_qqq,
    "qoq": read_qserve,
}


def find_format(config: PreTrainedConfig, checkpoint: Checkpoint) -> Format | None:
    """The format of a checkpoint of others; None for one in floating point and for one of ours.

    Raises SpecquantError that names the field of quantization_config which says what is unknown or not supported.
    """
    place, quantization = _find_section(config, checkpoint.path)
    if quantization is None:
        return qserve_of_tensors({name.rpartition(".")[2] for name in checkpoint.shapes})
    if not isinstance(quantization, dict):
        raise SpecquantError(f"{place}: quantization_config in config.json is no JSON object: copy it again")
    method = quantization.get("quant_method")
    if method == "specquant":
        return None
    if method not in list(FORMATS):
        raise SpecquantError(
            f"{place}: quantization_config: quant_method is {shown(method)}; what can be loaded is "
            f"{', '.join(['specquant', *FORMATS])}"
        )
    converted = method == "gptq" and any(name.endswith(".qkv_proj.qweight") for name in checkpoint.shapes)
    try:
        format = read_specmquant_w4a16(quantization) if converted else FORMATS[method](quantization)
        return format._replace(left_out=left_out_by(quantization, checkpoint.shapes))
    except SpecquantError as error:
        raise SpecquantError(f"{place}: {error}") from None


def _find_section(config: PreTrainedConfig, path: Path) -> tuple[Path, Any]:
    """What says how a checkpoint is quantized, and where it stands: quantization_config in config.json; as older tools
    wrote it, compression_config there, or a file of its own; (path, None) where there is nothing."""
    section = getattr(config, "quantization_config", None)
    file = next((path / name for name in SECTION_FILES if (path / name).is_file()), None)
    beside = None if file is None else _in_todays_terms(read_json(file))
    if section is not None:
        if beside is not None and isinstance(section, dict) and section.get("quant_method") != "specquant":
            for name in SAID_TWICE:
                if {name} <= section.keys() & beside.keys() and section[name] != beside[name]:
                    raise SpecquantError(
                        f"{path}: {name} is {shown(section[name])} in config.json and {shown(beside[name])} in "
                        f"{file.name}: copy the directory again"
                    )
        return path, section
    older = getattr(config, "compression_config", None)
    if isinstance(older, dict):
        return path, {"quant_method": "compressed-tensors"} | older
    return (path, older) if beside is None else (file, beside)


def _in_todays_terms(section: dict[str, Any]) -> dict[str, Any]:
    """A section in a file of its own says less, and AutoAWQ's says it in other words."""
    method = "awq" if "w_bit" in section else "qqq" if "wbits" in section else "gptq"
    return {"quant_method": method} | {TODAYS_NAMES.get(name, name): value for name, value in section.items()}


class FormatWeights(HuggingFaceWeights):
    """Weights in a format of others, in modules that are named as transformers does; fp16 matrices of the model are
    those that were not quantized (`scheme_of`)."""

    def __init__(self, checkpoint: Checkpoint, config: PreTrainedConfig, format: Format, prefix: str = "model."):
        super().__init__(checkpoint, config, get_scheme(format.scheme), prefix)
        self.format = format

    def scheme_of(self, name, empty):
        matrices = {part: self._shapes(name, rows, empty) for part, rows in self._parts(name, empty).items()}
        floating = [part for part, shapes in matrices.items() if self._is_floating(part, shapes)]
        if not floating:
            return self.scheme
        fields = {part: self.format.left_out(part) for part in floating}
        unsaid = next((part for part, field in fields.items() if field is None), None)
        if unsaid is not None and "weight" in matrices[unsaid]:
            return self.scheme  # what it lacks is said where that is looked for
        if unsaid is not None:
            raise SpecquantError(
                f"{self.checkpoint.path}: {unsaid} is not quantized, and neither ignore nor modules_to_not_convert of "
                "quantization_config says so: copy the directory again"
            )
        if len(floating) < len(matrices):
            quantized = next(part for part in matrices if part not in floating)
            raise SpecquantError(
                f"{self.checkpoint.path}: quantization_config: {fields[floating[0]]} leaves {floating[0]} as it was, "
                f"and {quantized} is quantized: these are multiplied together here, so leave out both or neither"
            )
        return get_scheme("fp16")

    def linear_sources(self, name, empty):
        if self.scheme_of(name, empty) is not self.scheme:
            return super().linear_sources(name, empty)
        sources = {
            f"{part}.{suffix}": shape
            for part, rows in self._parts(name, empty).items()
            for suffix, shape in self._shapes(name, rows, empty).items()
            if suffix not in self.format.optional or f"{part}.{suffix}" in self.checkpoint
        }
        biases = self.sources(f"{name}.bias", (empty.out_features,))
        if empty.bias is None:  # some writers give every matrix one, of zeros
            biases = {source: shape for source, shape in biases.items() if source in self.checkpoint}
        return sources | biases

    def linear(self, name, empty, device):
        if self.scheme_of(name, empty) is not self.scheme:
            return super().linear(name, empty, device)
        matrices = []
        for part, rows in self._parts(name, empty).items():
            sources = {suffix: f"{part}.{suffix}" for suffix in self.format.shapes(rows, empty.in_features)}
            tensors = {
                suffix: self.checkpoint.read(source, device)
                for suffix, source in sources.items()
                if source in self.checkpoint
            }
            try:
                matrices.append(self.format.decode(tensors))
            except SpecquantError as error:
                raise SpecquantError(f"{self.checkpoint.path}: {part}: {error}") from None
        whole = Matrix(*(None if parts[0] is None else torch.cat(parts) for parts in zip(*matrices, strict=True)))
        self._store(name, empty, whole)
        self._read_bias(name, empty, device)
        return empty

    def _store(self, name: str, linear: PackedLinear, matrix: Matrix) -> None:
        held = linear.takes_grid(*matrix[1:])
        if held:
            linear.set_grid(*matrix[1:])
            linear.set_codes(matrix.codes)
            pairs = zip(linear.grid()[:3], matrix[1:], strict=True)
            held = all(given is None or _same(stored, given.to(stored)) for stored, given in pairs)
        if not held:
            raise SpecquantError(
                f"{self.checkpoint.path}: {name} has scales or zero points that {self.format.scheme} cannot hold"
            )

    def _read_bias(self, name: str, linear: PackedLinear, device: torch.device | str) -> None:
        if linear.bias is not None:
            linear.bias = self.read(f"{name}.bias", linear.bias, device)
            return
        for source in self.sources(f"{name}.bias", (linear.out_features,)):
            if source in self.checkpoint and self.checkpoint.read(source).any():
                raise SpecquantError(
                    f"{self.checkpoint.path} has a tensor that config.json does not call for: {source}"
                )

    def _shapes(self, name: str, rows: int, empty: PackedLinear) -> dict[str, tuple[int, ...]]:
        if self.scheme.weight_bits == 4 and empty.in_features % TILE_INPUTS:
            raise SpecquantError(
                f"{self.checkpoint.path}: {name} has {empty.in_features} inputs, no multiple of {TILE_INPUTS}: no "
                "format packs such a matrix in 4 bits"
            )
        try:
            return self.format.shapes(rows, empty.in_features)
        except SpecquantError as error:
            raise SpecquantError(f"{self.checkpoint.path}: {name}: {error}") from None

    def _is_floating(self, part: str, shapes: dict[str, tuple[int, ...]]) -> bool:
        """Whether the checkpoint has that matrix as it was before quantization."""
        there = {suffix for suffix in {"weight", *shapes} if f"{part}.{suffix}" in self.checkpoint}
        return there == {"weight"}

    def _parts(self, name: str, empty: PackedLinear) -> dict[str, int]:
        """The checkpoint's matrices of which one of ours is made, and how many outputs each has."""
        layer, _, module = name.rpartition(".")
        block = LAYER_TENSORS[module][0].rpartition(".")[0]
        fused = f"{self.prefix}{layer}.{block}.{module}"
        shapes = self._shapes(name, empty.out_features, empty)
        if any(f"{fused}.{suffix}" in self.checkpoint for suffix in shapes):
            return {fused: empty.out_features}
        sources = self.sources(f"{name}.weight", (empty.out_features, empty.in_features))
        return {source.removesuffix(".weight"): shape[0] for source, shape in sources.items()}


def _same(stored: torch.Tensor, given: torch.Tensor) -> bool:
    """Whether numbers are finite and the same but for their rounding to fp16."""
    return bool((given.isfinite() & ((stored - given).abs() <= 2**-11 * given.abs() + 2**-24)).all())
