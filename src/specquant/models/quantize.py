"""Quantize a model directory, layer by layer, into another one."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from safetensors import safe_open
from torch import nn

from specquant.errors import SpecquantError, unknown
from specquant.files import require_new, resolve, written_in_parts
from specquant.models.cache import KVCache
from specquant.models.checkpoint import (
    ENDS_OF,
    WEIGHT_FILES,
    Checkpoint,
    lender_of,
    shard_name,
    write_index,
    write_shard,
)
from specquant.models.config import load_config, longest_context
from specquant.models.fields import read_json
from specquant.models.hub import locate
from specquant.models.llama import Llama, LlamaLayer, causal_mask, check_widths, set_compute_dtype
from specquant.models.loading import load_tokenizer, open_model, stored_scheme
from specquant.models.memory import NotEnoughMemory, free_bytes, gigabytes
from specquant.models.options import Quantizer
from specquant.models.texts import tokens_of
from specquant.models.transforms import LINEARS, rotate_ends, rotate_layer, smooth_layer, unpack_layer
from specquant.models.weights import Weights, check, read_into
from specquant.progress import tqdm
from specquant.quant import Scheme, get_scheme, quantize_linear
from specquant.quant.hadamard import random_hadamard

# Of what `quantize_model` writes. Raise it with every change after which the same model, scheme, method and text give
# other numbers or other bytes: copies that were kept are then made again. Other changes of the code leave them be.
FORMAT_VERSION = 1
CALIBRATION_TEXT = "data/tiny/calibration.txt"
CALIBRATION_TOKENS_PER_INPUT = 4  # of the widest matrix: well above 1, where a Hessian has full rank
FEWEST_TOKENS = 32
SEQUENCE_LENGTH = 512
CHUNK_TOKENS = 8192  # that run through a layer at once
SMOOTHING_STRENGTH = 0.5
# Read by tokenizers and by transformers' generation.
COPIED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
METHODS = get_args(Quantizer)
BORROWED_TENSORS = ("embed_tokens.weight", "lm_head.weight")  # of an intermediate model that shares another's ends


def quantize_model(
    model_dir: str | Path,
    scheme: str | Scheme,
    out_dir: str | Path,
    calibration_text: str | Path | None = None,
    method: str = "calibrated",
    device: str = "cpu",
    progress: bool = True,
) -> None:
    """Quantize the fp16 model of a directory or hub id, `model_dir`, and write a directory that `load_model` loads.

    calibration_text: a UTF-8 file (default: the one that ships with the tiny models). method: "calibrated" is GPTQ for
    4-bit weights, and SmoothQuant's smoothing where activations are int8; "round-to-nearest" uses no text. A scheme
    that is rotated is rotated by both. Layers are calibrated in order, each on what the quantized layers before it
    give it.

    One layer is in memory at a time, a file for each is written as soon as it is done, and after an interruption the
    same call goes on behind the last one: the result is the same. Raises SpecquantError for an unknown scheme or
    method, a model that is quantized already, does not fit the scheme or whose largest layer does not fit the device, a
    calibration text that is missing or too short, and an output directory that exists or cannot be written.
    """
    model_dir, out_dir = Path(model_dir), Path(out_dir)
    scheme = get_scheme(scheme) if isinstance(scheme, str) else scheme
    if scheme.name == "fp16":
        raise SpecquantError("fp16 is what models are stored in before quantization: choose another scheme")
    if method not in METHODS:
        raise unknown("quantization method", method, METHODS)
    model_dir = locate(model_dir)
    config = load_config(model_dir)
    stored = stored_scheme(config, model_dir)
    if stored != "fp16":
        raise SpecquantError(f"{model_dir} is already quantized to {stored}: quantize the fp16 model it was made from")
    check_widths(config, scheme, model_dir, rotates=scheme.rotated)
    require_new(out_dir)
    length = min(SEQUENCE_LENGTH, longest_context(config))
    model, weights = open_model(model_dir, context_length=length)
    check(model, weights)
    calibrated = method == "calibrated"
    require_quantization_memory(model, scheme, calibrated, device, model_dir)
    record = {"quant_method": "specquant", "scheme": scheme.name, "method": method, "rotated": scheme.rotated}
    sequences = None
    if calibrated:
        text = resolve(CALIBRATION_TEXT) if calibration_text is None else Path(calibration_text)
        widest = max(getattr(model.layers[0], name).in_features for name in LINEARS)
        sequences = calibration_sequences(model_dir, text, length, CALIBRATION_TOKENS_PER_INPUT * widest)
        digest = hashlib.sha256(text.read_bytes()).hexdigest()
        record["calibration"] = {"text": text.name, "sha256": digest, "tokens": sum(map(len, sequences))}
    identity = record | {"model": _stamp(model_dir), "device": device, "format": FORMAT_VERSION}
    with written_in_parts(out_dir, identity) as unfinished:
        _write_layers(model, weights, scheme, sequences, device, progress, unfinished)
        write_index(unfinished)
        fields = read_json(model_dir / "config.json")
        tied = model.config.tie_word_embeddings and not scheme.rotated
        fields |= {"tie_word_embeddings": tied, "quantization_config": record}
        if lender_of(model_dir) is not None:
            if scheme.rotated:
                del fields[ENDS_OF]  # a rotated model's ends are its own
            elif (model_dir / fields[ENDS_OF]).exists():
                fields[ENDS_OF] = os.path.relpath(model_dir / fields[ENDS_OF], out_dir)
        (unfinished / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
        for name in COPIED_FILES:
            if (model_dir / name).is_file():
                shutil.copyfile(model_dir / name, unfinished / name)


def quantization_bytes(model: Llama, scheme: Scheme, calibrated: bool) -> int:
    """The most memory that a device needs at once while `quantize_model` works on this model (a skeleton)."""
    linears = [getattr(model.layers[0], name) for name in LINEARS]
    sizes = [linear.in_features * linear.out_features for linear in linears]
    widest = max(linear.in_features for linear in linears)
    layer, packing = 16 * sum(sizes), 24 * max(sizes)  # in float64, and unpacked for products; on the way to codes
    hessian = 8 * widest**2 if calibrated and scheme.weight_bits == 4 else 0
    activations = 8 * (CHUNK_TOKENS + SEQUENCE_LENGTH) * sum(linear.out_features for linear in linears)
    running = activations + 3 * hessian if calibrated else 0  # all tokens' and one chunk's, and their sum
    solving = packing + 7 * hessian  # in its order, damped, its inverse and factors
    ends = model.embed_tokens.weight.numel()
    return max(layer + max(running, solving), 40 * ends if scheme.rotated else 2 * ends)


def require_quantization_memory(model: Llama, scheme: Scheme, calibrated: bool, device: str, path: Path) -> None:
    """Raises NotEnoughMemory where a device has no room for quantizing a model."""
    needed, free = quantization_bytes(model, scheme, calibrated), free_bytes(device)
    if free is not None and needed > free:
        raise NotEnoughMemory(
            f"quantizing {path} to {scheme.name} needs {gigabytes(needed)} for one layer at a time, and {device} has "
            f"{gigabytes(free)} free: choose another device, or --quantizer round-to-nearest"
        )


def _stamp(model_dir: Path) -> str:
    """What tells this model's files from those of another, without reading them."""
    weights = (file for pattern in WEIGHT_FILES for file in sorted(model_dir.glob(pattern)))
    files = [model_dir / "config.json", *weights]
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()


