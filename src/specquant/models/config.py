"""config.json: which families of models the forward pass computes, and what it reads from their configurations."""

import os
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import logging

from specquant.errors import SpecquantError
from specquant.models.fields import (
    COUNT,
    FLAG,
    TEXT,
    check_fields,
    list_of,
    number,
    optional,
    read_json,
    shown,
    whole,
)
from specquant.models.names import no_model

# Model types of transformers. Llama 2, 3, 3.1 and 3.2 are all "llama"; Qwen2 has biases, Qwen3 has q and k norms.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
# Fields that config.json must have: transformers would take a family's first model's values for what is missing.
REQUIRED = {
    "vocab_size": COUNT,
    "hidden_size": COUNT,
    "intermediate_size": COUNT,
    "num_hidden_layers": COUNT,
    "num_attention_heads": COUNT,
    "max_position_embeddings": COUNT,
    "rms_norm_eps": number(1e-15, 1),  # float32, in which norms are computed, holds the smallest beside any x
}
SIZES = tuple(REQUIRED)
HEAD_DIM = whole(1, 2**14)
ROPE_THETA = number(1, 1e18)
# What else is read of it; `bias` and `qkv_bias` are of EAGLE heads.
OPTIONAL = {
    "num_key_value_heads": optional(COUNT),
    "head_dim": optional(HEAD_DIM),
    "hidden_act": TEXT,
    **dict.fromkeys(("attention_bias", "mlp_bias", "qkv_bias", "bias", "tie_word_embeddings"), optional(FLAG)),
    "use_sliding_window": optional(FLAG),
    "sliding_window": optional(COUNT),
    "max_window_layers": optional(whole(0)),
    "layer_types": optional(list_of(TEXT)),
    "rope_theta": optional(ROPE_THETA),
    "partial_rotary_factor": optional(number(1e-6, 1)),
    "original_max_position_embeddings": optional(COUNT),
}
# What is checked where it is used.
OTHERS = (
    "rope_parameters",
    "rope_scaling",
    "bos_token_id",
    "eos_token_id",
    "quantization_config",
    "compression_config",
    "draft_vocab_size",
)
MOST_OF_A_REASON = 300  # characters of what a library says
# Fields of rope_parameters; others, as transformers does, are left alone.
ROPE_LISTS = ("short_factor", "long_factor")
ROPE_FIELDS = {
    "rope_theta": ROPE_THETA,
    "original_max_position_embeddings": COUNT,
    **dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor", "partial_rotary_factor"), number(1e-9, 1e12)),
    **dict.fromkeys(("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"), number(1e-9, 1e12)),
    **dict.fromkeys(ROPE_LISTS, list_of(number(1e-9, 1e12))),
}


def load_config(path: str | Path, family: str | None = None) -> PreTrainedConfig:
    """The configuration in a model directory, read as that of `family` (default: what its model_type says), with the
    end tokens of its generation_config.json, if there is one.

    Raises SpecquantError if there is none, if it is damaged or lacks a size, and if it asks for more than this package
    computes.
    """
    file = find_config(Path(path))
    config = config_of(read_json(file), file, family)
    generation = file.with_name("generation_config.json")
    if generation.is_file():  # transformers ends texts by these: a chat model may have more of them
        end_tokens = read_json(generation).get("eos_token_id", config.eos_token_id)
        _check_tokens(end_tokens, "eos_token_id", config, generation)
        config.eos_token_id = end_tokens
    return config


