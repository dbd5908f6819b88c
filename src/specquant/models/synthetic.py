"""Models of true shapes with random weights: how long a pass takes depends on shapes, not on what the weights say.

The weights are made in the form in which their scheme stores them, on the device, so that no larger copy ever exists.
A rotated scheme is made as the others are: rotation changes no shape and no operation of a pass.
"""

import math
from collections.abc import Iterable
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import LlamaConfig, PreTrainedConfig

from specquant.errors import SpecquantError
from specquant.models.cache import KVCache
from specquant.models.config import load_config
from specquant.models.eagle import DraftHead, EagleHead, shrink_head
from specquant.models.eagle3 import Eagle3Config, Eagle3Head
from specquant.models.graphs import MOST_ROWS
from specquant.models.hub import is_hub_id, locate
from specquant.models.llama import PREFILL_CHUNK, Llama, RMSNorm, set_compute_dtype
from specquant.models.memory import NotEnoughMemory, free_bytes
from specquant.models.names import SHAPES, no_shapes
from specquant.quant import PackedLinear, Scheme, get_scheme
from specquant.quant.grid import in_groups, out_of_groups

EAGLE3_VOCABULARY = 32000  # tokens that published EAGLE-3 heads of Llama-3 draft
BYTES_PER_CODE = 5  # that exist at once while a matrix's codes are drawn and packed
DRAWN_AT_ONCE = 1 << 26  # codes of a trained model's, each of which takes 9 bytes more while it is drawn
FARTHEST_CODE = 255  # from a zero point
BYTES_PER_LOGIT = 16  # of up to 64 rows, in several graphs
BYTES_WHILE_ROUNDED = 20  # of a weight, in float32 copies that exist at once while a head's matrix is rounded
GPU_SPARE_BYTES = 1 << 30  # kernels' code, graphs, and what lies unused between blocks


class Memory(NamedTuple):
    """Bytes that a model needs: its weights, the cache of a context, and what is needed while making and running it."""

    weights: int
    cache: int
    working: int


class Synthetic(NamedTuple):
    """What `synthetic_model` makes a model of."""

    config: PreTrainedConfig
    scheme: str
    context_length: int
    dtype: torch.dtype


def synthetic_config(model: str | Path) -> PreTrainedConfig:
    """The configuration of a name in SHAPES, or in a model directory. Raises SpecquantError where it is neither."""
    if str(model) in SHAPES:
        return LlamaConfig(**SHAPES[str(model)])
    path = Path(model) if is_hub_id(model) else locate(model)
    if not path.is_dir():
        raise no_shapes(model)
    return load_config(path)