def calibration_sequences(model_dir: Path, text_file: Path, length: int, most: int) -> list[torch.Tensor]:
    """The beginning of a text as sequences of at most `length` tokens, int64: `most` tokens in all, if it has so many.

    The last sequence is kept whole. Documents are separated by lines that hold one form feed; longer ones are cut. Each
    sequence begins as a prompt does, with the tokenizer's begin token.
    """
    try:
        documents = text_file.read_text(encoding="utf-8").split("\n\f\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecquantError(f"cannot read calibration text {text_file} ({error}): give a UTF-8 text file") from None
    tokenizer = load_tokenizer(model_dir)
    begin = torch.tensor([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id], dtype=torch.long)
    sequences, count = [], 0
    for document in documents:
        tokens = tokens_of(document, tokenizer, special=False)
        if tokens[:1] == begin.tolist():
            tokens = tokens[1:]  # it has it already
        for part in torch.tensor(tokens, dtype=torch.long).split(length - len(begin)):
            if count >= most:
                return sequences
            sequences.append(torch.cat((begin, part)))
            count += len(sequences[-1])
    if count < FEWEST_TOKENS:
        raise SpecquantError(
            f"calibration text {text_file} has only {count} tokens: give one of {FEWEST_TOKENS} or more, better {most}"
        )
    return sequences


class Chunk(NamedTuple):
    """Some calibration sequences: their states [rows, hidden], in host memory, and how long each is."""

    states: torch.Tensor
    lengths: list[int]


def chunks_of(sequences: list[torch.Tensor], embedding: torch.Tensor) -> list[Chunk]:
    """Sequences of tokens, and the states with which they enter the first layer, in float64, because rounding errors of
    float32 sums differ between machines, and codes would with them."""
    chunks: list[list[torch.Tensor]] = [[]]
    for tokens in sequences:
        if sum(map(len, chunks[-1])) >= CHUNK_TOKENS:
            chunks.append([])
        chunks[-1].append(tokens)
    return [Chunk(embedding[torch.cat(chunk)].double(), [len(tokens) for tokens in chunk]) for chunk in chunks]


@torch.no_grad()
def _write_layers(
    model: Llama,
    weights: Weights,
    scheme: Scheme,
    sequences: list[torch.Tensor] | None,
    device: str,
    progress: bool,
    out_dir: Path,
) -> None:
    """Write what is not there yet: the ends into the last of the files, then each layer into its own.

    model: a skeleton. What is there runs again, as it is stored, for the states that it gives to the next layer.
    """
    count = len(model.layers) + 1
    rotation = random_hadamard(model.config.hidden_size).to(device) if scheme.rotated else None
    ends = out_dir / shard_name(count, count)
    if not ends.is_file():
        tensors = _ends(model, weights, rotation, device)
        borrowed = BORROWED_TENSORS if rotation is None and lender_of(weights.checkpoint.path) else ()
        write_shard({name: tensor for name, tensor in tensors.items() if name not in borrowed}, ends)
        del tensors
    model.rotary.make_tables()
    model.rotary.to(device)
    chunks = sequences and chunks_of(sequences, _embedding(ends, model, weights))
    bar = tqdm(range(count - 1), desc=f"quantizing to {scheme.name}", unit="layer", disable=not progress)
    for index in bar:
        file, prefix = out_dir / shard_name(index + 1, count), f"layers.{index}."
        if not file.is_file():
            layer = model.layers[index]
            read_into(layer, weights, device, prefix)
            set_compute_dtype(layer, torch.float64).to(device)
            chunks = quantize_layer(model, layer, scheme, rotation, chunks)
            tensors = {f"{prefix}{name}": _as_stored(name, tensor) for name, tensor in layer.state_dict().items()}
            write_shard(tensors, file)
            model.layers[index] = nn.Identity()  # give the layer up
            del layer, tensors
        elif chunks:
            with torch.device("meta"):
                layer = LlamaLayer(model.config, scheme, index)
            read_into(layer, Weights(Checkpoint(out_dir), model.config, scheme), device, prefix)
            set_compute_dtype(layer, torch.float64).to(device)
            chunks = run_layer(model, layer, chunks, lambda *_: None)
            del layer


def _embedding(ends: Path, model: Llama, weights: Weights) -> torch.Tensor:
    """The embedding in the file of the ends or, where that is borrowed, of the model that it is borrowed of."""
    with safe_open(ends, framework="pt") as archive:
        if "embed_tokens.weight" in archive.keys():  # noqa: SIM118
            return archive.get_tensor("embed_tokens.weight")
    return weights.read("embed_tokens.weight", model.embed_tokens.weight, "cpu").half()


def _ends(model: Llama, weights: Weights, rotation: torch.Tensor | None, device: str) -> dict[str, torch.Tensor]:
    """What comes before and after the layers, as it is stored; of the skeleton nothing is kept."""
    ends = {"embed_tokens": model.embed_tokens, "norm": model.norm, "lm_head": model.lm_head}
    tied = model.config.tie_word_embeddings
    if tied:
        del ends["lm_head"]
    for name, module in ends.items():
        read_into(module, weights, device, f"{name}.")
        set_compute_dtype(module, torch.float64 if rotation is not None else torch.float16)
    if tied:
        model.lm_head.weight = model.embed_tokens.weight
    tensors = {}
    if rotation is not None:
        rotate_ends(model, rotation)
        ends["lm_head"] = model.lm_head
        tensors["feature_map"] = model.feature_map
    tensors |= {f"{name}.weight": module.weight.half() for name, module in ends.items()}
    for module in ends.values():
        module.to("meta")
    return tensors


def _as_stored(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if name.endswith("norm.weight") else tensor


@torch.no_grad()
def quantize_layer(
    model: Llama, layer: LlamaLayer, scheme: Scheme, rotation: torch.Tensor | None, chunks: list[Chunk] | None
) -> list[Chunk] | None:
    """Quantize an fp16 layer in place, and return what it makes of `chunks`, on which it is calibrated; without any it
    rounds to nearest.

    All that decides between two codes is computed in the dtype of its norms.
    """
    unpack_layer(layer)
    if rotation is not None:
        rotate_layer(layer, rotation)
    if not chunks:
        for name in LINEARS:
            pack(layer, name, scheme)
        return None
    if scheme.activation_bits == 8:
        largest = {}

        def watch(name: str, inputs: Iterator[torch.Tensor]) -> None:
            largest[name] = reduce(torch.maximum, (x.abs().amax(dim=0) for x in inputs))

        run_layer(model, layer, chunks, watch)
        smooth_layer(layer, largest, SMOOTHING_STRENGTH, norms=not scheme.rotated)

    def quantize(name: str, inputs: Iterator[torch.Tensor]) -> None:
        hessian = reduce(torch.add, (x.t() @ x for x in inputs)) if scheme.weight_bits == 4 else None
        pack(layer, name, scheme, hessian)

    chunks = run_layer(model, layer, chunks, quantize)
    for name in LINEARS:
        getattr(layer, name).forget_operand()
    return chunks


def pack(layer: LlamaLayer, name: str, scheme: Scheme, hessian: torch.Tensor | None = None) -> None:
    """Quantize one matrix of a layer; its biases are rounded to fp16."""
    linear = getattr(layer, name)
    packed = quantize_linear(scheme, linear.weight, hessian)
    packed.bias = None if linear.bias is None else linear.bias.half()
    setattr(layer, name, packed)


def run_layer(
    model: Llama, layer: LlamaLayer, chunks: list[Chunk], visit: Callable[[str, Iterator[torch.Tensor]], None]
) -> list[Chunk]:
    """Run a layer over chunks of sequences and return them with their next states. model: its rotary tables and sizes.

    Before each matrix runs, `visit` is given its name and its inputs [rows, in] chunk by chunk, and may replace it. One
    chunk at a time is on the layer's device.
    """
    norm = layer.post_attention_norm.weight
    longest = max(length for chunk in chunks for length in chunk.lengths)
    cache = KVCache(model.config, longest, norm.dtype, norm.device)

    def on_device(states: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        return (x.to(norm.device) for x in states)

    def attend(rows: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(len(rows), device=norm.device)
        return layer.attend(rows, positions, model.rotary, cache, causal_mask(len(rows), norm.device))

    def attended(x: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        return torch.cat([attend(rows) for rows in layer.input_norm(x).split(lengths)])

    states, lengths = [chunk.states for chunk in chunks], [chunk.lengths for chunk in chunks]
    visit("qkv_proj", (layer.input_norm(x) for x in on_device(states)))
    read = [attended(x, sizes).cpu() for x, sizes in zip(on_device(states), lengths, strict=True)]
    visit("o_proj", on_device(read))
    states = [(x + layer.o_proj(y)).cpu() for x, y in zip(on_device(states), on_device(read), strict=True)]
    visit("gate_up_proj", (layer.post_attention_norm(x) for x in on_device(states)))
    visit("down_proj", (layer.gate(layer.post_attention_norm(x)) for x in on_device(states)))
    states = [(x + layer.down_proj(layer.gate(layer.post_attention_norm(x)))).cpu() for x in on_device(states)]
    return [Chunk(*parts) for parts in zip(states, lengths, strict=True)]
