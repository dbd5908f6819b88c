"""Small models that share another model's embedding and LM head, by its name in their config.json."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from specquant.errors import SpecquantError
from specquant.models.checkpoint import open_checkpoint
from specquant.models.loading import load_eagle_head, load_model, load_tokenizer
from specquant.models.quantize import quantize_model

TOKENS = torch.arange(20) * 7
BORROWED = "model.embed_tokens.weight"


def logits_of(directory):
    model = load_model(directory)
    return model.logits(model.prefill(TOKENS, model.new_cache(len(TOKENS))))


def write_small(family, path, named):
    """The target without its embedding, which `named` has."""
    path.mkdir(parents=True)
    tensors = load_file(family / "target/model.safetensors")
    save_file(
        {name: t for name, t in tensors.items() if name != BORROWED}, path / "model.safetensors", {"format": "pt"}
    )
    fields = json.loads((family / "target/config.json").read_text())
    (path / "config.json").write_text(json.dumps(fields | {"ends_of": named}))
    return path


@pytest.fixture
def family(small_models, tmp_path):
    return shutil.copytree(small_models, tmp_path / "family")


@pytest.fixture
def small(family):
    return write_small(family, family / "small", "../target")


def test_it_says_what_a_model_with_its_own_says(family, small):
    assert torch.equal(logits_of(small), logits_of(family / "target"))
    assert load_tokenizer(small).get_vocab() == load_tokenizer(family / "target").get_vocab()
    assert load_eagle_head(family / "eagle-target", load_model(small)).embed_tokens is not None


@pytest.mark.parametrize("method", ["round-to-nearest", "calibrated"])
def test_a_quantized_one_still_borrows(family, small, tmp_path, method):
    quantize_model(small, "w4a16-g128", tmp_path / "elsewhere/deep/out", method=method, progress=False)
    quantize_model(family / "target", "w4a16-g128", tmp_path / "whole", method=method, progress=False)
    out = tmp_path / "elsewhere/deep/out"
    stored = {name for file in out.glob("*.safetensors") for name in load_file(file)}
    assert "embed_tokens.weight" not in stored
    assert "norm.weight" in stored
    assert torch.equal(logits_of(out), logits_of(tmp_path / "whole"))


def test_a_rotated_one_has_its_own(family, small, tmp_path):
    quantize_model(small, "w4a16-g128-rot", tmp_path / "out", method="round-to-nearest", progress=False)
    assert "ends_of" not in json.loads((tmp_path / "out/config.json").read_text())
    quantize_model(family / "target", "w4a16-g128-rot", tmp_path / "whole", method="round-to-nearest", progress=False)
    assert torch.equal(logits_of(tmp_path / "out"), logits_of(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("../nowhere", "and there is no such model: put it there, or correct the name"),
        (7, "which is no name: give a directory, a hub id or a packaged model's name"),
        ("", "which is no name"),
        ("../small", "which borrows them itself: name the model that has them"),
    ],
)
def test_what_cannot_be_borrowed_is_one_sentence(family, small, named, says):
    other = write_small(family, family / "other", named)
    with pytest.raises(SpecquantError, match=says) as error:
        load_model(other)
    assert str(other) in str(error.value)
    assert "\n" not in str(error.value)


def test_of_a_rotated_model_nothing_is_borrowed(family, tmp_path):
    quantize_model(family / "target", "w4a16-g128-rot", family / "rotated", method="round-to-nearest", progress=False)
    with pytest.raises(SpecquantError, match=r"was rotated, and .* shares its embedding from before"):
        open_checkpoint(write_small(family, family / "other", "../rotated"))
