"""What a checkpoint holds for each module of ours, by name; and filling a model from it, tensor by tensor."""

import math
import re

import torch
from torch import nn
from transformers import PreTrainedConfig

from specquant.errors import SpecquantError
from specquant.models.checkpoint import Checkpoint
from specquant.progress import tqdm
from specquant.quant import PackedLinear, Scheme, quantize_linear

# Our module of a layer -> the Hugging Face modules that it holds, joined along the outputs.
LAYER_TENSORS = {
    "input_norm": ("input_layernorm",),
    "qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "query_norm": ("self_attn.q_norm",),
    "key_norm": ("self_attn.k_norm",),
    "o_proj": ("self_attn.o_proj",),
    "post_attention_norm": ("post_attention_layernorm",),
    "gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "down_proj": ("mlp.down_proj",),
}
# Tables that old checkpoints hold and that are computed.
NOT_READ = re.compile(r".*\.rotary_emb\.inv_freq")
# What only EAGLE-3 heads have (arXiv 2503.01840): a layer of another shape, and a vocabulary of their own.
EAGLE_3_NAMES = ("midlayer", "d2t", "t2d")
EAGLE_3_REFUSED = "which the method eagle3 drafts with: give an EAGLE or EAGLE-2 head"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # that weights are converted between
MOST_WEIGHTS_PER_NUMBER = 8  # that a checkpoint stores: 4 bits each in an int32
SHOW_PROGRESS_AFTER_S = 5


