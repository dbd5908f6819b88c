"""Embedding and LM head: one matrix or two, as transformers 5 decides it, in every kind of checkpoint."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from specquant.models.export import export_model
from specquant.models.loading import load_eagle_head, load_model
from specquant.models.quantize import quantize_model

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOKENS = torch.arange(20) * 7


def logits_of(model):
    return model.logits(model.prefill(TOKENS, model.new_cache(len(TOKENS))))


@torch.inference_mode()
def expected_logits(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)(TOKENS[None]).logits[0]


@pytest.fixture
def target(small_models, tmp_path):
    """A copy of the target, which ties its ends and says so."""
    directory = shutil.copytree(small_models / "target", tmp_path / "target")
    assert json.loads((directory / "config.json").read_text())["tie_word_embeddings"]
    return directory


def change(directory, make):
    """Write the tensors that `make` makes of those of a directory's last file."""
    file = sorted(directory.glob("*.safetensors"))[-1]
    tensors = make(load_file(file))
    save_file(tensors, file, {"format": "pt"})
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        places = json.loads(index.read_text())["weight_map"]
        places = {name: place for name, place in places.items() if place != file.name} | dict.fromkeys(
            tensors, file.name
        )
        index.write_text(json.dumps({"weight_map": places}))


def another_head(tensors):
    embedding = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    return tensors | {HEAD: -tensors[embedding]}


def test_another_lm_head_is_taken_in_spite_of_the_flag(target):
    change(target, another_head)
    model = load_model(target)
    assert not model.config.tie_word_embeddings
    assert torch.equal(model.lm_head.weight, -model.embed_tokens.weight)
    assert (logits_of(model) - expected_logits(target)).abs().max() < 1e-4


def test_an_equal_lm_head_is_shared(target):
    expected = logits_of(load_model(target))
    change(target, lambda tensors: tensors | {HEAD: tensors[EMBEDDING].clone()})
    model = load_model(target)
    assert model.lm_head.weight is model.embed_tokens.weight
    assert torch.equal(logits_of(model), expected)


def test_the_one_copy_may_be_stored_as_the_lm_head(target):
    expected = logits_of(load_model(target))
    change(target, lambda tensors: {HEAD if name == EMBEDDING else name: t for name, t in tensors.items()})
    assert torch.equal(logits_of(load_model(target)), expected)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16-g128", "w4a8-qqq"])
def test_quantize_keeps_another_lm_head(target, tmp_path, scheme):
    change(target, another_head)
    quantize_model(target, scheme, tmp_path / "out", method="round-to-nearest", progress=False)
    model = load_model(tmp_path / "out")
    expected = logits_of(load_model(target))
    assert (logits_of(model) - expected).norm() < 0.3 * expected.norm()  # with the embedding it would be 2


@pytest.mark.parametrize("kind", ["specquant", "compressed-tensors", "gptq"])
def test_a_quantized_checkpoint_with_another_lm_head(target, tmp_path, kind):
    quantize_model(target, "w4a16-g128", tmp_path / "out", method="round-to-nearest", progress=False)
    directory = tmp_path / "out"
    if kind != "specquant":
        export_model(directory, kind, tmp_path / "exported")
        directory = tmp_path / "exported"
    expected = -logits_of(load_model(directory))
    assert json.loads((directory / "config.json").read_text())["tie_word_embeddings"]
    change(directory, another_head)
    assert torch.equal(logits_of(load_model(directory)), expected)


def test_an_export_of_two_ends_says_that_they_are_two(target, tmp_path):
    quantize_model(target, "w4a16-g128", tmp_path / "out", method="round-to-nearest", progress=False)
    change(tmp_path / "out", another_head)
    export_model(tmp_path / "out", "compressed-tensors", tmp_path / "exported")
    assert json.loads((tmp_path / "exported/config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(logits_of(load_model(tmp_path / "exported")), logits_of(load_model(tmp_path / "out")))


def test_an_eagle_head_drafts_by_the_lm_head_that_its_model_has(target, small_models, tmp_path):
    change(target, another_head)
    model = load_model(target)
    assert load_eagle_head(small_models / "eagle-target", model).lm_head is model.lm_head
    head = shutil.copytree(small_models / "eagle-target", tmp_path / "head")
    own = model.embed_tokens.weight.half() * 2
    change(head, lambda tensors: tensors | {"lm_head.weight": own.clone()})
    assert torch.equal(load_eagle_head(head, model).lm_head.weight, own.float())
