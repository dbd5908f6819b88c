"""The EAGLE draft head (EAGLE, arXiv 2401.15077; EAGLE-2, arXiv 2406.16858)."""

import torch
from torch import nn
from transformers import PreTrainedConfig

from specquant.models.cache import KVCache
from specquant.models.config import longest_context
from specquant.models.llama import LlamaLayer, RotaryEmbedding
from specquant.quant import Scheme, get_scheme


class EagleHead(nn.Module):
    """One decoder layer that predicts the next feature of its model from the last feature and the next token.

    Row t: the embedding of token t+1 and the feature of position t go through one linear layer into one decoder layer
    without input norm; the output approximates the model's feature of position t+1, without a final norm, and goes
    through the model's LM head. `embed_tokens` and `lm_head` are the model's (those from before its rotation, if it
    is rotated).

    context_length: positions that it can run at most; None for all that its configuration says. `feature_map` is None,
    or for a rotated model the matrix [hidden, hidden] that turns its features into those that the head knows.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        embed_tokens: nn.Embedding,
        lm_head: nn.Linear,
        scheme: str | Scheme = "fp16",
        context_length: int | None = None,
    ):
        super().__init__()
        scheme = get_scheme(scheme) if isinstance(scheme, str) else scheme
        self.config = config
        self.embed_tokens = embed_tokens
        self.lm_head = lm_head
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=getattr(config, "bias", True))
        self.layer = LlamaLayer(config, scheme, input_norm=False)
        self.context_length = context_length or longest_context(config)
        self.rotary = RotaryEmbedding(config, self.context_length)
        self.register_buffer("feature_map", None)
        self.requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.fc.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.fc.weight.device

    def new_cache(self, capacity: int) -> KVCache:
        return KVCache(self.config, capacity, self.dtype, self.device)

    @torch.inference_mode()
    def forward(
        self, tokens: torch.Tensor, features: torch.Tensor, positions: torch.Tensor, cache: KVCache, mask: torch.Tensor
    ) -> torch.Tensor:
        """Predict features [rows, hidden] of the positions after `positions`.

        tokens: int64 [rows], the token after each position. features: [rows, hidden] of each position. mask: as for
        `Llama.forward`.
        """
        x = self.fc(torch.cat((self.embed_tokens(tokens), features), dim=-1))
        x, delta = self.layer(x, x, positions, self.rotary, cache, mask)
        return x + delta

    @torch.inference_mode()
    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """features [rows, hidden] -> logits [rows, vocab_size]."""
        return self.lm_head(features)
