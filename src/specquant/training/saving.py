"""Trained models as directories of fp16 weights."""

import json
import shutil
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from specquant.files import written_whole
from specquant.models.checkpoint import ENDS_OF, SINGLE_FILE, stored_with
from specquant.training.eagle import EagleHead

Module = TypeVar("Module", bound=nn.Module)


def rounded(module: Module) -> Module:
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


def save_small(small: PreTrainedModel, ends_of: str, path: Path) -> None:
    """Write a model's layers and final norm in fp16; embedding, LM head and tokenizer stay those of another model.

    Args:
        small: What is written.
        ends_of: The other model: a hub id, a packaged name, or a directory, relative to `path` or absolute.
        path: The directory; what is there is replaced.
    """
    ends = {id(small.model.embed_tokens.weight), id(small.lm_head.weight)}
    tensors = {name: p.half().contiguous().cpu() for name, p in small.named_parameters() if id(p) not in ends}
    fields = small.config.to_diff_dict() | {"dtype": "float16", ENDS_OF: ends_of}
    fields |= {name: getattr(small.config, name) for name in ("bos_token_id", "eos_token_id", "head_dim")}
    with written_whole(path) as directory:
        save_file(tensors, directory / SINGLE_FILE, metadata={"format": "pt"})
        (directory / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
        shutil.rmtree(path, ignore_errors=True)  # of a run that was interrupted behind this


def save_head(head: EagleHead, config: PreTrainedConfig, path: Path, bits: int = 16) -> None:
    """Write config.json and model.safetensors (`stored_with` so many bits, the published names)."""
    config.dtype = torch.float16
    with written_whole(path) as directory:
        save_file(stored_with(bits, head.state_dict()), directory / SINGLE_FILE, metadata={"format": "pt"})
        config.save_pretrained(directory)
        shutil.rmtree(path, ignore_errors=True)  # as above
