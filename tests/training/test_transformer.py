"""A model as transformers' module says what ours says, quantized or not."""

import pytest
import torch

from specquant.errors import SpecquantError
from specquant.models.loading import load_model
from specquant.models.quantize import quantize_model
from specquant.training.transformer import load_trainable

TOKENS = torch.arange(20) * 7


@pytest.mark.parametrize("scheme", ["fp16", "w4a16-g128", "w8a8"])
def test_it_says_what_ours_says(small_models, tmp_path, scheme):
    directory = small_models / "target"
    if scheme != "fp16":
        quantize_model(directory, scheme, tmp_path / "out", method="round-to-nearest", progress=False)
        directory = tmp_path / "out"
    theirs = load_trainable(directory, torch.float32, "cpu")
    assert not any(p.requires_grad for p in theirs.parameters())
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight
    assert not hasattr(theirs.config, "quantization_config")
    with torch.no_grad():
        logits = theirs(input_ids=TOKENS[None]).logits[0]
    ours = load_model(directory, dtype=torch.float64)
    expected = ours.logits(ours.prefill(TOKENS, ours.new_cache(len(TOKENS))))
    near = 1e-4 if scheme != "w8a8" else 0.2  # transformers' activations are not rounded
    assert (logits - expected).abs().max() < near * expected.abs().max().clamp(min=1)


def test_a_rotated_one_is_refused(small_models, tmp_path):
    quantize_model(
        small_models / "target", "w4a16-g128-rot", tmp_path / "out", method="round-to-nearest", progress=False
    )
    with pytest.raises(SpecquantError, match="was rotated, and heads read features as they were before"):
        load_trainable(tmp_path / "out", torch.float32, "cpu")
