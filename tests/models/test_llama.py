"""Our forward pass against transformers' own, on the models that ship."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from specquant.errors import SpecquantError
from specquant.files import project_root
from specquant.models.loading import load_eagle_head, load_model, load_tokenizer

TINY = project_root() / "data/tiny"


@pytest.mark.parametrize("name", ["target", "intermediate"])
def test_logits_are_those_of_transformers(name):
    tokens = load_tokenizer(TINY / name)("Question: A farmer has 12 cows.\nAnswer: def f(x):", return_tensors="pt")[
        "input_ids"
    ]
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(TINY / name, dtype=torch.float32)(tokens).logits[0]
    model = load_model(TINY / name)
    logits = model.logits(model.prefill(tokens[0], model.new_cache(64)))
    assert (logits - expected).abs().max() < 1e-4


def test_a_chunked_prefill_is_one_pass(monkeypatch):
    model = load_model(TINY / "target", dtype=torch.float64)
    tokens = torch.arange(2, 40)
    whole = model.prefill(tokens, model.new_cache(64))
    monkeypatch.setattr("specquant.models.llama.PREFILL_CHUNK", 7)
    torch.testing.assert_close(model.prefill(tokens, model.new_cache(64)), whole)


def test_the_head_predicts_features_that_choose_tokens_as_the_model_does():
    model = load_model(TINY / "target")
    head = load_eagle_head(TINY / "eagle-target", model)
    tokens = torch.tensor(
        load_tokenizer(TINY / "target")("import os\nimport sys\n\n\nclass Reader:\n    def __init__(self")["input_ids"]
    )
    features = model.prefill(tokens, model.new_cache(64))
    rows = len(tokens) - 1
    mask = torch.ones(rows, rows, dtype=torch.bool).tril()
    predicted = head(tokens[1:], features[:-1], torch.arange(rows), head.new_cache(64), mask)
    same = head.logits(predicted).argmax(-1) == model.logits(features[1:]).argmax(-1)
    assert same.float().mean() > 0.5


def test_a_head_of_another_model_is_refused():
    with pytest.raises(SpecquantError, match="hidden_size 256"):
        load_eagle_head(TINY / "eagle-intermediate", load_model(TINY / "target"))
