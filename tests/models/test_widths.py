"""Models whose widths are no multiples of 128: every scheme stores, rotates, calibrates, exports and runs them."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from specquant.errors import SpecquantError
from specquant.models.checkpoint import Checkpoint
from specquant.models.config import load_config
from specquant.models.export import export_model
from specquant.models.formats import FormatWeights
from specquant.models.formats.gptq import read_gptq
from specquant.models.loading import load_model, load_tokenizer
from specquant.models.quantize import quantize_model
from specquant.models.synthetic import synthetic_model
from specquant.models.transforms import rotate_ends, rotate_layer, unpack_layer
from specquant.quant import SCHEMES, empty_linear, get_scheme
from specquant.quant.hadamard import random_hadamard
from tests.family import TEXT, write_random

HIDDEN, INNER = 192, 320  # 1.5 and 2.5 groups; 192 = 16 * 12
TOKENS = torch.arange(60) * 7 % 270


def shape(**fields) -> LlamaConfig:
    sizes = {"vocab_size": 270, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 128}
    return LlamaConfig(**sizes | heads | {"tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 1} | fields)


@pytest.fixture(scope="module")
def narrow(small_models, tmp_path_factory):
    path = tmp_path_factory.mktemp("widths") / "narrow"
    write_random(shape(), path)
    load_tokenizer(small_models / "target").save_pretrained(path)
    (path / "text.txt").write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def quantized(narrow, tmp_path_factory):
    root = tmp_path_factory.mktemp("quantized")

    def make(scheme, method="calibrated"):
        out = root / f"{scheme}-{method}"
        if not out.exists():
            quantize_model(narrow, scheme, out, narrow / "text.txt", method, progress=False)
        return out

    return make


def logits(path, **options):
    model = load_model(path, dtype=torch.float64, **options)
    return model.logits(model.prefill(TOKENS, model.new_cache(64)))


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name != "fp16"])
def test_every_scheme_stores_and_runs_them(narrow, quantized, scheme):
    expected = logits(narrow)
    found = logits(quantized(scheme))
    limit = {"w8a8": 0.1, "fp8": 0.3}.get(scheme, 0.75)  # random weights magnify what rounding does; noise has 1.4
    assert (found - expected).norm() < limit * expected.norm()
    # one row at a time gives the same: what fills up the last group is seen by no pass
    model = load_model(quantized(scheme), dtype=torch.float64)
    cache = model.new_cache(64)
    one_by_one = torch.cat([model.logits(model.prefill(token[None], cache)) for token in TOKENS])
    assert (one_by_one - found).abs().max() < 1e-9 * expected.abs().max()


@pytest.mark.parametrize("scheme", ["w4a16-g128", "w8a8"])
def test_weights_are_rounded_as_they_are_read(narrow, quantized, scheme):
    expected = logits(quantized(scheme, "round-to-nearest"))
    assert (logits(narrow, scheme=scheme) - expected).abs().max() < 1e-9 * expected.abs().max()


@pytest.mark.parametrize("hidden", [192, 576])
def test_rotation_leaves_what_a_model_computes(tmp_path, hidden):
    """576 = 16 * 36, by Paley's second construction."""
    write_random(shape(hidden_size=hidden, num_hidden_layers=1), tmp_path)
    model = load_model(tmp_path, dtype=torch.float64)
    expected = model.logits(model.prefill(TOKENS, model.new_cache(64)))
    rotation = random_hadamard(hidden)
    unpack_layer(model.layers[0])
    for name in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"):
        getattr(model.layers[0], name).double()
    rotate_layer(model.layers[0], rotation)
    rotate_ends(model, rotation)
    found = model.logits(model.prefill(TOKENS, model.new_cache(64)))
    assert (found - expected).abs().max() < 1e-9 * expected.abs().max()


@pytest.mark.parametrize("scheme", ["w4a16-g128", "w4a16-g128-asym", "w8a8", "fp8"])
def test_transformers_loads_their_export(quantized, tmp_path, scheme):
    """In groups of 64, which other programs ask to divide every width: the short groups, and each other one twice."""
    export_model(quantized(scheme), "compressed-tensors", tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.inference_mode():
        found = theirs(TOKENS[None]).logits[0]
    expected = logits(quantized(scheme))
    assert (found - expected).abs().max() < (1e-5 if "a16" in scheme else 0.1) * expected.abs().max()
    ours = load_model(quantized(scheme)).layers[1]
    assert torch.equal(theirs.model.layers[1].mlp.down_proj.weight, ours.down_proj.dequantize())
    assert torch.equal(theirs.model.layers[1].self_attn.o_proj.weight, ours.o_proj.dequantize())


def test_gptqs_format_has_groups_of_64_of_the_same_weights(quantized, tmp_path):
    export_model(quantized("w4a16-g128"), "gptq", tmp_path / "out")
    written, ours = Checkpoint(tmp_path / "out"), load_model(quantized("w4a16-g128")).layers[0].down_proj
    name = "model.layers.0.mlp.down_proj"
    words, scales, groups = (written.read(f"{name}.{part}") for part in ("qweight", "scales", "g_idx"))
    codes = torch.stack([(words >> shift) & 15 for shift in range(0, 32, 4)], dim=1).flatten(0, 1)
    assert groups.tolist() == [column // 64 for column in range(INNER)]
    assert torch.equal(((codes - 8) * scales.float()[groups]).t(), ours.dequantize())


def test_widths_that_other_programs_have_no_groups_for_are_named(tmp_path):
    write_random(shape(intermediate_size=328), tmp_path / "model")
    quantize_model(tmp_path / "model", "w4a16-g128", tmp_path / "ours", method="round-to-nearest", progress=False)
    with pytest.raises(SpecquantError, match="intermediate_size 328 is not a multiple of 32"):
        export_model(tmp_path / "ours", "gptq", tmp_path / "out")


def test_a_width_that_no_format_of_others_packs_is_named(narrow):
    format = read_gptq({"bits": 4, "group_size": -1, "sym": True})
    weights = FormatWeights(Checkpoint(narrow), load_config(narrow), format)
    with pytest.raises(SpecquantError, match="down_proj has 328 inputs, no multiple of 32"):
        weights.linear_sources("layers.0.down_proj", empty_linear(get_scheme("w4a16-g128"), HIDDEN, 328))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_synthetic_models_of_such_widths_run(scheme):
    model = synthetic_model(shape(), scheme, 64, torch.float32, "cpu")
    features = model.prefill(TOKENS, model.new_cache(64))
    assert 0.3 < features.float().std() < 3
