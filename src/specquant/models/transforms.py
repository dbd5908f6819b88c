"""Changes to a model's weights that leave what it computes as it is, but make it easier to quantize.

Rotation (QuaRot, arXiv 2404.00456, its offline part): every vector h of the residual stream becomes h Q. Smoothing
(SmoothQuant, arXiv 2211.10438): an input channel is divided by s, and the weights that read it are multiplied by s.
Both change a layer that `unpack_layer` has prepared.
"""

import torch
from torch import nn

from specquant.errors import SpecquantError
from specquant.models.llama import Llama, LlamaLayer
from specquant.quant.hadamard import random_hadamard

LINEARS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


def unpack_layer(layer: LlamaLayer) -> None:
    """Replace a layer's packed matrices by ones in its norms' dtype, so that changing them does not round them."""
    dtype = layer.post_attention_norm.weight.dtype
    for name in LINEARS:
        packed = getattr(layer, name)
        linear = nn.Linear(packed.in_features, packed.out_features, packed.bias is not None, device="meta")
        linear.weight = nn.Parameter(packed.dequantize().to(dtype), requires_grad=False)
        if packed.bias is not None:
            linear.bias = nn.Parameter(packed.bias.to(dtype, copy=True), requires_grad=False)
        setattr(layer, name, linear)


def rotate_ends(model: Llama, rotation: torch.Tensor) -> None:
    """Rotate what writes to the residual stream first and reads from it last, and set the model's `feature_map`.

    rotation: float64 [hidden, hidden], orthogonal. The final norm's gain goes into the LM head; embedding and LM head
    are then no longer tied.
    """
    embedding, gain, head = (module.weight.double() for module in (model.embed_tokens, model.norm, model.lm_head))
    dtype = model.embed_tokens.weight.dtype
    model.lm_head.weight = nn.Parameter((head * gain @ rotation).to(dtype), requires_grad=False)
    model.embed_tokens.weight = nn.Parameter((embedding @ rotation).to(dtype), requires_grad=False)
    model.feature_map = (rotation.t() * gain).float()
    model.norm.weight.fill_(1)  # last: in a float64 model, `gain` is this tensor
    model.config.tie_word_embeddings = False


def rotate_layer(layer: LlamaLayer, rotation: torch.Tensor) -> None:
    """Rotate a layer's side of the residual stream, with the norms' gains folded into the matrices behind them."""
    for norm, name in ((layer.input_norm, "qkv_proj"), (layer.post_attention_norm, "gate_up_proj")):
        weight = getattr(layer, name).weight
        weight.copy_(weight.double() * norm.weight.double() @ rotation)
        norm.weight.fill_(1)
    for name in ("o_proj", "down_proj"):
        linear = getattr(layer, name)
        linear.weight.copy_(rotation.t() @ linear.weight.double())
        if linear.bias is not None:
            linear.bias.copy_(linear.bias.double() @ rotation)


def original_ends(model: Llama) -> tuple[nn.Embedding, nn.Linear]:
    """Embedding and LM head as they were before `rotate_ends`, up to their rounding to fp16, for an EAGLE head.

    Raises SpecquantError as `rotation_of` does.
    """
    rotation, gain = rotation_of(model)
    embedding = model.embed_tokens.weight.double() @ rotation.t()
    head = model.lm_head.weight.double() @ rotation.t() / torch.where(gain == 0, torch.inf, gain)
    embed_tokens = nn.Embedding.from_pretrained(embedding.to(model.dtype))
    lm_head = nn.Linear(head.shape[1], head.shape[0], bias=False, device="meta")
    lm_head.weight = nn.Parameter(head.to(model.dtype), requires_grad=False)
    return embed_tokens, lm_head


def rotation_of(model: Llama) -> tuple[torch.Tensor, torch.Tensor]:
    """By which a rotated model's residual stream was multiplied, float64 [hidden, hidden], and the gain of its final
    norm before, float64 [hidden].

    Raises SpecquantError where the model's `feature_map` does not belong to `random_hadamard`.
    """
    rotation = random_hadamard(model.config.hidden_size).to(model.device)
    gains = rotation @ model.feature_map.double()
    gain = gains.diagonal()
    if not torch.allclose(gains, torch.diag(gain), atol=1e-5 * gain.abs().max().item()):
        raise SpecquantError(
            "the model was rotated by another matrix than this version's: give the EAGLE head the embedding and the LM "
            "head from before the rotation, or quantize the fp16 model again"
        )
    return rotation, gain


def reading_rotated(fc: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """The matrix [hidden, n * width] of an EAGLE-3 head, which reads n residual streams, as it reads rotated ones."""
    blocks = fc.double().unflatten(1, (-1, len(rotation)))
    return (blocks @ rotation).flatten(1).to(fc.dtype)


def smooth_layer(layer: LlamaLayer, largest: dict[str, torch.Tensor], strength: float, norms: bool) -> None:
    """Smooth the inputs of a layer's matrices; what comes before each takes the division.

    largest: name of a matrix -> [in], the largest magnitude of each of its input channels. norms: also smooth the
    inputs that come from a norm (by its gain); a rotated layer's are even already. o_proj is smoothed by the value
    rows of qkv_proj, for all query heads of a group alike, as they share a value head; down_proj by the up rows of
    gate_up_proj.
    """
    if norms:
        for norm, name in ((layer.input_norm, "qkv_proj"), (layer.post_attention_norm, "gate_up_proj")):
            linear = getattr(layer, name)
            scale = smoothing_scale(largest[name], linear.weight.abs().amax(dim=0), strength)
            gain = norm.weight.clone()
            norm.weight.copy_((gain / scale).half())  # as it is stored; what that rounds goes into the matrix
            linear.weight.mul_(torch.where(norm.weight == 0, scale, gain / norm.weight))

    shape = (layer.kv_heads, layer.heads // layer.kv_heads, layer.head_dim)
    weights = layer.o_proj.weight.abs().amax(dim=0)
    scale = smoothing_scale(*(part.view(shape).amax(dim=1) for part in (largest["o_proj"], weights)), strength)
    _divide_outputs(layer.qkv_proj, scale.reshape(-1))
    layer.o_proj.weight.mul_(scale[:, None].expand(shape).reshape(-1))

    scale = smoothing_scale(largest["down_proj"], layer.down_proj.weight.abs().amax(dim=0), strength)
    _divide_outputs(layer.gate_up_proj, scale)
    layer.down_proj.weight.mul_(scale)


def _divide_outputs(linear: nn.Linear, scale: torch.Tensor) -> None:
    """Divide the last outputs of a matrix, as many as there are scales."""
    linear.weight[-len(scale) :].div_(scale[:, None])
    if linear.bias is not None:
        linear.bias[-len(scale) :].div_(scale)


def smoothing_scale(activations: torch.Tensor, weights: torch.Tensor, strength: float) -> torch.Tensor:
    """max|x|^strength / max|w|^(1 - strength) of each input channel (SmoothQuant, equation 4); 1 where either is 0."""
    scale = activations**strength / weights ** (1 - strength)
    return torch.where((activations > 0) & (weights > 0), scale, 1.0)
