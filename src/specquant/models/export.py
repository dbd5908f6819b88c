"""Write a model that `specquant quantize` has made, or an EAGLE head for it, in a form that other programs load."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig

from specquant.errors import SpecquantError, unknown
from specquant.files import require_new, written_whole
from specquant.models.checkpoint import (
    SINGLE_FILE,
    open_checkpoint,
    shard_name,
    write_index,
    write_shard,
)
from specquant.models.config import load_config
from specquant.models.eagle3 import FUSED, ROTATED, is_eagle3, load_eagle3_config
from specquant.models.fields import read_json
from specquant.models.formats.common import Matrix
from specquant.models.formats.compressed_tensors import compressed_tensors_config, encode_compressed_tensors
from specquant.models.formats.gptq import encode_gptq, gptq_config
from specquant.models.hub import HEAD_FILES, is_gguf, locate
from specquant.models.llama import Llama
from specquant.models.loading import check_eagle3_head, check_head, load_head_config, open_model, stored_scheme
from specquant.models.packaged import is_packaged
from specquant.models.quantize import COPIED_FILES
from specquant.models.transforms import original_ends, reading_rotated, rotation_of
from specquant.models.weights import Eagle3Weights, EagleWeights, HuggingFaceWeights, Weights, check, read_into
from specquant.quant import PackedLinear, Scheme, get_scheme

SMALLEST_GROUP = 32  # that programs have kernels for


class ExportFormat(NamedTuple):
    """A format that we write: its schemes, what quantization_config says for one and the size of its groups, and what
    encodes a matrix of one."""

    schemes: tuple[str, ...]
    config: Callable[[Scheme, int], dict[str, Any]]
    encode: Callable[[Scheme, Matrix], dict[str, torch.Tensor]]


EXPORT_FORMATS = {
    "compressed-tensors": ExportFormat(
        ("w4a16-g128", "w4a16-g128-asym", "w8a8", "fp8"), compressed_tensors_config, encode_compressed_tensors
    ),
    "gptq": ExportFormat(
        ("w4a16-g128",), lambda scheme, size: gptq_config(size), lambda scheme, matrix: encode_gptq(matrix)
    ),
}


def export_model(model_dir: str | Path, format: str, out_dir: str | Path) -> None:
    """Write the quantized model in `model_dir` again, as `format` stores it, one layer to a file.

    format: "compressed-tensors" (w4a16-g128, w4a16-g128-asym, w8a8, fp8), which transformers loads with the package of
    that name, or "gptq" (w4a16-g128), which it loads with gptqmodel and optimum. The weights stay the same; 8-bit
    activations are rounded on other grids by other programs. Raises SpecquantError for an unknown format, a model that
    is not quantized by us or in a scheme that the format does not have, and an output directory that is not empty or
    cannot be written. Nothing is left half-written.
    """
    if format not in EXPORT_FORMATS:
        raise unknown("format", format, EXPORT_FORMATS)
    model_dir, out_dir = Path(model_dir), Path(out_dir)
    if is_gguf(model_dir) or is_packaged(model_dir):
        model_dir = locate(model_dir)
    config = load_config(model_dir)
    scheme = get_scheme(stored_scheme(config, model_dir))
    quantization = getattr(config, "quantization_config", None) or {}
    if quantization.get("quant_method") != "specquant":
        raise SpecquantError(
            f"{model_dir} is not quantized by us: make a directory of it by `specquant quantize {model_dir} --scheme "
            "SCHEME --out DIR` and export DIR"
        )
    chosen = EXPORT_FORMATS[format]
    if scheme.name not in chosen.schemes:
        raise SpecquantError(
            f"{model_dir} cannot be written as {format}: its scheme is {scheme.name}, and the format has "
            f"{', '.join(chosen.schemes)}"
        )
    group_size = _group_size(config, scheme, model_dir)
    require_new(out_dir)
    model, weights = open_model(model_dir)
    check(model, weights)
    with written_whole(out_dir) as unfinished:
        count = len(model.layers) + 1
        parts = _parts(model, weights, group_size, partial(chosen.encode, scheme))
        for number, tensors in enumerate(parts, start=1):
            write_shard(tensors, unfinished / shard_name(number, count))
        write_index(unfinished)
        fields = read_json(model_dir / "config.json") | {"tie_word_embeddings": model.config.tie_word_embeddings}
        fields.pop("torch_dtype", None)  # what "dtype" was called
        fields |= {"dtype": _dtype(scheme), "quantization_config": chosen.config(scheme, group_size)}
        (unfinished / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
        for name in COPIED_FILES:
            if (model_dir / name).is_file():
                shutil.copyfile(model_dir / name, unfinished / name)


def convert_head(head_dir: str | Path, model_dir: str | Path, out_dir: str | Path) -> None:
    """Write an EAGLE head again for a model that `specquant quantize` has rotated, as SpecMQuant converts heads: with
    embedding and LM head from before the rotation, and the matrix that undoes it; of an EAGLE-3 head, `fc` undoes it.

    Our own commands do the same when they load the published head; others do not. head_dir: a directory or a hub id.
    Raises SpecquantError where the model is not rotated, the head is not for it or has been converted already, and for
    an output directory that is not empty or cannot be written.
    """
    head_dir, model_dir, out_dir = locate(head_dir, HEAD_FILES), Path(model_dir), Path(out_dir)
    convert, fields = (_convert_eagle3, {ROTATED: True}) if is_eagle3(head_dir) else (_convert_eagle, {})
    tensors = convert(head_dir, model_dir, out_dir)
    with written_whole(out_dir) as unfinished:
        write_shard(tensors, unfinished / SINGLE_FILE)
        shutil.copyfile(head_dir / "config.json", unfinished / "config.json")
        if fields:
            told = read_json(head_dir / "config.json") | fields
            (unfinished / "config.json").write_text(json.dumps(told, indent=2) + "\n")


def _convert_eagle(head_dir: Path, model_dir: Path, out_dir: Path) -> dict[str, torch.Tensor]:
    """The tensors of an EAGLE or EAGLE-2 head, with those that a rotated model asks for."""
    head_config, config = load_head_config(head_dir), load_config(model_dir)
    check_head(head_config, config, head_dir, most_padding=0)
    model, weights = _rotated(model_dir, out_dir)
    head = EagleWeights(open_checkpoint(head_dir), head_config, get_scheme("fp16"))
    if "feature_map" in head:
        raise SpecquantError(f"the EAGLE head in {head_dir} has been converted already: give the published one")
    _read_ends(model, weights)
    embed_tokens, lm_head = original_ends(model)
    own = {"embed_tokens.weight": embed_tokens.weight, "lm_head.weight": lm_head.weight}
    own["rms_norm_rotation.weight"] = model.feature_map.t()
    tensors = {name: head.checkpoint.read(name) for name in head.checkpoint.shapes}
    return tensors | {f"{head.prefix}{name}": tensor.half() for name, tensor in own.items()}


def _convert_eagle3(head_dir: Path, model_dir: Path, out_dir: Path) -> dict[str, torch.Tensor]:
    """The tensors of an EAGLE-3 head that reads a rotated model's features, with an embedding of its own."""
    head_config, config = load_eagle3_config(head_dir), load_config(model_dir)
    check_eagle3_head(head_config, config, head_dir, most_padding=0)
    model, weights = _rotated(model_dir, out_dir)
    head = Eagle3Weights(open_checkpoint(head_dir), head_config.layer, get_scheme("fp16"))
    if head_config.reads_rotated_features:
        raise SpecquantError(f"the EAGLE head in {head_dir} has been converted already: give the published one")
    shape = (head_config.layer.hidden_size, FUSED * head_config.target_hidden_size)
    (fused,) = head.sources("fc.weight", shape)
    if head.checkpoint.shapes.get(fused) != shape:
        raise SpecquantError(f"{head_dir}: {fused} has not the shape {shape} that config.json asks for: copy it again")
    _read_ends(model, weights)
    tensors = {name: head.checkpoint.read(name) for name in head.checkpoint.shapes}
    tensors[fused] = reading_rotated(tensors[fused], rotation_of(model)[0])
    if "embed_tokens.weight" not in head:
        tensors[f"{head.prefix}embed_tokens.weight"] = original_ends(model)[0].weight.half()
    return tensors


