"""A model as transformers' module, to train with and to write many texts at once: whatever `load_model` loads."""

import copy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from specquant.errors import SpecquantError
from specquant.models.checkpoint import open_checkpoint
from specquant.models.hub import locate
from specquant.models.llama import Llama
from specquant.models.loading import load_model
from specquant.models.weights import HuggingFaceWeights
from specquant.quant import PackedLinear, get_scheme


def load_trainable(model: str | Path, dtype: torch.dtype, device: torch.device | str) -> PreTrainedModel:
    """A model that `load_model` loads as transformers' module, frozen; quantized matrices are what they stand for.

    Args:
        model: A directory, a hub id, a GGUF file or a packaged name.
        dtype: What it computes in.
        device: Where it lies.

    Returns:
        The module, in evaluation mode.

    Raises:
        SpecquantError: As `load_model` does, and for a model that was rotated: its features are not its own.
    """
    directory = locate(model)
    ours = load_model(directory, dtype=torch.float32, context_length=1)
    if ours.feature_map is not None:
        raise SpecquantError(f"{model} was rotated, and heads read features as they were before: give another scheme")
    config = plain_config(ours.config)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    tensors = {name: tensor.to(dtype) for name, tensor in _named_as_transformers(ours, directory).items()}
    if config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    theirs.load_state_dict(tensors, assign=True)
    theirs.tie_weights()
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(config=config)  # computed, so not in a state dict
    return theirs.to(device).requires_grad_(False).eval()


def plain_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of a configuration that says nothing of how weights are stored."""
    config = copy.deepcopy(config)
    for field in ("quantization_config", "compression_config"):
        if hasattr(config, field):
            delattr(config, field)
    return config


def _named_as_transformers(model: Llama, directory: Path) -> dict[str, torch.Tensor]:
    names = HuggingFaceWeights(open_checkpoint(directory), model.config, get_scheme("fp16"))
    ours = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            ours[f"{name}.weight"] = module.dequantize()
            if module.bias is not None:
                ours[f"{name}.bias"] = module.bias
        else:
            ours |= dict(module.named_parameters(prefix=name, recurse=False))
    theirs = {}
    for name, tensor in ours.items():
        sources = {"lm_head.weight": tensor.shape} if name == "lm_head.weight" else names.sources(name, tensor.shape)
        if name == "embed_tokens.weight":
            sources = {"model.embed_tokens.weight": tensor.shape}
        theirs |= dict(zip(sources, tensor.split([shape[0] for shape in sources.values()]), strict=True))
    return theirs