def config_of(fields: dict, file: Path, family: str | None = None) -> PreTrainedConfig:
    """The configuration in the fields of a file. Raises SpecquantError as `load_config` does."""
    model_type = family or fields.get("model_type")
    if model_type not in FAMILIES:
        raise SpecquantError(f"{file}: model_type is {shown(model_type)}; this package computes {', '.join(FAMILIES)}")
    for name, kind in REQUIRED.items():
        if not kind.fits(fields.get(name)):
            found = f"is {shown(fields[name])}" if name in fields else "is missing"
            advice = f"give the number above 0 that the model was trained with, {kind.words}"
            raise SpecquantError(f"{file}: {name} {found}; {advice}")
    check_fields(fields, OPTIONAL, file)
    config = _make_config(CONFIG_MAPPING[model_type], fields, file)
    if config.hidden_act != "silu":
        raise SpecquantError(f"{file}: hidden_act {shown(config.hidden_act)} is not supported yet, only 'silu'")
    if config.num_attention_heads % config.num_key_value_heads:
        raise SpecquantError(
            f"{file}: num_attention_heads {config.num_attention_heads} is not a multiple of num_key_value_heads "
            f"{config.num_key_value_heads}"
        )
    if not HEAD_DIM.fits(config.head_dim) or config.head_dim % 2:
        raise SpecquantError(f"{file}: head_dim is {config.head_dim}; it must be an even number, 2 to {2**14}")
    _check_rope(config, file)
    for name in ("bos_token_id", "eos_token_id"):
        _check_tokens(getattr(config, name, None), name, config, file)
    return config


def has_bias(config: PreTrainedConfig, matrix: str) -> bool:
    """Whether one of a layer's four matrices (`qkv_proj`, `o_proj`, `gate_up_proj`, `down_proj`) has biases."""
    if matrix == "qkv_proj":
        # `qkv_bias` is what configurations of EAGLE heads say.
        return config.model_type == "qwen2" or any(getattr(config, f"{x}_bias", False) for x in ("attention", "qkv"))
    return bool(getattr(config, "attention_bias" if matrix == "o_proj" else "mlp_bias", False))


def has_head_norms(config: PreTrainedConfig) -> bool:
    """Whether queries and keys are normalized, each head by itself, before they are rotated to their positions."""
    return config.model_type == "qwen3"


def longest_context(config: PreTrainedConfig) -> int:
    """How many positions the forward pass computes exactly, if no context length is asked for.

    Not more than a sliding window, inside of which it is the full attention that we compute; and not more than LongRoPE
    was first trained on, where a model would have to change its frequencies in the middle of a text.
    """
    longest = min(config.max_position_embeddings, _sliding_window(config) or config.max_position_embeddings)
    if config.rope_parameters["rope_type"] == "longrope":
        longest = min(longest, int(config.rope_parameters["original_max_position_embeddings"]))
    return longest


def context_length(config: PreTrainedConfig, wanted: int | None, path: str | Path) -> int:
    """The context length to run a model with: `wanted`, or by default its longest.

    Raises SpecquantError where the model's own context, or its sliding window, is shorter.
    """
    if wanted is None:
        return longest_context(config)
    if wanted < 1:
        raise SpecquantError(f"the context length is {wanted}; it must be at least 1")
    if wanted > config.max_position_embeddings:
        raise SpecquantError(
            f"{path} was made for {config.max_position_embeddings} positions, and a context length of {wanted} was "
            "asked for: give a smaller one"
        )
    window = _sliding_window(config)
    if window and wanted > window:
        raise SpecquantError(
            f"{path} attends to a sliding window of {window} positions, which is not supported yet: give a context "
            f"length of at most {window} instead of {wanted}"
        )
    return wanted


def rotary_frequencies(config: PreTrainedConfig, positions: int) -> tuple[torch.Tensor, float]:
    """The angle per position of each pair of a head's dimensions, float64 [head_dim / 2], and the factor on cosines and
    sines, for a context of `positions`; every rope scaling that transformers has.

    Dynamic NTK scaling changes nothing within the context that the model was trained on. LongRoPE's factors are the
    short ones where `positions` are not more than it was first trained on.
    """
    rope = config.rope_parameters
    if rope["rope_type"] == "default":
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64, device="cpu") / config.head_dim
        return rope["rope_theta"] ** -exponents, 1.0
    frequencies, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"), seq_len=positions)
    return frequencies.double(), float(factor)