def _rotated(model_dir: Path, out_dir: Path) -> tuple[Llama, Weights]:
    """A model that we rotated, on the meta device, and its weights. Raises SpecquantError where it is none, and for an
    output directory that is not empty or cannot be written."""
    model, weights = open_model(model_dir)
    if model.feature_map is None:
        raise SpecquantError(f"{model_dir} was not rotated by us: its EAGLE head needs no conversion")
    check(model, weights)
    require_new(out_dir)
    return model, weights


def _read_ends(model: Llama, weights: Weights) -> None:
    """Read embedding, LM head and feature map of a rotated model."""
    for name in ("embed_tokens", "lm_head"):
        read_into(getattr(model, name), weights, "cpu", f"{name}.")
    size = model.config.hidden_size
    model.feature_map = weights.read("feature_map", torch.empty(size, size), "cpu")


def _dtype(scheme: Scheme) -> str:
    """What config.json says of the tensors that are not packed: in it transformers holds scales, too, when it loads
    them, and none may be rounded. Ours are fp16, whatever the model's were before, and float32 in fp8."""
    return "float32" if scheme.name == "fp8" else "float16"


def _group_size(config: PreTrainedConfig, scheme: Scheme, path: Path) -> int:
    """The size of the groups to write, in which other programs have no short ones: 128, or where that does not divide
    all widths, less, and some groups are said twice. Raises SpecquantError where it would be below 32."""
    if not scheme.group_size:
        return 0
    widths = {
        "hidden_size": config.hidden_size,
        "num_attention_heads * head_dim": config.num_attention_heads * config.head_dim,
        "intermediate_size": config.intermediate_size,
    }
    for name, width in widths.items():
        if width % SMALLEST_GROUP:
            raise SpecquantError(
                f"{path} cannot be written in groups of {SMALLEST_GROUP} or more, as other programs read them: {name} "
                f"{width} is not a multiple of {SMALLEST_GROUP}"
            )
    return math.gcd(scheme.group_size, *widths.values())


