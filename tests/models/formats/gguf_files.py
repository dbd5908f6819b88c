"""Small GGUF files, written by the gguf library from models of transformers as llama.cpp's converter writes them."""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from specquant.models.formats.gguf import ENDS, LAYER_PARTS, LLAMA_3_PIECES
from tests.family import TEXT

BEGIN, END, PLACE = "<|begin|>", "<|end|>", "<place>"  # the last is an added token that is no control token
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ': ' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
# Where in a block its half-precision numbers are, and how large: then weights are about 0.1. The rest may be anything.
SCALES = {
    "Q2_K": {80: 5e-3, 82: 7e-3},
    "Q3_K": {108: 2e-3},
    "Q4_K": {0: 4e-4, 2: 3e-3},
    "Q5_K": {0: 2e-4, 2: 3e-3},
    "Q6_K": {208: 8e-5},
}


def cutters() -> dict[str, list]:
    """How a tokenizer of that `tokenizer.ggml.pre` cuts texts, as published tokenizers say it in tokenizer.json."""
    whole_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return {
        "gpt-2": [whole_words],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), whole_words],
        "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA_3_PIECES), "isolated"), letters],
        "qwen2": [pre_tokenizers.Split(Regex(LLAMA_3_PIECES.replace("{1,3}", "")), "isolated"), letters],
    }


def train(pre: str = "gpt-2", vocabulary: int = 320, begins: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that cuts texts so; begins: with a begin token before each text."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cutters()[pre])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[BEGIN, END, PLACE], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT + "\n\nIt's  a test: 1999 of 12345.\n" * 9], trainer)
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, clean_up_tokenization_spaces=False
    )


def tokenizer_fields(tokenizer: PreTrainedTokenizerFast, pre: str) -> dict:
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])]
    merges = [" ".join(pair) for pair in _merges_of(tokenizer)]
    control = {tokenizer.bos_token, tokenizer.eos_token}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in control else 4 if token == PLACE else 1 for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.chat_template": TEMPLATE,
    }


def _merges_of(tokenizer: PreTrainedTokenizerFast) -> list:
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]


def model_fields(model: PreTrainedModel, architecture: str) -> dict:
    config = model.config
    rope = config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    fields = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if rope["rope_type"] in ("linear", "yarn"):
        fields |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": float(rope["factor"])}
    if rope["rope_type"] == "yarn":
        fields["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if getattr(config, "sliding_window", None):
        fields["attention.sliding_window"] = config.sliding_window
    return {f"{architecture}.{name}": value for name, value in fields.items()}


def write_gguf(
    model: PreTrainedModel,
    file: Path,
    kind: str = "F32",
    tokenizer: PreTrainedTokenizerFast | None = None,
    pre: str = "gpt-2",
    **changes,
) -> Path:
    """Write a model with its matrices as `kind`. changes: of the metadata, "__" for a dot; None leaves a field out."""
    architecture = {"mistral": "llama"}.get(model.config.model_type, model.config.model_type)
    writer = gguf.GGUFWriter(file, architecture)
    fields = model_fields(model, architecture) | ({} if tokenizer is None else tokenizer_fields(tokenizer, pre))
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    for name, value in fields.items():
        if value is not None:
            _add(writer, name, value)
    for name, tensor in _tensors(model, architecture).items():
        matrix = tensor.dim() > 1
        _add_tensor(writer, name, tensor.float().numpy(), kind if matrix else "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add(writer: gguf.GGUFWriter, name: str, value) -> None:
    if name == "general.architecture":
        writer.kv_data[0].pop(name, None)
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add.get(type(value), writer.add_array)(name, value)


def _tensors(model: PreTrainedModel, architecture: str) -> dict[str, torch.Tensor]:
    config, state = model.config, model.state_dict()
    parts = {ours: theirs for theirs, ours in LAYER_PARTS.items()}
    ends = {ours: theirs for theirs, ours in ENDS.items()}
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    tensors = {}
    for name, tensor in state.items():
        if name in ends:
            tensors[ends[name]] = tensor
            continue
        _, _, number, part = name.split(".", 3)
        part, _, suffix = part.rpartition(".")
        if architecture == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = config.num_attention_heads if ".q_" in part else config.num_key_value_heads
            # llama.cpp's LlamaModel.permute
            halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        tensors[f"blk.{number}.{parts[part]}.{suffix}"] = tensor
    rope = config.rope_parameters
    if rope["rope_type"] == "llama3":
        tensors["rope_freqs.weight"] = model.model.rotary_emb.inv_freq.new_tensor(_llama_3_factors(config))
    return tensors


def _llama_3_factors(config) -> list[float]:
    """What llama.cpp's converter writes for Llama 3.1 (LlamaModel.generate_extra_tensors)."""
    rope, dim = config.rope_parameters, config.head_dim
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    factors = []
    for exponent in range(0, dim, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (exponent / dim)
        smooth = (rope["original_max_position_embeddings"] / wavelength - rope["low_freq_factor"]) / (
            rope["high_freq_factor"] - rope["low_freq_factor"]
        )
        between = 1 / ((1 - smooth) / rope["factor"] + smooth)
        factors.append(1.0 if wavelength < high else rope["factor"] if wavelength > low else between)
    return factors


def _add_tensor(writer: gguf.GGUFWriter, name: str, numbers: np.ndarray, kind: str) -> None:
    quantization = gguf.GGMLQuantizationType[kind]
    if kind in SCALES:  # the library does not quantize to these: any codes, with small scales
        writer.add_tensor(name, _random_blocks(numbers.shape, kind), raw_dtype=quantization)
    elif kind in ("F32", "F16"):
        writer.add_tensor(name, numbers.astype(kind.replace("F", "float")))
    else:
        writer.add_tensor(name, gguf.quants.quantize(numbers, quantization), raw_dtype=quantization)


def _random_blocks(shape: tuple[int, ...], kind: str) -> np.ndarray:
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    random = np.random.default_rng(shape[0])
    blocks = random.integers(0, 256, (shape[0], shape[1] // values, size), dtype=np.uint8)
    for at, size in SCALES[kind].items():
        scale = random.uniform(0.9 * size, size, (*blocks.shape[:2], 1)).astype(np.float16)
        blocks[..., at : at + 2] = scale.view(np.uint8)
    return blocks.reshape(shape[0], -1)
