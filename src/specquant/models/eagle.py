"""Draft heads, and that of EAGLE (arXiv 2401.15077; EAGLE-2, arXiv 2406.16858)."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedConfig

from specquant.errors import SpecquantError
from specquant.kernels.top_k import log_softmax_top_k
from specquant.models.cache import KVCache
from specquant.models.config import longest_context
from specquant.models.llama import LlamaLayer, RotaryEmbedding, check_widths
from specquant.quant import PackedLinear, Scheme, get_scheme, quantize_linear


class DraftHead(nn.Module):
    """One decoder layer that drafts for a model from its features.

    Row t: the embedding of token t+1, and what the head knows of position t: what it made of the model's feature
    (`known`), or, while it drafts, its own output there. A kind of head is a subclass: it says which features it reads
    (`feature_layers`, as `Drafter` does), makes them what it knows, and computes.

    context_length: positions that it can run at most; None for all that its configuration says. `vocabulary` is None,
    or the tokens, int64 [n], ascending, that the rows of the LM head stand for.
    """

    feature_layers: tuple[int, ...] = ()
    vocabulary: torch.Tensor | None

    def __init__(
        self,
        config: PreTrainedConfig,
        embed_tokens: nn.Embedding,
        lm_head: nn.Linear,
        fc: nn.Linear,
        layer: LlamaLayer,
        context_length: int | None,
    ):
        super().__init__()
        self.config = config
        self.embed_tokens = embed_tokens
        self.lm_head = lm_head
        self.fc = fc
        self.layer = layer
        self.context_length = context_length or longest_context(config)
        self.rotary = RotaryEmbedding(config, self.context_length)
        self.register_buffer("vocabulary", None)

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    def new_cache(self, capacity: int) -> KVCache:
        return KVCache(self.config, capacity, self.dtype, self.device)

    def known(self, features: torch.Tensor) -> torch.Tensor:
        """What the head knows of positions, [n, hidden], from its model's features there."""
        raise NotImplementedError

    def forward(
        self, tokens: torch.Tensor, known: torch.Tensor, positions: torch.Tensor, cache: KVCache, mask: torch.Tensor
    ) -> torch.Tensor:
        """What the head knows of the positions after `positions`, [rows, hidden].

        tokens: int64 [rows], the token after each position. known: [rows, hidden] of each position. mask: as for
        `Llama.forward`.
        """
        raise NotImplementedError

    @torch.inference_mode()
    def logits(self, outputs: torch.Tensor) -> torch.Tensor:
        """outputs [rows, hidden] -> logits [rows, vocab_size], or of the tokens in `vocabulary`."""
        return self.lm_head(outputs)

    @torch.inference_mode()
    def likeliest(self, outputs: torch.Tensor, k: int, among: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The k likeliest next tokens after outputs [rows, hidden], [rows, k] of each: log-probabilities, within
        `vocabulary`, and tokens (`kernels.top_k`). among: how many of the tokens that the LM head knows may be drafted,
        the first ones (default: all)."""
        log_p, tokens = log_softmax_top_k(self.logits(outputs)[:, :among], k)
        return log_p, tokens if self.vocabulary is None else self.vocabulary[tokens]

    @property
    def bytes_read(self) -> int:
        """Bytes that no iteration of drafting can do without: its matrices and the LM head."""
        parts = [*self._read, self.lm_head, *(part for part in self.layer.modules() if isinstance(part, PackedLinear))]
        return sum(tensor.nbytes for part in parts for tensor in (*part.parameters(), *part.buffers()))

    @property
    def _read(self) -> list[nn.Module]:
        """Matrices beside the layer's that every iteration reads."""
        return []


Head = TypeVar("Head", bound=DraftHead)


class EagleHead(DraftHead):
    """One decoder layer that predicts the next feature of its model from the last feature and the next token.

    Row t: the embedding of token t+1 and the feature of position t go through one linear layer into one decoder layer
    without input norm; the output approximates the model's feature of position t+1, without a final norm, and goes
    through the model's LM head. `embed_tokens` and `lm_head` are the model's (those from before its rotation, if it
    is rotated).

    `feature_map` is None, or for a rotated model the matrix [hidden, hidden] that turns its features into those that
    the head knows.
    """

    feature_map: torch.Tensor | None

    def __init__(
        self,
        config: PreTrainedConfig,
        embed_tokens: nn.Embedding,
        lm_head: nn.Linear,
        scheme: str | Scheme = "fp16",
        context_length: int | None = None,
    ):
        scheme = get_scheme(scheme) if isinstance(scheme, str) else scheme
        fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=getattr(config, "bias", True))
        layer = LlamaLayer(config, scheme, input_norm=False)
        super().__init__(config, embed_tokens, lm_head, fc, layer, context_length)
        self.register_buffer("feature_map", None)
        self._map: torch.Tensor | None = None  # it, in the dtype of features
        self.requires_grad_(False)

    @torch.inference_mode()
    def known(self, features: torch.Tensor) -> torch.Tensor:
        if self.feature_map is None:
            return features
        if self._map is None or (self._map.dtype, self._map.device) != (features.dtype, features.device):
            self._map = self.feature_map.to(features)
        return features @ self._map

    @torch.inference_mode()
    def forward(
        self, tokens: torch.Tensor, known: torch.Tensor, positions: torch.Tensor, cache: KVCache, mask: torch.Tensor
    ) -> torch.Tensor:
        x = self.fc(torch.cat((self.embed_tokens(tokens), known), dim=-1))
        x, delta = self.layer(x, x, positions, self.rotary, cache, mask)
        return x + delta

    @property
    def _read(self) -> list[nn.Module]:
        return [self.fc]


