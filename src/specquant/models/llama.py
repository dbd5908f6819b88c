"""The Llama forward pass over a few new tokens: one sequence, a draft tree, or a chunk of a prompt."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from specquant.errors import SpecquantError
from specquant.kernels.attention import tree_attention
from specquant.kernels.fp16 import fp16_triton
from specquant.kernels.launch import on_gpu
from specquant.kernels.norm import Normed, add_rms_norm
from specquant.kernels.rotary import rotate_and_cache
from specquant.kernels.swiglu import swiglu
from specquant.models.cache import KVCache
from specquant.models.config import has_bias, has_head_norms, longest_context, rotary_frequencies
from specquant.quant import SCHEMES, PackedLinear, Scheme, empty_linear, get_scheme
from specquant.quant.hadamard import SIZES, has_hadamard

PREFILL_CHUNK = 512
TABLE_CHUNK = 8192  # positions of rotary tables that are computed at once


class RMSNorm(nn.Module):
    def __init__(self, size: int, epsilon: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size), requires_grad=False)
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return add_rms_norm(x, None, self.weight, self.epsilon)[1]

    def add(
        self, x: torch.Tensor, delta: torch.Tensor | None, reader: PackedLinear | None = None
    ) -> tuple[torch.Tensor, Normed]:
        """x + delta, and its norm: as codes and scales where `reader`, which multiplies it, takes these."""
        return add_rms_norm(x, delta, self.weight, self.epsilon, **for_reader(reader, x))


class RotaryEmbedding(nn.Module):
    """Cosines and sines [positions, head_dim] of rotary position embeddings (RoFormer, arXiv 2104.09864).

    In a skeleton on the meta device they take no memory until `make_tables`.
    """

    def __init__(self, config: PreTrainedConfig, positions: int):
        super().__init__()
        self.config, self.positions = config, positions
        device = "meta" if torch.get_default_device().type == "meta" else "cpu"
        table = torch.empty(positions, config.head_dim, dtype=torch.float64, device=device)
        for name in ("cosines", "sines"):
            self.register_buffer(name, torch.empty_like(table), persistent=False)
        if device == "cpu":
            self.make_tables()

    def make_tables(self) -> None:
        """Compute them on the CPU in float64, a few positions at a time, each rounded once to its table's dtype."""
        with torch.device("cpu"):
            frequencies, factor = rotary_frequencies(self.config, self.positions)
            self.cosines, self.sines = (
                torch.empty(table.shape, dtype=table.dtype) for table in (self.cosines, self.sines)
            )
            for rows in torch.arange(self.positions).split(TABLE_CHUNK):
                angles = rows.double()[:, None] * frequencies
                angles = torch.cat((angles, angles), dim=-1)
                self.cosines[rows[0] : rows[-1] + 1] = angles.cos() * factor
                self.sines[rows[0] : rows[-1] + 1] = angles.sin() * factor


