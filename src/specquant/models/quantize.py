"""Quantize a model directory, layer by layer, into another one."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from specquant.errors import SpecquantError
from specquant.models.config import load_config, longest_context
from specquant.models.hub import locate
from specquant.models.llama import Llama, LlamaLayer, causal_mask, set_compute_dtype
from specquant.models.loading import load_tokenizer, open_model, stored_scheme
from specquant.models.transforms import LINEARS, rotate_ends, rotate_layer, smooth_layer, unpack_layer
from specquant.models.weights import fill
from specquant.paths import require_new, resolve, written_whole
from specquant.quant import Scheme, get_scheme, quantize_linear
from specquant.quant.hadamard import random_hadamard

CALIBRATION_TEXT = "data/tiny/calibration.txt"
CALIBRATION_TOKENS_PER_INPUT = 4  # of the widest matrix: well above 1, where a Hessian has full rank
FEWEST_TOKENS = 32
SEQUENCE_LENGTH = 512
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
METHODS = ("calibrated", "round-to-nearest")


def quantize_model(
    model_dir: str | Path,
    scheme: str | Scheme,
    out_dir: str | Path,
    calibration: str | Path | None = None,
    method: str = "calibrated",
    device: str = "cpu",
    progress: bool = True,
) -> None:
    """Quantize the fp16 model of a directory or hub id, `model_dir`, and write a directory that `load_model` loads.

    calibration: a UTF-8 text file (default: the one that ships with the tiny models). method: "calibrated" is GPTQ for
    4-bit weights, and SmoothQuant's smoothing where activations are int8; "round-to-nearest" uses no text. A scheme
    that is rotated is rotated by both. Layers are calibrated in order, each on what the quantized layers before it
    give it. Raises SpecquantError for an unknown scheme or method, a model that is quantized already or does not fit
    the scheme, a calibration text that is missing or too short, and an output directory that exists or cannot be
    written. Nothing is left half-written.
    """
    model_dir, out_dir = Path(model_dir), Path(out_dir)
    scheme = get_scheme(scheme) if isinstance(scheme, str) else scheme
    if scheme.name == "fp16":
        raise SpecquantError("fp16 is what models are stored in before quantization: choose another scheme")
    if method not in METHODS:
        raise SpecquantError(f"unknown quantization method {method!r}: choose one of {', '.join(METHODS)}")
    model_dir = locate(model_dir)
    config = load_config(model_dir)
    stored = stored_scheme(config, model_dir)
    if stored != "fp16":
        raise SpecquantError(f"{model_dir} is already quantized to {stored}: quantize the fp16 model it was made from")
    require_new(out_dir)
    record = {"quant_method": "specquant", "scheme": scheme.name, "method": method, "rotated": scheme.rotated}
    with written_whole(out_dir) as unfinished:
        # In float64, because rounding errors of float32 sums differ between machines, and codes would with them.
        length = min(SEQUENCE_LENGTH, longest_context(config))
        model, weights = open_model(model_dir, context_length=length)
        fill(model, weights, device)
        set_compute_dtype(model, torch.float64).to(device)
        sequences = None
        if method == "calibrated":
            text = resolve(CALIBRATION_TEXT) if calibration is None else Path(calibration)
            widest = max(getattr(model.layers[0], name).in_features for name in LINEARS)
            sequences = calibration_sequences(model_dir, text, length, CALIBRATION_TOKENS_PER_INPUT * widest)
            digest = hashlib.sha256(text.read_bytes()).hexdigest()
            record["calibration"] = {"text": text.name, "sha256": digest, "tokens": sum(map(len, sequences))}
        quantize_layers(model, scheme, sequences, progress)
        write_model(model, record, model_dir, unfinished)


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
        tokens = tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
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


@torch.no_grad()
def quantize_layers(model: Llama, scheme: Scheme, sequences: list[torch.Tensor] | None, progress: bool = False) -> None:
    """Quantize an fp16 model in place. sequences: tokens to calibrate on; without, it rounds to nearest.

    All that decides between two codes is computed in the model's dtype.
    """
    rotation = random_hadamard(model.config.hidden_size).to(model.device) if scheme.rotated else None
    if rotation is not None:
        rotate_ends(model, rotation)
        for module in (model.embed_tokens, model.lm_head):
            module.half().to(model.norm.weight.dtype)  # calibrate on what will be stored
    states = sequences and [model.embed_tokens(tokens.to(model.device)) for tokens in sequences]
    for layer in tqdm(model.layers, desc=f"quantizing to {scheme.name}", unit="layer", disable=not progress):
        unpack_layer(layer)
        if rotation is not None:
            rotate_layer(layer, rotation)
        if not states:
            for name in LINEARS:
                pack(layer, name, scheme)
            continue
        if scheme.activation_bits == 8:
            largest = {}
            run_layer(model, layer, states, lambda name, x: largest.update({name: x.abs().amax(dim=0)}))  # noqa: B023
            smooth_layer(layer, largest, SMOOTHING_STRENGTH, norms=not scheme.rotated)

        def quantize(name: str, x: torch.Tensor, layer: LlamaLayer = layer) -> None:
            hessian = x.t() @ x if scheme.weight_bits == 4 else None
            pack(layer, name, scheme, hessian)

        states = run_layer(model, layer, states, quantize)
        for name in LINEARS:
            getattr(layer, name).forget_operand()
    model.scheme = scheme


def pack(layer: LlamaLayer, name: str, scheme: Scheme, hessian: torch.Tensor | None = None) -> None:
    """Quantize one matrix of a layer; its biases are rounded to fp16."""
    linear = getattr(layer, name)
    packed = quantize_linear(scheme, linear.weight, hessian)
    packed.bias = None if linear.bias is None else linear.bias.half()
    setattr(layer, name, packed)


def run_layer(
    model: Llama, layer: LlamaLayer, states: list[torch.Tensor], visit: Callable[[str, torch.Tensor], None]
) -> list[torch.Tensor]:
    """Run a layer over sequences of states [length, hidden] and return the next ones.

    Before each matrix runs, `visit` is given its name and its inputs [all sequences' rows, in], and may replace it.
    """
    lengths = [len(rows) for rows in states]
    cache = model.new_cache(max(lengths))

    def attend(rows: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(len(rows), device=model.device)
        return layer.attend(rows, positions, model.rotary, cache, causal_mask(len(rows), model.device))

    x = torch.cat(states)
    normed = layer.input_norm(x)
    visit("qkv_proj", normed)
    attended = torch.cat([attend(rows) for rows in normed.split(lengths)])
    visit("o_proj", attended)
    x = x + layer.o_proj(attended)
    normed = layer.post_attention_norm(x)
    visit("gate_up_proj", normed)
    gated = layer.gate(normed)
    visit("down_proj", gated)
    return list((x + layer.down_proj(gated)).split(lengths))


def write_model(model: Llama, record: dict, source: Path, out_dir: Path) -> None:
    """Write a quantized model's tensors and config.json, with `record` in it, and copy its tokenizer's files."""
    tensors = {
        name: (tensor.half() if name.endswith(("norm.weight", "embed_tokens.weight", "lm_head.weight")) else tensor)
        for name, tensor in model.state_dict().items()
    }
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, out_dir / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    config |= {"tie_word_embeddings": model.config.tie_word_embeddings, "quantization_config": record}
    (out_dir / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in COPIED_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out_dir / name)
