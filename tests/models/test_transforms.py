import pytest
import torch
from transformers import LlamaConfig, Qwen3Config

from specquant.errors import SpecquantError
from specquant.models.llama import Llama
from specquant.models.transforms import (
    original_ends,
    rotate_ends,
    rotate_layer,
    smooth_layer,
    smoothing_scale,
    unpack_layer,
)
from specquant.quant.hadamard import random_hadamard

HIDDEN, INNER, HEADS, KV_HEADS = 384, 256, 6, 2


@pytest.fixture(
    params=[
        (LlamaConfig, True, torch.float32),
        (LlamaConfig, False, torch.float32),
        (LlamaConfig, True, torch.float64),
        (Qwen3Config, True, torch.float64),
    ],
    ids=str,
)
def model(request):
    """A random model with uneven norm gains, prepared for changes; with biases and head norms if it is a Qwen3."""
    kind, tied, dtype = request.param
    config = kind(
        attention_bias=kind is Qwen3Config,
        mlp_bias=kind is Qwen3Config,  # which no Qwen3 has, but a Llama may
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=64,
        vocab_size=100,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    generator = torch.Generator().manual_seed(0)
    model = Llama(config).to(dtype)
    for layer in model.layers:
        unpack_layer(layer)
    for name, parameter in model.named_parameters():
        parameter.normal_(generator=generator)
        if name.endswith("norm.weight"):
            parameter.mul_(0.5).add_(1)
        elif "layers" in name:
            parameter.mul_(0.05)
    model.norm.weight[5] = -0.7
    return model


TOKENS = torch.arange(40) * 7 % 100


def features_and_logits(model):
    features = model.prefill(TOKENS, model.new_cache(len(TOKENS)))
    return features, model.logits(features)


def rotate(model):
    rotation = random_hadamard(HIDDEN)
    rotate_ends(model, rotation)
    for layer in model.layers:
        rotate_layer(layer, rotation)


def test_rotation_leaves_the_logits_and_its_map_restores_the_features(model):
    features, logits = features_and_logits(model)
    rotate(model)
    rotated_features, rotated_logits = features_and_logits(model)
    scale = logits.abs().max()
    assert (rotated_logits - logits).abs().max() < 1e-5 * scale
    assert (rotated_features - features).abs().max() > 0.1
    assert (rotated_features @ model.feature_map.to(features) - features).abs().max() < 1e-4
    assert not model.config.tie_word_embeddings


def test_what_was_before_the_rotation_can_be_restored(model):
    embedding, gain, head = (part.weight.clone() for part in (model.embed_tokens, model.norm, model.lm_head))
    rotate(model)
    embed_tokens, lm_head = original_ends(model)
    assert torch.allclose(embed_tokens.weight, embedding, atol=1e-5)
    assert torch.allclose(lm_head.weight * gain, head * gain, atol=1e-5)  # as the division by a small gain is felt
    model.feature_map = torch.eye(HIDDEN)
    with pytest.raises(SpecquantError, match="rotated by another matrix"):
        original_ends(model)


@pytest.mark.parametrize("norms", [True, False])
def test_smoothing_leaves_the_logits(model, norms):
    _, logits = features_and_logits(model)
    inner = {"qkv_proj": HIDDEN, "o_proj": HEADS * 64, "gate_up_proj": HIDDEN, "down_proj": INNER}
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    for layer in model.layers:
        smooth_layer(layer, {name: torch.rand(size) * 20 for name, size in inner.items()}, 0.5, norms)
    _, smoothed = features_and_logits(model)
    assert (smoothed - logits).abs().max() < 1e-5 * logits.abs().max()
    changed = [name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])]
    expected = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    if norms:
        expected |= {"input_norm", "post_attention_norm"}
    assert {name.split(".")[-2] for name in changed} == expected
    if norms:  # gains are stored in fp16: what they became is exactly that
        gain = model.layers[0].input_norm.weight
        assert torch.equal(gain.half().float(), gain)


def test_smoothing_evens_out_what_matrices_read(model):
    """With strength 1, o_proj's and down_proj's inputs all become at most 1 (per value head, which heads share)."""
    layer = model.layers[0]
    x = torch.randn(50, HIDDEN, dtype=model.dtype)
    before = layer.gate(x).abs().amax(dim=0)
    largest = {"o_proj": torch.ones(HEADS * 64, dtype=x.dtype), "down_proj": before}
    smooth_layer(layer, largest, 1.0, norms=False)
    assert torch.allclose(layer.gate(x).abs().amax(dim=0), torch.ones(INNER, dtype=x.dtype), atol=1e-4)


def test_silent_channels_are_left_as_they_are():
    scale = smoothing_scale(torch.tensor([0.0, 4.0, 4.0]), torch.tensor([1.0, 0.0, 1.0]), 0.5)
    assert scale.tolist() == [1.0, 1.0, 2.0]
