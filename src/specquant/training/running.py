"""How models run while they are trained: in bf16 and compiled on a GPU, with dropout where they learn."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaForCausalLM

from specquant.training.learning import Loss, Text


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def add_dropout(model: LlamaForCausalLM, probability: float) -> list:
    """Dropout on the embedding and on what each block adds to the residual stream: Llama has none of its own."""

    def drop(module: nn.Module, _inputs, output: torch.Tensor) -> torch.Tensor:
        return F.dropout(output, probability, module.training)

    places = [model.model.embed_tokens]
    for layer in model.model.layers:
        places += [layer.self_attn.o_proj, layer.mlp.down_proj]
    return [place.register_forward_hook(drop) for place in places]


def in_bf16(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The model as it writes and teaches on a GPU, a copy in bf16 (autocast would mix dtypes in the cache)."""
    return copy.deepcopy(model).to(torch.bfloat16) if model.device.type == "cuda" else model


@contextmanager
def compiled(model: LlamaForCausalLM, text: Text, loss: Loss, *others: nn.Module) -> Iterator[None]:
    """Compile the model's layers and other modules of its loss meanwhile, on a GPU.

    Where the compiler does not work, stay with plain PyTorch.
    """
    modules = [*model.model.layers, *others] if model.device.type == "cuda" else []
    for module in modules:
        module.compile(dynamic=False)
    try:
        if modules:
            model.train()
            loss(text.batch(0)).backward()
    except Exception as error:  # whatever the compiler raises, training goes on without it
        print(f"torch.compile does not work here ({error.__class__.__name__}: {error}); going on without", flush=True)
        _decompile(modules)
    model.zero_grad(set_to_none=True)
    yield
    _decompile(modules)


def _decompile(modules: list[nn.Module]) -> None:
    for module in modules:
        module._compiled_call_impl = None  # what nn.Module.compile sets
    torch.compiler.reset()
