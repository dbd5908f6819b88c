"""Trained models as directories of fp16 weights."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specquant.files import written_whole
from specquant.training.eagle import EagleHead


def rounded(module: nn.Module) -> nn.Module:
    """The module with its weights rounded to fp16, as they are saved, and frozen; it computes in fp32 as before."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.half())
    return module.requires_grad_(False).eval()


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Write a Hugging Face directory with fp16 weights and the tokenizer."""
    saved = LlamaForCausalLM(model.config).half()
    saved.load_state_dict(model.state_dict())
    with written_whole(path) as directory:
        saved.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        shutil.rmtree(path, ignore_errors=True)  # of a run that was interrupted behind this


def save_head(head: EagleHead, config: LlamaConfig, path: Path) -> None:
    """Write config.json and model.safetensors (fp16, the published names)."""
    config.dtype = torch.float16
    with written_whole(path) as directory:
        save_file(
            {name: tensor.half().contiguous().cpu() for name, tensor in head.state_dict().items()},
            directory / "model.safetensors",
            metadata={"format": "pt"},
        )
        config.save_pretrained(directory)
        shutil.rmtree(path, ignore_errors=True)  # as above
