"""Models from directories: Hugging Face layout with fp16 weights, or what `specquant quantize` writes."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerBase

from specquant.errors import SpecquantError
from specquant.models.eagle import EagleHead
from specquant.models.llama import Llama, set_compute_dtype
from specquant.quant import SCHEMES, PackedLinear, get_scheme, quantize_linear

# Our module of a layer -> the Hugging Face tensors that it holds, joined along the outputs.
LAYER_TENSORS = {
    "input_norm": ("input_layernorm",),
    "qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o_proj": ("self_attn.o_proj",),
    "post_attention_norm": ("post_attention_layernorm",),
    "gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "down_proj": ("mlp.down_proj",),
}
# Fields that config.json must have: transformers would take the first Llama's values for what is missing.
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
)
# The only values of these fields that the forward pass knows.
SUPPORTED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}


def load_config(path: str | Path) -> LlamaConfig:
    """The configuration in a model directory.

    Raises SpecquantError if there is none, if it is damaged or lacks a size, and if it asks for more than this package
    computes.
    """
    file = Path(path) / "config.json"
    if not file.is_file():
        raise SpecquantError(f"{path} is not a model directory: it has no config.json")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecquantError(f"{file} is not JSON ({error}): copy it again") from None
    if not isinstance(fields, dict):
        raise SpecquantError(f"{file} is no JSON object: copy it again")
    if fields.get("model_type") != "llama":
        raise SpecquantError(f"{file}: model_type is {fields.get('model_type')!r}; only 'llama' is supported")
    for name in SIZES:
        if not (isinstance(fields.get(name), int | float) and fields[name] > 0):
            found = f"is {fields[name]!r}" if name in fields else "is missing"
            raise SpecquantError(f"{file}: {name} {found}; give the number above 0 that the model was trained with")
    try:
        config = LlamaConfig(**fields)
    except Exception as error:  # transformers reports bad fields by several exception types
        reason = " ".join(str(error).split())
        raise SpecquantError(f"{file} is not a valid Llama configuration: {reason}") from None
    for name, value in SUPPORTED.items():
        if getattr(config, name) != value:
            raise SpecquantError(f"{file}: {name} {getattr(config, name)!r} is not supported yet, only {value!r}")
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise SpecquantError(f"{file}: rope scaling {rope['rope_type']!r} is not supported yet")
    if not (isinstance(rope["rope_theta"], int | float) and rope["rope_theta"] > 0):
        raise SpecquantError(f"{file}: rope_theta is {rope['rope_theta']!r}; it must be a number above 0")
    return config


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a model directory. Raises SpecquantError where there is none, or a damaged one."""
    if not (Path(path) / "tokenizer.json").is_file():
        raise SpecquantError(f"{path} has no tokenizer.json: give a model directory with its tokenizer")
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # each part of a tokenizer's files has its own exception types
        reason = f"{type(error).__name__}: {error}"
        raise SpecquantError(f"the tokenizer in {path} is damaged ({reason}): copy its files again") from None


def stored_scheme(config: LlamaConfig, path: str | Path) -> str:
    """The scheme in which the directory `path`, whose configuration this is, stores its weights."""
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return "fp16"
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if method != "specquant":
        raise SpecquantError(
            f"{path} is quantized by {method!r}, which is not supported yet: give an fp16 checkpoint, or a directory "
            "that `specquant quantize` wrote"
        )
    if quantization.get("scheme") not in list(SCHEMES):
        raise SpecquantError(
            f"{path}: config.json names the scheme {quantization.get('scheme')!r}, which this version does not know: "
            "quantize the fp16 model again"
        )
    return quantization["scheme"]


