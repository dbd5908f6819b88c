"""config.json: which families of models the forward pass computes, and what it reads from their configurations."""

import json
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import logging

from specquant.errors import SpecquantError

# Model types of transformers. Llama 2, 3, 3.1 and 3.2 are all "llama"; Qwen2 has biases, Qwen3 has q and k norms.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
# Fields that config.json must have: transformers would take a family's first model's values for what is missing.
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
)
# Fields of rope_parameters that are no numbers above 0, or lists of them.
ROPE_WORDS = ("rope_type", "type", "truncate")


def read_json(file: Path) -> dict:
    """The object in a JSON file. Raises SpecquantError where it is none."""
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecquantError(f"{file} is not JSON ({error}): copy it again") from None
    if not isinstance(fields, dict):
        raise SpecquantError(f"{file} is no JSON object: copy it again")
    return fields


def load_config(path: str | Path, family: str | None = None) -> PreTrainedConfig:
    """The configuration in a model directory, read as that of `family` (default: what its model_type says), with the
    end tokens of its generation_config.json, if there is one.

    Raises SpecquantError if there is none, if it is damaged or lacks a size, and if it asks for more than this package
    computes.
    """
    file = Path(path) / "config.json"
    if not file.is_file():
        raise SpecquantError(f"{path} is not a model directory: it has no config.json")
    fields = read_json(file)
    model_type = family or fields.get("model_type")
    if model_type not in FAMILIES:
        raise SpecquantError(f"{file}: model_type is {model_type!r}; this package computes {', '.join(FAMILIES)}")
    for name in SIZES:
        if not _is_positive(fields.get(name)):
            found = f"is {fields[name]!r}" if name in fields else "is missing"
            raise SpecquantError(f"{file}: {name} {found}; give the number above 0 that the model was trained with")
    config = _make_config(CONFIG_MAPPING[model_type], fields, file)
    _check_rope(config, file)
    if config.hidden_act != "silu":
        raise SpecquantError(f"{file}: hidden_act {config.hidden_act!r} is not supported yet, only 'silu'")
    if config.num_attention_heads % config.num_key_value_heads:
        raise SpecquantError(
            f"{file}: num_attention_heads {config.num_attention_heads} is not a multiple of num_key_value_heads "
            f"{config.num_key_value_heads}"
        )
    for name in ("bos_token_id", "eos_token_id"):
        _check_tokens(config, name, file)
    generation = file.with_name("generation_config.json")
    if generation.is_file():  # transformers ends texts by these: a chat model may have more of them
        config.eos_token_id = read_json(generation).get("eos_token_id", config.eos_token_id)
        _check_tokens(config, "eos_token_id", generation)
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


def _make_config(kind: type[PreTrainedConfig], fields: dict, file: Path) -> PreTrainedConfig:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what transformers would only warn of is checked here
    try:
        config = kind(**{name: value for name, value in fields.items() if name != "model_type"})
        config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    except Exception as error:  # transformers reports bad fields by several exception types
        reason = " ".join(str(error.args[0] if error.args else error).split())
        raise SpecquantError(f"{file} is not a valid {kind.model_type} configuration: {reason}") from None
    finally:
        logging.set_verbosity(verbosity)
    return config


def _check_rope(config: PreTrainedConfig, file: Path) -> None:
    rope = config.rope_parameters
    if rope["rope_type"] not in ("default", *ROPE_INIT_FUNCTIONS):
        known = ", ".join(("default", *ROPE_INIT_FUNCTIONS))
        raise SpecquantError(f"{file}: rope scaling {rope['rope_type']!r} is not one that transformers has: {known}")
    for name, value in rope.items():
        if name in ROPE_WORDS or value is None:
            continue
        if not all(map(_is_positive, value if isinstance(value, list) else [value])):
            raise SpecquantError(f"{file}: {name} is {value!r}; it must be a number above 0")
        if isinstance(value, list) and len(value) != config.head_dim // 2:
            raise SpecquantError(f"{file}: {name} has {len(value)} numbers; head_dim asks for {config.head_dim // 2}")
    if rope["rope_type"] != "proportional" and rope.get("partial_rotary_factor") not in (None, 1):
        raise SpecquantError(f"{file}: partial_rotary_factor is not supported yet: only whole heads are rotated")


def _check_tokens(config: PreTrainedConfig, name: str, file: Path) -> None:
    tokens = getattr(config, name, None)
    for token in tokens if isinstance(tokens, list) else [tokens]:
        if token is not None and not (isinstance(token, int) and 0 <= token < config.vocab_size):
            raise SpecquantError(
                f"{file}: {name} is {token!r}, which is no token of a vocabulary of {config.vocab_size}"
            )


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