class Weights:
    """The weights of a model in a checkpoint, asked for by our names. This class: stored under our names.

    A format of others is a subclass: it says which tensors it reads for a name, so that they are checked before any is
    read, and turns them into ours.
    """

    def __init__(self, checkpoint: Checkpoint, config: PreTrainedConfig, scheme: Scheme):
        self.checkpoint, self.config, self.scheme = checkpoint, config, scheme

    def sources(self, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The checkpoint's tensors, and their shapes, that are joined along the outputs to our tensor `name`."""
        return {name: shape}

    def linear_sources(self, name: str, empty: PackedLinear) -> dict[str, tuple[int, ...]]:
        """The checkpoint's tensors, and their shapes, that make the matrix `name`; empty: it, on the meta device."""
        return {f"{name}.{buffer}": tuple(want.shape) for buffer, want in empty.named_buffers()}

    def scheme_of(self, name: str, empty: PackedLinear) -> Scheme:
        """The scheme that the matrix `name` is loaded in: the model's, or fp16 where a checkpoint left it out.

        Raises SpecquantError where of the matrices that make one of ours some were quantized and some were not.
        """
        return self.scheme

    def read(self, name: str, want: torch.Tensor, device: torch.device | str) -> torch.Tensor:
        """Our tensor `name`, in the shape and dtype of `want`."""
        parts = [self.checkpoint.read(source, device) for source in self.sources(name, tuple(want.shape))]
        for part in parts:  # before they are joined, which would widen what does not belong
            if part.dtype != want.dtype and not (part.dtype in FLOATS and want.dtype in FLOATS):
                raise SpecquantError(f"{self.checkpoint.path}: {name} holds {part.dtype} where {want.dtype} belongs")
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        mapped = len(parts) == 1 and tensor.device.type == "cpu"  # in the file: what stays must be a copy
        tensor = tensor.to(want.dtype, copy=mapped)
        numbers = tensor.float() if tensor.dtype == torch.float8_e4m3fn else tensor  # torch cannot tell of e4m3
        if numbers.is_floating_point() and not bool(numbers.isfinite().all()):
            raise SpecquantError(
                f"{self.checkpoint.path}: {name} holds infinities or NaN in {want.dtype}: copy it again"
            )
        return tensor

    def linear(self, name: str, empty: PackedLinear, device: torch.device | str) -> PackedLinear:
        """The matrix `name`, packed as its scheme stores it, on the device."""
        for buffer, want in dict(empty.named_buffers()).items():
            setattr(empty, buffer, self.read(f"{name}.{buffer}", want, device))
        if not empty.has_sound_grid():
            raise SpecquantError(
                f"{self.checkpoint.path}: {name} has scales that are not above 0, or zero points that are no codes: "
                "copy it again"
            )
        return empty


class HuggingFaceWeights(Weights):
    """Floating-point weights named as transformers does; rounded to the nearest that the scheme can store."""

    def __init__(self, checkpoint: Checkpoint, config: PreTrainedConfig, scheme: Scheme, prefix: str = "model."):
        super().__init__(checkpoint, config, scheme)
        self.prefix = prefix

    def sources(self, name, shape):
        layer = re.fullmatch(r"layers\.(\d+)\.(\w+)\.(weight|bias)", name)
        if layer is None:
            source = name if name == "lm_head.weight" else self.prefix + name
            if name == "embed_tokens.weight" and source not in self.checkpoint and self.config.tie_word_embeddings:
                source = "lm_head.weight" if "lm_head.weight" in self.checkpoint else source  # the one copy of both
            return {source: shape}
        number, module, kind = layer.groups()
        names = (f"{self.prefix}layers.{number}.{part}.{kind}" for part in LAYER_TENSORS[module])
        return {part: (rows, *shape[1:]) for part, rows in zip(names, self._rows(module, shape[0]), strict=True)}

    def linear_sources(self, name, empty):
        bias = {} if empty.bias is None else self.sources(f"{name}.bias", (empty.out_features,))
        return self.sources(f"{name}.weight", (empty.out_features, empty.in_features)) | bias

    def linear(self, name, empty, device):
        shape = (empty.out_features, empty.in_features)
        weight = self.read(f"{name}.weight", torch.empty(shape, dtype=torch.float16, device="meta"), device)
        linear = quantize_linear(self.scheme_of(name, empty), weight)
        if empty.bias is not None:
            linear.bias = self.read(f"{name}.bias", empty.bias, device)
        return linear

    def _rows(self, module: str, rows: int) -> tuple[int, ...]:
        """How many outputs of one of our modules each of its parts has."""
        config = self.config
        if module == "qkv_proj":
            kv_rows = config.num_key_value_heads * config.head_dim
            return config.num_attention_heads * config.head_dim, kv_rows, kv_rows
        return (config.intermediate_size,) * 2 if module == "gate_up_proj" else (rows,)


class EagleWeights(HuggingFaceWeights):
    """An EAGLE head, as SafeAILab publishes it, or as SpecMQuant converts it for a rotated model.

    Names may have a prefix. There may be an embedding and a language model head of its own, and the matrix that undoes
    the rotation of its model's features. Raises SpecquantError for an EAGLE-3 head.
    """

    def __init__(self, checkpoint: Checkpoint, config: PreTrainedConfig, scheme: Scheme):
        prefixes = [name.removesuffix("fc.weight") for name in checkpoint.shapes if name.endswith("fc.weight")]
        super().__init__(checkpoint, config, scheme, min(prefixes, key=len, default=""))
        if any(part in EAGLE_3_NAMES for name in checkpoint.shapes for part in name.split(".")):
            raise SpecquantError(f"{checkpoint.path} holds an EAGLE-3 head, {EAGLE_3_REFUSED}")

    def __contains__(self, name: str) -> bool:
        """Whether the head has our tensor `name` of its own."""
        return all(source in self.checkpoint for source in self.sources(name, ()))

    def sources(self, name, shape):
        if name.startswith("layer."):
            return super().sources(name.replace("layer.", "layers.0.", 1), shape)
        return {self.prefix + ("rms_norm_rotation.weight" if name == "feature_map" else name): shape}


class Eagle3Weights(HuggingFaceWeights):
    """An EAGLE-3 head, as SafeAILab publishes it, with a `midlayer`, or as vLLM's speculators do, with `layers.0`.

    Names may have a prefix. There may be an embedding of its own.
    """

    def __init__(self, checkpoint: Checkpoint, config: PreTrainedConfig, scheme: Scheme):
        prefixes = [name.removesuffix("fc.weight") for name in checkpoint.shapes if name.endswith("fc.weight")]
        super().__init__(checkpoint, config, scheme, min(prefixes, key=len, default=""))
        published = any(name.startswith(f"{self.prefix}midlayer.") for name in checkpoint.shapes)
        self.layer = "midlayer." if published else "layers.0."

    def __contains__(self, name: str) -> bool:
        """Whether the head has our tensor `name`."""
        return all(source in self.checkpoint for source in self.sources(name, ()))

    def sources(self, name, shape):
        if name.startswith("layer."):
            parts = super().sources(name.replace("layer.", "layers.0.", 1), shape)
            return {part.replace("layers.0.", self.layer, 1): size for part, size in parts.items()}
        if name.startswith("hidden_norm."):
            name = self.layer + name
        # Programs write the LM head and the maps beside what has a prefix.
        return {self.prefix + name if self.prefix + name in self.checkpoint else name: shape}


def ties_ends(weights: Weights) -> bool:
    """Whether embedding and LM head of a model are one matrix: where its configuration says so and the checkpoint does
    not hold two that differ, as transformers does it."""
    if not weights.config.tie_word_embeddings:
        return False
    shape = (weights.config.vocab_size, weights.config.hidden_size)
    ends = [source for name in ("embed_tokens", "lm_head") for source in weights.sources(f"{name}.weight", shape)]
    if ends[0] == ends[1] or not all(end in weights.checkpoint for end in ends):
        return True
    embedding, head = (weights.checkpoint.read(end) for end in ends)
    return embedding.dtype == head.dtype and torch.equal(embedding, head)


def check_sizes(config: PreTrainedConfig, checkpoint: Checkpoint, ends: bool = True) -> None:
    """Raises SpecquantError where a configuration asks for far more than a checkpoint's headers say is there, before
    anything of that size is made. ends: embedding and LM head must be there, too."""
    query_size, kv_size = (config.head_dim * n for n in (config.num_attention_heads, config.num_key_value_heads))
    layer = config.hidden_size * (2 * query_size + 2 * kv_size + 3 * config.intermediate_size)
    asked = config.num_hidden_layers * layer + (config.vocab_size * config.hidden_size if ends else 0)
    stored = sum(math.prod(shape) for shape in checkpoint.shapes.values())
    if asked > MOST_WEIGHTS_PER_NUMBER * stored or config.num_hidden_layers > len(checkpoint.shapes):
        raise SpecquantError(
            f"{checkpoint.path} is incomplete: its {len(checkpoint.shapes)} tensors hold {stored} numbers, and "
            f"config.json asks for {config.num_hidden_layers} layers with {asked} weights: copy it again"
        )


def fill(module: nn.Module, weights: Weights, device: torch.device | str) -> None:
    """Read every tensor of a module that is on the meta device, in the module's order, onto `device`.

    Raises SpecquantError as `check` does, before anything is read, and where a tensor holds what its place cannot.
    """
    check(module, weights)
    read_into(module, weights, device)


def check(module: nn.Module, weights: Weights) -> None:
    """Raises SpecquantError where the checkpoint lacks a tensor of the module, has one of another shape or one that the
    module does not call for."""
    pieces, tied = _pieces(module)
    sources = {}
    for name, piece in pieces.items():
        packed = isinstance(piece, PackedLinear)
        sources |= weights.linear_sources(name, piece) if packed else weights.sources(name, tuple(piece.shape))
    _check(weights.checkpoint, sources, {source for name in tied for source in weights.sources(name, ())})


def read_into(module: nn.Module, weights: Weights, device: torch.device | str, prefix: str = "") -> None:
    """`fill` without the check. prefix: what stands before the module's names where it is a part of a model."""
    pieces, tied = _pieces(module)
    progress = tqdm(
        pieces.items(),
        desc=f"loading {weights.checkpoint.path.name}",
        unit="tensor",
        delay=SHOW_PROGRESS_AFTER_S,
        leave=False,
        disable=None,  # where nobody looks
    )
    for name, piece in progress:
        take = weights.linear if isinstance(piece, PackedLinear) else weights.read
        _set(module, name, take(prefix + name, piece, device))
    for name, first in tied.items():
        owner, _, attribute = first.rpartition(".")
        _set(module, name, getattr(module.get_submodule(owner), attribute))


def _pieces(module: nn.Module) -> tuple[dict[str, PackedLinear | torch.Tensor], dict[str, str]]:
    """What is read for a module, by name: matrices and other tensors; and the names of tensors that are one of them."""
    pieces: dict[str, PackedLinear | torch.Tensor] = {}
    tied: dict[str, str] = {}
    for path, part in module.named_modules():  # in this order shards are cut
        if isinstance(part, PackedLinear):
            pieces[path] = part
            continue
        for attribute, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
            if attribute in part._non_persistent_buffers_set:  # computed, not read
                continue
            name = f"{path}.{attribute}" if path else attribute
            first = next((other for other, piece in pieces.items() if piece is tensor), None)
            if first is not None:
                tied[name] = first
            elif tensor.is_meta:
                pieces[name] = tensor
    return pieces, tied


def _check(checkpoint: Checkpoint, sources: dict[str, tuple[int, ...]], ignored: set[str]) -> None:
    for name, shape in sources.items():
        if name not in checkpoint:
            raise SpecquantError(f"{checkpoint.path} is incomplete: it has no tensor {name}")
        if checkpoint.shapes[name] != tuple(shape):
            raise SpecquantError(
                f"{checkpoint.path}: {name} has shape {checkpoint.shapes[name]} where config.json asks for "
                f"{tuple(shape)}"
            )
    unknown = sorted(name for name in checkpoint.shapes if name not in sources.keys() | ignored)
    unknown = [name for name in unknown if not NOT_READ.fullmatch(name)]
    if unknown:
        raise SpecquantError(f"{checkpoint.path} has a tensor that config.json does not call for: {unknown[0]}")


def _set(module: nn.Module, name: str, value: torch.Tensor | nn.Module) -> None:
    owner, _, attribute = name.rpartition(".")
    owner = module.get_submodule(owner)
    if attribute in owner._parameters and not isinstance(value, nn.Parameter):
        value = nn.Parameter(value, requires_grad=False)
    setattr(owner, attribute, value)