def synthetic_model(
    config: PreTrainedConfig,
    scheme: str | Scheme,
    context_length: int,
    dtype: torch.dtype = torch.float16,
    device: torch.device | str = "cuda",
    seed: int = 0,
    codes: torch.Tensor | None = None,
) -> Llama:
    """A model of this configuration with random weights, the same for the same seed on the same kind of device.

    Weights are uniform and have the variance 1 / inputs, so that activations keep their size from layer to layer.

    Args:
        config: whose shapes are taken.
        scheme: how its linear layers are stored.
        context_length: positions that it can run at most.
        dtype: that it computes in.
        device: where it is made.
        seed: of all that is drawn.
        codes: how often each code is drawn, of a model in the same scheme (`code_shares`); None: all as often.

    Returns:
        The model.

    Raises:
        NotEnoughMemory: The device has too little; none is taken before.
    """
    require_memory(config, scheme, context_length, dtype, device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.device(device):
        model = Llama(config, scheme, context_length)
    set_compute_dtype(model, dtype).to(device)
    model.embed_tokens.weight.normal_(generator=generator)
    model.lm_head.weight.normal_(std=config.hidden_size**-0.5, generator=generator)
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.weight.uniform_(0.75, 1.25, generator=generator)
        elif isinstance(module, PackedLinear):
            _draw(module, model.scheme.weight_bits, generator, codes)
    return model


def synthetic_ends(
    config: PreTrainedConfig,
    context_length: int,
    dtype: torch.dtype = torch.float16,
    device: torch.device | str = "cuda",
    seed: int = 0,
) -> Llama:
    """A synthetic model without layers: embedding and LM head, all of it that an EAGLE head needs to draft."""
    config = copy(config)
    config.num_hidden_layers = 0
    return synthetic_model(config, "fp16", context_length, dtype, device, seed)


def synthetic_head(
    config: PreTrainedConfig,
    model: Llama,
    head_scheme: str | None = None,
    head_vocabulary: int | None = None,
    seed: int = 0,
    feature_layers: tuple[int, ...] = (),
) -> DraftHead:
    """An EAGLE head with random weights for a model of this configuration, whose embedding and LM head it shares.

    head_scheme: as for `eagle.shrink_head`. head_vocabulary: how many tokens it knows, which are the first; None for
    all. feature_layers: makes it an EAGLE-3 head that reads these, as wide as its model; it has an LM head of its own,
    of at most `EAGLE3_VOCABULARY` tokens. Raises NotEnoughMemory where the model's device has too little, before any is
    taken.
    """
    config = copy(config)
    config.num_hidden_layers = 1
    device, dtype = model.device, model.dtype

    def empty(embed_tokens: nn.Module, lm_head: nn.Module) -> DraftHead:
        ends: Any = (embed_tokens, lm_head)
        if not feature_layers:
            return EagleHead(config, *ends, context_length=model.context_length)
        eagle3 = Eagle3Config(config, min(EAGLE3_VOCABULARY, config.vocab_size), config.hidden_size)
        return Eagle3Head(eagle3, ends[0], feature_layers, context_length=model.context_length)

    with torch.device("meta"):
        sizes = [part.numel() for part in empty(nn.Module(), nn.Module()).state_dict().values()]
    shares = head_vocabulary is None and (head_scheme or "fp16") == "fp16"
    ends = 0 if shares else (head_vocabulary or config.vocab_size) * config.hidden_size
    needed = (sum(sizes) + ends) * dtype.itemsize + BYTES_WHILE_ROUNDED * max(*sizes, ends)
    if needed > free_bytes(device):
        raise NotEnoughMemory(
            f"an EAGLE head of {config.hidden_size} needs {needed / 1e9:.1f} GB while it is made, and "
            f"{free_bytes(device) / 1e9:.1f} GB are free on {device}: choose a larger device"
        )
    generator = torch.Generator(device).manual_seed(seed)
    with torch.device(device):
        head = empty(model.embed_tokens, model.lm_head)
    set_compute_dtype(head, dtype)
    spread = math.sqrt(3 / head.fc.in_features)
    for tensor in head.fc.parameters():
        tensor.uniform_(-spread, spread, generator=generator)
    for module in head.modules():
        if isinstance(module, RMSNorm):
            module.weight.uniform_(0.75, 1.25, generator=generator)
    for module in head.layer.modules():
        if isinstance(module, PackedLinear):
            _draw(module, 16, generator)
    if feature_layers:
        head.lm_head.weight.normal_(std=config.hidden_size**-0.5, generator=generator)
        head.vocabulary = torch.arange(head.lm_head.out_features, device=device)
    vocabulary = None if head_vocabulary is None else torch.arange(head_vocabulary)
    return shrink_head(head.to(device), head_scheme, vocabulary)


def require_integer_codes(scheme: str | Scheme) -> None:
    """Raises SpecquantError for a scheme whose weights are no integers, of which `code_shares` could say how often each
    is there."""
    scheme = get_scheme(scheme) if isinstance(scheme, str) else scheme
    if scheme.weight_bits == 16 or (scheme.floating and scheme.weight_bits == 8):
        raise SpecquantError(f"{scheme.name} has no integer codes that a trained model could show: take uniform ones")


def code_shares(model: Llama) -> torch.Tensor:
    """How often a model's linear layers hold each code, by its distance from the zero point.

    Args:
        model: quantized, as a trained one is.

    Returns:
        float64 [2 * FARTHEST_CODE + 1], which sum to 1: of the distances from -FARTHEST_CODE to FARTHEST_CODE.

    Raises:
        SpecquantError: Its scheme has no integer codes.
    """
    require_integer_codes(model.scheme)
    counts = torch.zeros(2 * FARTHEST_CODE + 1, dtype=torch.float64)
    for linear in model.modules():
        if isinstance(linear, PackedLinear):
            grouped = in_groups(linear.integer_codes().int(), linear.group_size)
            zeros = linear.grid().zero.round().int().expand(grouped.shape[:2])
            distances = out_of_groups(grouped - zeros[..., None], linear.in_features)  # without what fills up a group
            counts += torch.bincount(distances.flatten().cpu() + FARTHEST_CODE, minlength=len(counts))
    return counts / counts.sum()


def _draw(
    linear: PackedLinear, weight_bits: int, generator: torch.Generator, shares: torch.Tensor | None = None
) -> None:
    """Random weights, as the matrix stores them: scales that differ, and codes on both sides of zero."""
    device = generator.device
    spread = math.sqrt(3 / linear.in_features)  # uniform numbers within +-spread have the variance 1 / in_features
    if linear.bias is not None:
        linear.bias.uniform_(-spread, spread, generator=generator)
    if weight_bits == 16:
        linear.weight.uniform_(-spread, spread, generator=generator)
        return
    if shares is not None:  # fewer large codes: larger steps give the same variance
        distances = torch.arange(-FARTHEST_CODE, FARTHEST_CODE + 1, dtype=torch.float64)
        spread *= (2 ** (weight_bits - 1) - 1) / float((shares @ distances**2).sqrt()) / math.sqrt(3)
    reach = torch.empty(linear.out_features, linear.groups, device=device)
    reach.uniform_(0.75 * spread, 1.25 * spread, generator=generator)
    linear.fit(-reach, reach)
    grid = linear.grid()
    highest = int(torch.minimum(grid.highest - grid.zero, grid.zero - grid.lowest).min())
    shape, dtype = (linear.out_features, linear.in_features), torch.int8 if highest < 128 else torch.int16
    if shares is None:
        codes = torch.randint(-highest, highest + 1, shape, dtype=dtype, device=device, generator=generator)
    else:
        codes = _drawn_by(shares, shape, dtype, highest, generator)
    zeros = grid.zero.expand(reach.shape).to(dtype)
    grouped = in_groups(codes, linear.group_size).add_(zeros[..., None])
    linear.set_codes(out_of_groups(grouped, linear.in_features))


def _drawn_by(
    shares: torch.Tensor, shape: tuple[int, int], dtype: torch.dtype, highest: int, generator: torch.Generator
) -> torch.Tensor:
    """Codes [out, in], as distances from the zero point, by `code_shares`; at most `highest` away from it."""
    device = generator.device
    values = torch.arange(-FARTHEST_CODE, FARTHEST_CODE + 1, device=device).clamp(-highest, highest).to(dtype)
    ends = shares.cumsum(0)[:-1].to(device, torch.float32)
    codes = torch.empty(shape, dtype=dtype, device=device)
    for rows in codes.split(max(1, DRAWN_AT_ONCE // shape[1])):
        drawn = torch.rand(rows.shape, generator=generator, device=device)
        rows.copy_(values[torch.bucketize(drawn, ends, out_int32=True, right=True)])
    return codes


def memory_needed(
    config: PreTrainedConfig, scheme: str | Scheme, context_length: int, dtype: torch.dtype, device: torch.device | str
) -> Memory:
    """What a synthetic model with a cache of `context_length` positions needs on a device, counted on a skeleton."""
    with torch.device("meta"):
        model = set_compute_dtype(Llama(config, scheme, context_length), dtype)
    sizes = [linear.in_features * linear.out_features for linear in model.modules() if isinstance(linear, PackedLinear)]
    weights = _nbytes(model)
    activations = PREFILL_CHUNK * 4 * (config.hidden_size + config.intermediate_size) * dtype.itemsize
    working = BYTES_PER_CODE * max(sizes, default=0) + activations + BYTES_PER_LOGIT * MOST_ROWS * config.vocab_size
    if torch.device(device).type == "cuda":
        scores = PREFILL_CHUNK * config.num_attention_heads * context_length * torch.float32.itemsize
        working += 3 * scores + GPU_SPARE_BYTES  # torch's attention to a mask keeps scores, weights and the mask
    elif model.scheme.weight_bits < 16:
        weights += 4 * sum(sizes)  # the unpacked copies that the reference products multiply
    return Memory(weights, _cache_bytes(config, context_length, dtype), working)


def require_room(models: Iterable[Synthetic], device: torch.device | str) -> None:
    """Raises NotEnoughMemory where the device has too little free memory for these models together."""
    beside = 0
    for model in models:
        require_memory(*model, device, beside)
        needed = memory_needed(*model, device)
        beside += needed.weights + needed.cache


def require_memory(
    config: PreTrainedConfig,
    scheme: str | Scheme,
    context_length: int,
    dtype: torch.dtype,
    device: torch.device | str,
    beside: int = 0,
) -> None:
    """Raises NotEnoughMemory where the device has less free memory than the model needs. beside: bytes that others will
    have taken."""
    needed, free = memory_needed(config, scheme, context_length, dtype, device), free_bytes(device) - beside
    if sum(needed) > free:
        weights, cache, working = (f"{part / 1e9:.1f}" for part in needed)
        scheme = get_scheme(scheme) if isinstance(scheme, str) else scheme
        unpacked = torch.device(device).type == "cpu" and scheme.weight_bits < 16  # so fewer bits would not help
        raise NotEnoughMemory(
            f"{config.num_hidden_layers} layers of {config.hidden_size} in {scheme.name} with a context of "
            f"{context_length} need {sum(needed) / 1e9:.1f} GB ({weights} weights{', unpacked for a CPU' * unpacked}, "
            f"{cache} cache, {working} working memory), and {max(0, free) / 1e9:.1f} GB are free on {device}"
            f"{' beside its target' * (beside > 0)}: choose {'a GPU, a smaller model' if unpacked else 'fewer bits'}, "
            "a shorter context or a larger device"
        )


def bytes_read(model: Llama, context_length: int) -> int:
    """Bytes that no pass behind `context_length` positions can do without: the matrices, the LM head and the cache."""
    matrices = sum(linear.nbytes for linear in model.modules() if isinstance(linear, PackedLinear))
    return matrices + model.lm_head.weight.nbytes + _cache_bytes(model.config, context_length, model.dtype)


def _cache_bytes(config: PreTrainedConfig, positions: int, dtype: torch.dtype) -> int:
    """Of the keys and values of that many positions."""
    return positions * KVCache.bytes_per_position(config, dtype)


def _nbytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
