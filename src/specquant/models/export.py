"""Write a model that `specquant quantize` has made in a format that other programs load."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from specquant.errors import SpecquantError
from specquant.models.checkpoint import Checkpoint, shard_name, write_index, write_shard
from specquant.models.config import load_config, read_json
from specquant.models.formats.common import Matrix
from specquant.models.formats.compressed_tensors import compressed_tensors_config, encode_compressed_tensors
from specquant.models.formats.gptq import GPTQ_CONFIG, encode_gptq
from specquant.models.llama import Llama
from specquant.models.loading import stored_scheme
from specquant.models.quantize import COPIED_FILES
from specquant.models.weights import HuggingFaceWeights, Weights
from specquant.paths import require_new, written_whole
from specquant.quant import PackedLinear, Scheme, get_scheme


class ExportFormat(NamedTuple):
    """A format that we write: its schemes, what quantization_config says for one, and what encodes a matrix of one."""

    schemes: tuple[str, ...]
    config: Callable[[Scheme], dict[str, Any]]
    encode: Callable[[Scheme, Matrix], dict[str, torch.Tensor]]


EXPORT_FORMATS = {
    "compressed-tensors": ExportFormat(
        ("w4a16-g128", "w4a16-g128-asym", "w8a8", "fp8"), compressed_tensors_config, encode_compressed_tensors
    ),
    "gptq": ExportFormat(("w4a16-g128",), lambda scheme: GPTQ_CONFIG, lambda scheme, matrix: encode_gptq(matrix)),
}


def export_model(model_dir: str | Path, format: str, out_dir: str | Path) -> None:
    """Write the quantized model in `model_dir` again, as `format` stores it, one layer to a file.

    format: "compressed-tensors" (w4a16-g128, w4a16-g128-asym, w8a8, fp8), which transformers loads with the package of
    that name, or "gptq" (w4a16-g128), which it loads with gptqmodel. The numbers stay the same. Raises SpecquantError
    for an unknown format, a model that is not quantized by us or in a scheme that the format does not have, and an
    output directory that is not empty or cannot be written. Nothing is left half-written.
    """
    model_dir, out_dir = Path(model_dir), Path(out_dir)
    if format not in EXPORT_FORMATS:
        raise SpecquantError(f"unknown format {format!r}: choose one of {', '.join(EXPORT_FORMATS)}")
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
    require_new(out_dir)
    weights = Weights(Checkpoint(model_dir), config, scheme)
    with torch.device("meta"):
        model = Llama(config, scheme)
    with written_whole(out_dir) as unfinished:
        count = len(model.layers) + 1
        for number, tensors in enumerate(_parts(model, weights, partial(chosen.encode, scheme)), start=1):
            write_shard(tensors, unfinished / shard_name(number, count))
        write_index(unfinished)
        fields = read_json(model_dir / "config.json") | {"quantization_config": chosen.config(scheme)}
        (unfinished / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
        for name in COPIED_FILES:
            if (model_dir / name).is_file():
                shutil.copyfile(model_dir / name, unfinished / name)


def _parts(
    model: Llama, weights: Weights, encode: Callable[[Matrix], dict[str, torch.Tensor]]
) -> Iterator[dict[str, torch.Tensor]]:
    """The exported tensors by their names in transformers: layer by layer, then the rest."""
    theirs = HuggingFaceWeights(weights.checkpoint, weights.config, weights.scheme)
    for index, layer in enumerate(model.layers):
        tensors = {}
        for name, module in layer.named_modules(prefix=f"layers.{index}"):
            if isinstance(module, PackedLinear):
                tensors |= _encode_parts(theirs, name, weights.linear(name, module, "cpu"), encode)
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
    encode: Callable[[Matrix], dict[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """What the matrices of which `linear` is made are called in transformers, and their tensors."""
    codes = linear.integer_codes()
    unit, step, zero = linear.grid().expand((linear.out_features, linear.groups))[:3]
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