def _parts(
    model: Llama, weights: Weights, group_size: int, encode: Callable[[Matrix], dict[str, torch.Tensor]]
) -> Iterator[dict[str, torch.Tensor]]:
    """The exported tensors by their names in transformers: layer by layer, then the rest."""
    theirs = HuggingFaceWeights(weights.checkpoint, weights.config, weights.scheme)
    for index, layer in enumerate(model.layers):
        tensors = {}
        for name, module in layer.named_modules(prefix=f"layers.{index}"):
            if isinstance(module, PackedLinear):
                tensors |= _encode_parts(theirs, name, weights.linear(name, module, "cpu"), group_size, encode)
            else:
                for leaf, want in module.named_parameters(prefix=name, recurse=False):
                    (source,) = theirs.sources(leaf, tuple(want.shape))
                    tensors[source] = weights.read(leaf, want.half(), "cpu")
        yield tensors
    ends = {"embed_tokens.weight": model.embed_tokens.weight, "norm.weight": model.norm.weight}
    if not model.config.tie_word_embeddings:
        ends["lm_head.weight"] = model.lm_head.weight
    yield {
        source: weights.read(name, want.half(), "cpu")
        for name, want in ends.items()
        for source in theirs.sources(name, tuple(want.shape))
    }


def _encode_parts(
    theirs: HuggingFaceWeights,
    name: str,
    linear: PackedLinear,
    group_size: int,
    encode: Callable[[Matrix], dict[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """What the matrices of which `linear` is made are called in transformers, and their tensors."""
    codes = linear.integer_codes()
    unit, step, zero = linear.grid().expand((linear.out_features, linear.groups))[:3]
    if group_size:
        groups, times = linear.in_features // group_size, linear.group_size // group_size
        step, zero = (values.repeat_interleave(times, dim=1)[:, :groups] for values in (step, zero))
    sources = theirs.sources(f"{name}.weight", (linear.out_features, linear.in_features))
    tensors = {}
    first = 0
    for source, (rows, _) in sources.items():
        part = slice(first, first + rows)
        matrix = Matrix(codes[part], unit[part, :1], step[part], zero[part])
        tensors |= {f"{source.removesuffix('weight')}{suffix}": tensor for suffix, tensor in encode(matrix).items()}
        if linear.bias is not None:
            tensors[f"{source.removesuffix('weight')}bias"] = linear.bias[part]
        first += rows
    return tensors