def _sliding_window(config: PreTrainedConfig) -> int | None:
    """How many positions a layer sees, if not all."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    return getattr(config, "sliding_window", None) if "sliding_attention" in kinds else None


def find_config(path: Path) -> Path:
    """The config.json of a model directory, which must be there and readable."""
    file = path / "config.json"
    try:
        os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # a folder that is closed to us, a loop of links, a name that is too long
        reason = getattr(error, "strerror", None) or error
        raise SpecquantError(f"cannot read {path} ({reason}): give a model directory that can be read") from None
    if not file.is_file():
        raise no_model(path)
    return file


def _make_config(kind: type[PreTrainedConfig], fields: dict, file: Path) -> PreTrainedConfig:
    """transformers' configuration of the fields that are read."""
    fields = {name: fields[name] for name in (*REQUIRED, *OPTIONAL, *OTHERS) if name in fields}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what transformers would only warn of is checked here
    try:
        config = kind(**fields)
        config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        config.standardize_rope_params()  # once more, as it reads fields that were not set at the first time
    except Exception as error:  # transformers reports bad fields by several exception types
        reason = " ".join(str(error.args[0] if error.args else error).split())[:MOST_OF_A_REASON]
        raise SpecquantError(f"{file} is not a valid {kind.model_type} configuration: {reason}") from None
    finally:
        logging.set_verbosity(verbosity)
    return config


def _check_rope(config: PreTrainedConfig, file: Path) -> None:
    rope = config.rope_parameters
    known = ("default", *ROPE_INIT_FUNCTIONS)
    if rope.get("rope_type") not in known:
        found = shown(rope.get("rope_type"))
        raise SpecquantError(f"{file}: rope scaling {found} is not one that transformers has: {', '.join(known)}")
    check_fields({name: value for name, value in rope.items() if value is not None}, ROPE_FIELDS, file)
    for name in ROPE_LISTS:
        count = len(rope.get(name) or ())
        if count not in (0, config.head_dim // 2):
            raise SpecquantError(f"{file}: {name} has {count} numbers; head_dim asks for {config.head_dim // 2}")
    if rope["rope_type"] == "longrope" and rope.get("original_max_position_embeddings") is None:
        raise SpecquantError(f"{file}: longrope needs original_max_position_embeddings, and it is null: copy it again")
    if rope["rope_type"] != "proportional" and rope.get("partial_rotary_factor") not in (None, 1):
        raise SpecquantError(f"{file}: partial_rotary_factor is not supported yet: only whole heads are rotated")
    for positions in {longest_context(config), config.max_position_embeddings}:
        _check_frequencies(config, positions, file)


def _check_frequencies(config: PreTrainedConfig, positions: int, file: Path) -> None:
    """Raises SpecquantError where numbers that are right one by one give no angles together."""
    try:
        frequencies, factor = rotary_frequencies(config, positions)
        fits = frequencies.shape == (config.head_dim // 2,) and bool(frequencies.isfinite().all())
        reason = "" if fits and 0 < factor < float("inf") else "they are not finite"
    except Exception as error:  # transformers computes with what it is given
        reason = f"{type(error).__name__}: {error}"
    if reason:
        rope = shown(config.rope_parameters)
        raise SpecquantError(f"{file}: rope_parameters {rope} give no rotary frequencies ({reason}): copy it again")


def _check_tokens(tokens: object, name: str, config: PreTrainedConfig, file: Path) -> None:
    """Raises SpecquantError where a field is neither null nor a token's number, or a list of such."""
    token_id = whole(0, config.vocab_size - 1)
    for token in tokens if isinstance(tokens, list) else [] if tokens is None else [tokens]:
        if not token_id.fits(token):
            raise SpecquantError(
                f"{file}: {name} is {shown(token)}, which is no token of a vocabulary of {config.vocab_size}"
            )
