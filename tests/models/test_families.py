"""Every family and rope scaling against transformers' own model, on small random checkpoints that it wrote."""

import json
import shutil

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from specquant.decoding import Speculator, generate
from specquant.errors import SpecquantError
from specquant.models.config import load_config, longest_context
from specquant.models.loading import load_model, load_tokenizer
from specquant.models.quantize import quantize_model
from specquant.quant import SCHEMES
from tests.family import SMALL_SHAPE, VOCABULARY, write_random

CONTEXT_LENGTH = 96
SHORT, LONG = [1.0 + i / 16 for i in range(32)], [2.0 + i / 4 for i in range(32)]


def config_of(kind, **fields) -> PreTrainedConfig:
    shape = SMALL_SHAPE | {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT_LENGTH,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": False,
    }
    return kind(**shape | fields)


def rope(rope_type, **fields):
    return {"rope_type": rope_type, "rope_theta": 10000.0, **fields}


LLAMA_3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
LONGROPE = rope("longrope", short_factor=SHORT, long_factor=LONG, factor=3.0, original_max_position_embeddings=72)
MODELS = {
    "llama-2": config_of(LlamaConfig, num_key_value_heads=2),
    "llama-3": config_of(LlamaConfig, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
    "llama-3.1": config_of(LlamaConfig, rope_parameters=LLAMA_3),
    "llama-3.2": config_of(LlamaConfig, rope_parameters=LLAMA_3 | {"factor": 32.0}, tie_word_embeddings=True),
    "llama with biases": config_of(LlamaConfig, attention_bias=True, mlp_bias=True),
    "linear": config_of(LlamaConfig, rope_parameters=rope("linear", factor=2.5)),
    "dynamic": config_of(LlamaConfig, rope_parameters=rope("dynamic", factor=2.0)),
    "yarn": config_of(LlamaConfig, rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=24)),
    "longrope": config_of(LlamaConfig, rope_parameters=LONGROPE),
    "proportional": config_of(LlamaConfig, rope_parameters=rope("proportional", partial_rotary_factor=0.5)),
    "mistral": config_of(MistralConfig, sliding_window=None),
    "mistral with a window": config_of(MistralConfig, sliding_window=72),
    "qwen2": config_of(Qwen2Config, tie_word_embeddings=True),
    "qwen2.5 with yarn": config_of(
        Qwen2Config, rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=24)
    ),
    "qwen3": config_of(Qwen3Config, num_attention_heads=4, num_key_value_heads=2),
    "qwen3 with biases": config_of(Qwen3Config, attention_bias=True),
}
QUANTIZED = ["llama with biases", "mistral", "qwen2", "qwen3"]
TOKENS = torch.arange(70) * 7 % VOCABULARY


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Writes a model of MODELS once; its norms and biases are random, too."""
    root = tmp_path_factory.mktemp("families")

    def write(name, dtype=torch.float16):
        path = root / f"{name} {dtype}"
        if not path.exists():
            write_random(MODELS[name], path, dtype)
        return path

    return write


def logits_of(model, tokens=TOKENS):
    return model.logits(model.prefill(tokens, model.new_cache(len(tokens))))


@torch.inference_mode()
def expected_logits(path, tokens=TOKENS):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(tokens[None]).logits[0]


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_generated_tokens_are_those_of_transformers(directory, small_models, name):
    path = directory(name)
    model = load_model(path)
    expected = expected_logits(path)
    assert expected.abs().max() > 1
    assert (logits_of(model) - expected).abs().max() < 1e-4

    prompt = TOKENS[3:20].tolist()
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokens = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0)
    ours = generate(Speculator(model), load_tokenizer(small_models / "target"), prompt, max_new_tokens=12)
    assert ours.token_ids == tokens[0, len(prompt) :].tolist()


def test_end_tokens_are_those_of_the_generation_config(directory, small_models, tmp_path):
    """As in transformers; published chat models have more of them there than in config.json."""
    path = shutil.copytree(directory("llama-3.1"), tmp_path / "model")
    tokenizer, prompt = load_tokenizer(small_models / "target"), TOKENS[:9].tolist()
    free = generate(Speculator(load_model(path)), tokenizer, prompt, max_new_tokens=12).token_ids
    unused = next(token for token in range(VOCABULARY) if token not in free)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [unused, free[4]]}))
    ended = generate(Speculator(load_model(path)), tokenizer, prompt, max_new_tokens=12)
    assert ended.stopped_by == "end token"
    assert ended.token_ids == free[: free.index(free[4]) + 1]
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokens = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert tokens[0, len(prompt) :].tolist() == ended.token_ids
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [VOCABULARY]}))
    with pytest.raises(SpecquantError, match=r"generation_config\.json: eos_token_id is 270, which is no token"):
        load_model(path)
    (path / "generation_config.json").write_text("{")
    with pytest.raises(SpecquantError, match=r"generation_config\.json is not JSON"):
        load_model(path)


@pytest.mark.parametrize("name", ["llama-3.1", "qwen2"])
def test_bfloat16_weights(directory, name):
    path = directory(name, torch.bfloat16)
    assert (logits_of(load_model(path)) - expected_logits(path)).abs().max() < 1e-4


def test_weights_that_only_bfloat16_holds_are_refused(directory, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(directory("llama-3.1"), dtype=torch.bfloat16)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = 1e6
    model.save_pretrained(tmp_path)
    with pytest.raises(SpecquantError, match=r"layers\.1\.gate_up_proj\.weight holds infinities or NaN"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name != "fp16"])
def test_every_scheme_by_round_to_nearest(directory, tmp_path, name, scheme):
    path, original = directory(name), load_model(directory(name))
    if SCHEMES[scheme].rotated:
        quantize_model(path, scheme, tmp_path / "quantized", method="round-to-nearest", progress=False)
        model = load_model(tmp_path / "quantized")
    else:
        model = load_model(path, scheme)
    assert model.scheme.name == scheme
    expected = logits_of(original)
    error = ((logits_of(model) - expected).norm() / expected.norm()).item()
    int8 = SCHEMES[scheme].weight_bits == 8 and not SCHEMES[scheme].floating
    assert 0 < error < (0.05 if int8 else 0.5)

    for layer, unquantized in zip(model.layers, original.layers, strict=True):
        assert (layer.qkv_proj.bias is None) == (unquantized.qkv_proj.bias is None)
        if layer.qkv_proj.bias is not None:  # its outputs are not rotated
            assert layer.qkv_proj.bias.dtype == torch.float16
            assert torch.equal(layer.qkv_proj.bias, unquantized.qkv_proj.bias)
        if layer.query_norm is not None:
            assert torch.equal(layer.query_norm.weight, unquantized.query_norm.weight)
            assert torch.equal(layer.key_norm.weight, unquantized.key_norm.weight)


@pytest.mark.parametrize("name", QUANTIZED)
def test_rounding_while_loading_is_rounding_by_quantize(directory, tmp_path, name):
    quantize_model(directory(name), "w4a16-g128", tmp_path / "quantized", method="round-to-nearest", progress=False)
    loaded, written = load_model(directory(name), "w4a16-g128"), load_model(tmp_path / "quantized")
    for key, tensor in written.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


def test_longrope_takes_its_long_factors_where_the_context_is_longer_than_the_first_one(directory):
    path = directory("longrope")
    assert load_model(path).context_length == 72
    tokens = torch.arange(90) * 5 % VOCABULARY
    expected = expected_logits(path, tokens)
    assert (logits_of(load_model(path, context_length=96), tokens) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["mistral with a window", "qwen2 with a window"])
def test_a_context_beyond_the_sliding_window_is_refused(directory, tmp_path, name):
    path = directory(name.replace("qwen2 with a window", "qwen2"))
    if name.startswith("qwen2"):
        window = {"use_sliding_window": True, "sliding_window": 72, "max_window_layers": 1, "layer_types": None}
        (tmp_path / "config.json").write_text(json.dumps(json.loads((path / "config.json").read_text()) | window))
        (tmp_path / "model.safetensors").symlink_to(path / "model.safetensors")
        path = tmp_path
    assert load_model(path).context_length == 72
    assert load_model(path, context_length=32).context_length == 32
    with pytest.raises(SpecquantError, match=r"sliding window of 72 positions.*at most 72 instead of 73"):
        load_model(path, context_length=73)


def test_a_context_that_the_model_was_not_made_for_is_refused(directory):
    path = directory("llama-3.1")
    assert load_config(path).max_position_embeddings == CONTEXT_LENGTH
    for wanted, says in ((CONTEXT_LENGTH + 1, "made for 96 positions"), (0, "must be at least 1")):
        with pytest.raises(SpecquantError, match=says):
            load_model(path, context_length=wanted)


def test_tables_of_rotary_frequencies_that_old_checkpoints_hold_are_not_read(directory, tmp_path):
    from safetensors.torch import load_file, save_file

    path = directory("llama-2")
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(32)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((path / "config.json").read_bytes())
    assert torch.equal(logits_of(load_model(tmp_path)), logits_of(load_model(path)))


def test_longrope_as_phi_3_writes_it(directory, tmp_path):
    """original_max_position_embeddings at the top level: the context and the factors are those of transformers."""
    path = shutil.copytree(directory("longrope"), tmp_path / "model")
    fields = json.loads((path / "config.json").read_text())
    rope = fields.pop("rope_parameters")
    fields |= {"rope_theta": rope["rope_theta"], "original_max_position_embeddings": 72}
    fields["rope_scaling"] = {"type": "longrope", "short_factor": SHORT, "long_factor": LONG}
    (path / "config.json").write_text(json.dumps(fields))
    assert longest_context(load_config(path)) == 72
    assert (logits_of(load_model(path)) - expected_logits(path)).abs().max() < 1e-4
    tokens = torch.arange(90) * 5 % VOCABULARY
    expected = expected_logits(path, tokens)
    assert (logits_of(load_model(path, context_length=96), tokens) - expected).abs().max() < 1e-4