class LlamaLayer(nn.Module):
    """One decoder layer. An EAGLE head uses the same layer without the input norm."""

    row_invariant = False

    def __init__(
        self,
        config: PreTrainedConfig,
        scheme: Scheme,
        index: int = 0,
        input_norm: bool = True,
        inputs: int | None = None,
    ):
        """inputs: of qkv_proj; None for the hidden size, as in every layer of a model."""
        super().__init__()
        self.index = index
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        hidden, inner = config.hidden_size, config.intermediate_size
        query_size, kv_size = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.input_norm = RMSNorm(hidden, config.rms_norm_eps) if input_norm else None
        self.qkv_proj = empty_linear(scheme, query_size + 2 * kv_size, inputs or hidden, has_bias(config, "qkv_proj"))
        head_norms = has_head_norms(config)
        self.query_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if head_norms else None
        self.key_norm = RMSNorm(self.head_dim, config.rms_norm_eps) if head_norms else None
        self.o_proj = empty_linear(scheme, hidden, query_size, has_bias(config, "o_proj"))
        self.post_attention_norm = RMSNorm(hidden, config.rms_norm_eps)
        self.gate_up_proj = empty_linear(scheme, 2 * inner, hidden, has_bias(config, "gate_up_proj"))
        self.down_proj = empty_linear(scheme, hidden, inner, has_bias(config, "down_proj"))

    def forward(
        self,
        x: torch.Tensor,
        normed: Normed,
        positions: torch.Tensor,
        rotary: RotaryEmbedding,
        cache: KVCache,
        mask: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual stream x and its norm, both [rows, hidden] -> x behind the attention, and what the MLP adds to
        it: the next norm adds it. The norm may come as codes and scales, if qkv_proj takes these."""
        attended = self.o_proj(self.attend(normed, positions, rotary, cache, mask))
        x, normed = self.post_attention_norm.add(x, attended, self.gate_up_proj)
        return x, multiply(self.gate(normed, x.dtype), self.down_proj, x.dtype)

    def attend(
        self, x: Normed, positions: torch.Tensor, rotary: RotaryEmbedding, cache: KVCache, mask: torch.Tensor
    ) -> torch.Tensor:
        """Normalized x [rows, hidden] -> the input of o_proj [rows, heads * head_dim]; writes the cache."""
        rows, slots = mask.shape
        cache.require(slots)
        first_slot = cache.length + (slots - rows) if slots > rows else cache.length
        keys, values = cache.keys[self.index], cache.values[self.index]
        qkv = self._normalize_heads(multiply(x, self.qkv_proj, keys.dtype))
        early = for_reader(self.o_proj, qkv).get("next_early", False)
        query = rotate_and_cache(qkv, rotary.cosines, rotary.sines, positions, keys, values, first_slot, early)
        return tree_attention(query, keys, values, cache.length, mask, self.row_invariant, early).reshape(rows, -1)

    def _normalize_heads(self, qkv: torch.Tensor) -> torch.Tensor:
        """The output of qkv_proj [rows, out]; in Qwen3, each query head and each key head normalized by itself."""
        if self.query_norm is None:
            return qkv
        sizes = [count * self.head_dim for count in (self.heads, self.kv_heads, self.kv_heads)]
        query, key, value = qkv.split(sizes, dim=-1)
        query = self.query_norm(query.reshape(-1, self.head_dim)).view(query.shape)
        key = self.key_norm(key.reshape(-1, self.head_dim)).view(key.shape)
        return torch.cat((query, key, value), dim=-1)

    def gate(self, x: Normed, dtype: torch.dtype | None = None) -> Normed:
        """Normalized x [rows, hidden] -> the input of down_proj [rows, intermediate_size]. dtype: of the model, where x
        comes as codes and scales."""
        gate_up = multiply(x, self.gate_up_proj, dtype)
        return swiglu(gate_up, **for_reader(self.down_proj, gate_up))


class Llama(nn.Module):
    """A Llama model, or one of the families that differ little from it (`models.config`), for inference at batch 1, its
    linear layers stored by a scheme.

    context_length: positions that it can run at most; None for all that it was made for. `feature_map` is None, or for
    a rotated model the matrix [hidden, hidden] that turns its features into those of the model before rotation (an
    EAGLE head was trained on these).
    """

    row_invariant = False

    def __init__(self, config: PreTrainedConfig, scheme: str | Scheme = "fp16", context_length: int | None = None):
        super().__init__()
        self.config = config
        self.context_length = context_length or longest_context(config)
        self.scheme = get_scheme(scheme) if isinstance(scheme, str) else scheme
        check_widths(config, self.scheme, "the model")
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, dtype=torch.float16)
        self.layers = nn.ModuleList(LlamaLayer(config, self.scheme, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, dtype=torch.float16)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.rotary = RotaryEmbedding(config, self.context_length)
        self.register_buffer("feature_map", None)
        self.requires_grad_(False)

    def make_row_invariant(self) -> None:
        """From now on let no row's bits depend on how many other rows its pass has, where operations run their kernels.

        So a verified draft has the tokens that decoding one by one gives, near ties included. Takes longer. Passes of
        more than 128 rows, as of a prompt, and asymmetric W4A16 stay as they are.
        """
        for module in self.modules():
            if isinstance(module, PackedLinear | LlamaLayer | Llama):
                module.row_invariant = True

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    def new_cache(self, capacity: int) -> KVCache:
        return KVCache(self.config, capacity, self.dtype, self.device)

    @torch.inference_mode()
    def forward(self, tokens: torch.Tensor, depths: torch.Tensor, cache: KVCache, mask: torch.Tensor) -> torch.Tensor:
        """Run new tokens behind the cache's confirmed slots.

        tokens: int64 [rows]. depths: int64 [rows], how far behind the first unconfirmed position each stands.
        mask: bool [rows, n], n >= rows: which of the n slots behind the confirmed ones each row sees; the last `rows`
        of them are the rows of this pass. Returns features [rows, hidden]: the hidden states after the final norm.
        """
        return self.run(tokens, depths, cache, mask, ())[0]

    @torch.inference_mode()
    def run(
        self,
        tokens: torch.Tensor,
        depths: torch.Tensor,
        cache: KVCache,
        mask: torch.Tensor,
        layers: tuple[int, ...],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same pass, which also hands out the residual stream where some layers begin.

        Args:
            tokens: As for `forward`; so are depths, cache and mask.
            layers: 0 for the embedding, n for what n layers made of it.

        Returns:
            The features, and [rows, len(layers) * hidden]: the streams, side by side as they were asked for. Where no
            layer is named, the features again.
        """
        x, positions = self.embed_tokens(tokens), cache.length + depths
        streams = {0: x} if 0 in layers else {}
        first, *others = self.layers
        x, normed = first.input_norm.add(x, None, first.qkv_proj)
        following = [*((layer.input_norm, layer.qkv_proj) for layer in others), (self.norm, None)]
        for index, (layer, (norm, reader)) in enumerate(zip(self.layers, following, strict=True), start=1):
            x, delta = layer(x, normed, positions, self.rotary, cache, mask)
            x, normed = norm.add(x, delta, reader)
            if index in layers:
                streams[index] = x
        return normed, torch.cat([streams[index] for index in layers], dim=-1) if layers else normed

    @torch.inference_mode()
    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """features [rows, hidden] -> logits [rows, vocab_size]."""
        if self.row_invariant and on_gpu(features) and features.dtype in (torch.float16, torch.bfloat16):
            return fp16_triton(features, self.lm_head.weight, row_invariant=True)
        return self.lm_head(features)

    @torch.inference_mode()
    def prefill(self, tokens: torch.Tensor, cache: KVCache) -> torch.Tensor:
        """Run a prompt, int64 [n], in chunks behind the confirmed slots and confirm it; gives features [n, hidden]."""
        return self.run_prompt(tokens, cache, ())[0]

    @torch.inference_mode()
    def run_prompt(
        self, tokens: torch.Tensor, cache: KVCache, layers: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `prefill`, and what `run` hands out of `layers`."""
        parts = []
        for chunk in tokens.split(PREFILL_CHUNK):
            rows = torch.arange(len(chunk), device=self.device)
            mask = causal_mask(len(chunk), self.device)
            if layers:
                parts.append(self.run(chunk, rows, cache, mask, layers))
            else:
                parts.append((self(chunk, rows, cache, mask),) * 2)
            cache.length += len(chunk)
        if not parts:
            sizes = (self.config.hidden_size, self.config.hidden_size * max(1, len(layers)))
            features, handed = (torch.empty(0, size, dtype=self.dtype, device=self.device) for size in sizes)
            return features, handed
        features = torch.cat([part for part, _ in parts])
        return features, torch.cat([part for _, part in parts]) if layers else features


def check_widths(config: PreTrainedConfig, scheme: Scheme, path: str | Path, rotates: bool = False) -> None:
    """Raises SpecquantError where a scheme cannot store one of a model's matrices, with the field of config.json that
    does not fit, and the schemes that do. path: how the model is called. rotates: its residual stream is to be rotated.
    """
    heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    outputs = (
        ("(num_attention_heads + 2 * num_key_value_heads) * head_dim", (heads + 2 * kv_heads) * head_dim),
        ("2 * intermediate_size", 2 * config.intermediate_size),
        ("hidden_size", config.hidden_size),
    )

    def misfit(scheme: Scheme, rotates: bool) -> str:
        if rotates and not has_hadamard(config.hidden_size):
            size = config.hidden_size
            return (
                f"hidden_size {size} cannot be rotated: a hidden size of {size} has no Hadamard matrix here ({SIZES})"
            )
        for name, width in outputs:
            if width % scheme.output_multiple:
                return f"{name} {width} is not a multiple of {scheme.output_multiple}"
        return ""

    if reason := misfit(scheme, rotates):
        others = [other.name for other in SCHEMES.values() if not misfit(other, other.rotated)]
        raise SpecquantError(f"{path} does not fit {scheme.name}: {reason}; schemes that it fits: {', '.join(others)}")


def for_reader(linear: nn.Module | None, x: torch.Tensor) -> dict[str, Any]:
    """How the operation before a product of such an x works for it: whether it makes codes and their scales, and if so,
    the codes' dtype; and whether the product is launched early."""
    if not isinstance(linear, PackedLinear):
        return {}
    codes = {"quantized": True, "code_dtype": linear.code_dtype} if linear.takes_codes(x) else {}
    return codes | {"next_early": linear.starts_early(x)}


def multiply(x: Normed, linear: nn.Module, dtype: torch.dtype | None) -> torch.Tensor:
    """x, or its codes and scales, times the matrix -> [rows, out] in x's dtype, which `dtype` says of codes."""
    return linear(x, dtype) if isinstance(x, tuple) else linear(x)


def causal_mask(rows: int, device: torch.device | str) -> torch.Tensor:
    """The mask [rows, rows] of a chain: each row sees itself and the rows before it."""
    return torch.ones(rows, rows, dtype=torch.bool, device=device).tril()


def set_compute_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert embedding, norms, LM head and rotary tables in place; packed weights stay as they are stored."""
    for part in module.modules():
        if isinstance(part, RMSNorm | RotaryEmbedding | nn.Embedding | nn.Linear):
            part.to(dtype)
    return module