def load_model(
    path: str | Path, scheme: str | None = None, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Llama:
    """The model in a directory, computing in `dtype`.

    scheme: None for the one that the weights are stored in. For fp16 weights any scheme that does not rotate: they are
    then quantized by round-to-nearest while loading (`specquant quantize` calibrates, and rotates). Raises
    SpecquantError where a file is missing or damaged, a tensor is missing, unknown, of the wrong shape or type, or the
    weights are already stored in another scheme.
    """
    config = load_config(path)
    stored = stored_scheme(config, path)
    wanted = get_scheme(scheme or stored)
    if stored != "fp16" and wanted.name != stored:
        raise SpecquantError(f"{path} is stored in {stored}, not in {wanted.name}: quantize the fp16 model instead")
    if stored == "fp16" and wanted.rotated:
        raise SpecquantError(
            f"{wanted.name} rotates the whole model: make it once by `specquant quantize {path} --scheme {wanted.name} "
            "--out DIR` and load DIR"
        )
    model = Llama(config, stored)
    tensors = read_tensors(path)
    if wanted.rotated:
        model.feature_map = torch.empty(config.hidden_size, config.hidden_size)
    if stored == "fp16":
        tensors = join_tensors(tensors, path, "model.", config.num_hidden_layers, final=True)
    fill(model, tensors, path, config.tie_word_embeddings)
    if wanted.name != stored:
        round_to_scheme(model, wanted)
    return set_compute_dtype(model, dtype).to(device)


def load_eagle_head(path: str | Path, model: Llama, embed_tokens=None, lm_head=None) -> EagleHead:
    """The EAGLE head in a directory, for a model, computing in the model's dtype on its device.

    embed_tokens, lm_head: those that the head was trained with, if they are not the model's (a rotated model).
    Raises SpecquantError as `load_model` does, and where the head's sizes are not the model's.
    """
    config = load_config(path)
    for field in ("hidden_size", "vocab_size"):
        ours, theirs = getattr(config, field), getattr(model.config, field)
        if ours != theirs:
            raise SpecquantError(
                f"the EAGLE head in {path} has {field} {ours}, and its model {theirs}: they do not fit"
            )
    if config.num_hidden_layers != 1:
        raise SpecquantError(f"{path} is no EAGLE head: it has {config.num_hidden_layers} layers instead of one")
    head = EagleHead(config, embed_tokens or model.embed_tokens, lm_head or model.lm_head)
    tensors = join_tensors(read_tensors(path), path, "", 1, final=False)
    tensors = {name.replace("layers.0.", "layer."): tensor for name, tensor in tensors.items()}
    shared = {
        name: tensor for name, tensor in head.state_dict().items() if name.startswith(("embed_tokens.", "lm_head."))
    }
    fill(head, shared | tensors, path, False)
    return set_compute_dtype(head, model.dtype).to(model.device)


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a directory's safetensors files."""
    files = sorted(Path(path).glob("*.safetensors"))
    if not files:
        raise SpecquantError(f"{path} has no weights: no *.safetensors file is in it")
    tensors = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as archive:
                tensors |= {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError) as error:
            raise SpecquantError(f"{file} is damaged or not a safetensors file ({error}): copy it again") from None
    return tensors


def join_tensors(
    tensors: dict[str, torch.Tensor], path: str | Path, prefix: str, layers: int, final: bool
) -> dict[str, torch.Tensor]:
    """Hugging Face names to ours: q, k, v become one matrix, gate and up another. Names that are not known stay."""
    rest = dict(tensors)
    joined = {}

    def take(name: str) -> torch.Tensor:
        if name not in rest:
            raise SpecquantError(f"{path} is incomplete: it has no tensor {name}")
        return rest.pop(name)

    for layer in range(layers):
        for ours, theirs in LAYER_TENSORS.items():
            names = [f"{prefix}layers.{layer}.{name}.weight" for name in theirs]
            if ours == "input_norm" and not final and names[0] not in rest:
                continue  # an EAGLE head's layer has none
            parts = [take(name) for name in names]
            if len({part.shape[1:] for part in parts}) > 1:
                shapes = ", ".join(str(tuple(part.shape)) for part in parts)
                raise SpecquantError(f"{path}: {', '.join(names)} have different input sizes: {shapes}")
            joined[f"layers.{layer}.{ours}.weight"] = torch.cat(parts)
    if final:
        joined["embed_tokens.weight"] = take("model.embed_tokens.weight")
        joined["norm.weight"] = take("model.norm.weight")
    return joined | rest


def fill(module: nn.Module, tensors: dict[str, torch.Tensor], path: str | Path, tied: bool) -> None:
    """Load tensors into a module that has exactly these, or raise SpecquantError that names the first unfit one."""
    expected = module.state_dict()
    if tied:
        expected.pop("lm_head.weight")
        tensors.pop("lm_head.weight", None)
    for name, want in expected.items():
        if name not in tensors:
            raise SpecquantError(f"{path} is incomplete: it has no tensor for {name}")
        if tensors[name].shape != want.shape:
            raise SpecquantError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)} where config.json asks for {tuple(want.shape)}"
            )
        if tensors[name].dtype != want.dtype and not (tensors[name].is_floating_point() and want.is_floating_point()):
            raise SpecquantError(f"{path}: {name} holds {tensors[name].dtype} where {want.dtype} belongs")
    unknown = sorted(set(tensors) - set(expected))
    if unknown:
        raise SpecquantError(f"{path} has a tensor that config.json does not call for: {unknown[0]}")
    module.load_state_dict(tensors, strict=False)
    for name, loaded in expected.items():
        if loaded.is_floating_point() and not bool(loaded.isfinite().all()):
            raise SpecquantError(f"{path}: {name} holds infinities or NaN in {loaded.dtype}: copy it again")


def round_to_scheme(model: Llama, scheme) -> None:
    """Quantize every packed layer in place by round-to-nearest."""
    for module in model.layers.modules():
        for name, linear in module.named_children():
            if isinstance(linear, PackedLinear):
                setattr(module, name, quantize_linear(scheme, linear.dequantize()))
    model.scheme = scheme