def shrink_head(head: Head, scheme: str | Scheme | None = None, vocabulary: torch.Tensor | None = None) -> Head:
    """The head, changed in place, with its matrices, and an LM head of its own, rounded to a scheme, and with an LM
    head that knows some tokens alone (FR-Spec, arXiv 2502.14856). It drafts otherwise; what is decoded stays.

    vocabulary: int64 [n], different tokens, ascending; None for all. Raises SpecquantError for a scheme that rotates,
    or that cannot store one of the matrices.
    """
    scheme = head_scheme(scheme)
    check_widths(head.config, scheme, "the EAGLE head")
    if vocabulary is not None:
        rows = vocabulary.to(head.device)
        if head.vocabulary is not None:  # of those that it knows
            rows = torch.isin(head.vocabulary, rows).nonzero()[:, 0]
        head.vocabulary = rows if head.vocabulary is None else head.vocabulary[rows]
        head.lm_head = _linear(head.lm_head.weight[rows])
    if scheme.name != "fp16":
        head.fc, head.lm_head = _rounded(head.fc, scheme), _rounded(head.lm_head, scheme)
        for name in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"):
            setattr(head.layer, name, _rounded(getattr(head.layer, name), scheme))
    return head


def head_scheme(scheme: str | Scheme | None) -> Scheme:
    """The scheme of a head, fp16 by default. Raises SpecquantError for one that is not known, or that rotates."""
    scheme = get_scheme(scheme or "fp16") if not isinstance(scheme, Scheme) else scheme
    if scheme.rotated:
        raise SpecquantError(f"{scheme.name} rotates a whole model: give the EAGLE head another scheme, as w4a16-g128")
    return scheme


def most_frequent(tokens: Iterable[int], count: int, vocab_size: int) -> torch.Tensor:
    """The `count` tokens that come most often, int64, ascending; of equals, those that never come too, the lowest:
    vocabularies number what is more frequent lower. Raises SpecquantError where the vocabulary has fewer."""
    require_count(count, vocab_size)
    counts = Counter(tokens)
    return torch.tensor(sorted(sorted(range(vocab_size), key=lambda token: -counts[token])[:count]))


def require_count(count: int | None, vocab_size: int) -> None:
    """Raises SpecquantError where a vocabulary has no `count` tokens; None are all that it has."""
    if count is not None and not 1 <= count <= vocab_size:
        raise SpecquantError(f"a vocabulary of {vocab_size} has no {count} most frequent tokens: choose fewer")


def _linear(weight: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(*reversed(weight.shape), bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def _rounded(linear: nn.Linear | PackedLinear, scheme: Scheme) -> PackedLinear:
    """The same matrix in a scheme, by round-to-nearest."""
    weight = linear.dequantize() if isinstance(linear, PackedLinear) else linear.weight
    rounded = quantize_linear(scheme, weight)
    rounded.bias = None if linear.bias is None else linear.bias.half()
    return rounded


def describe_head(head_scheme: str | None, head_vocabulary: int | None, config: PreTrainedConfig) -> dict[str, Any]:
    """The columns of tables that say which head drafted: head_scheme, and head_vocabulary, the tokens that it knows.

    Args:
        head_scheme: None for fp16.
        head_vocabulary: None for all of its model's tokens, which the table counts as it does others.
        config: of its model.
    """
    return {"head_scheme": head_scheme or "fp16", "head_vocabulary": head_vocabulary or config.vocab_size}
