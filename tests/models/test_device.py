"""Which dtype models compute in by default, and that decoding is lossless in it on models deep enough to need it."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from specquant.cli import main
from specquant.decoding.models import tiny_models
from specquant.measure import replay, verify_cost
from specquant.models.device import default_dtype, dtype_name, dtype_parameters
from specquant.models.llama import causal_mask
from specquant.models.loading import load_model
from specquant.models.synthetic import synthetic_model
from specquant.quant import SCHEMES
from specquant.training.tokenizer import train_tokenizer
from tests.family import TEXT, VOCABULARY

EIGHT_BIT_ACTIVATIONS = [name for name, scheme in SCHEMES.items() if scheme.activation_bits == 8]


def deep_config(hidden_size: int) -> LlamaConfig:
    """SmolLM2-135M's depth, and at 576 its layers; but few tokens and positions."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=hidden_size // 3 * 8,
        num_hidden_layers=30,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 192,
        head_dim=64,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=None,
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_default_is_16_bits_on_a_gpu_and_float64_for_8_bit_activations_on_a_cpu(scheme):
    expected = torch.float64 if scheme in EIGHT_BIT_ACTIVATIONS else torch.float32
    assert default_dtype("cpu", scheme) == default_dtype(torch.device("cpu"), SCHEMES[scheme]) == expected
    assert default_dtype("cuda", scheme) == torch.float16


def test_tables_name_what_each_scheme_computes_in():
    assert dtype_parameters("cuda") == {"dtype": "float16"}
    assert dtype_parameters("cpu") == {"dtype": "float32", "dtype_of_8_bit_activations": "float64"}
    assert set(dtype_parameters("cpu", "bfloat16").values()) == {"bfloat16"}


def test_a_model_computes_in_its_default_unless_a_dtype_is_given(small_models):
    target = small_models / "target"
    assert load_model(target).dtype == torch.float32
    assert load_model(target, "w8a8").dtype == torch.float64
    assert load_model(target, "w8a8", torch.float32).dtype == torch.float32


def test_all_models_of_a_decoder_compute_in_the_targets_default_unless_a_dtype_is_given(small_models):
    for scheme, given, expected in (
        (None, None, torch.float32),
        ("w4a16-g128", None, torch.float32),
        ("w8a8", None, torch.float64),
        ("w8a8", torch.float32, torch.float32),
    ):
        models = tiny_models(small_models, scheme=scheme, dtype=given)
        inner = models.speculator("hierarchical").drafter
        assert models.dtype == models.target.dtype == expected
        assert inner.model.dtype == inner.drafter.head.dtype == models.eagle_target.dtype == expected


@pytest.mark.parametrize(("scheme", "hidden_size"), [("w8a8", 576), ("fp8", 192)])
def test_a_row_among_others_is_the_row_alone(scheme, hidden_size):
    """In float32 the logits here move by 0.1, where a code has moved by a step."""
    model = synthetic_model(deep_config(hidden_size), scheme, 64, default_dtype("cpu", scheme), "cpu")
    tokens, cache = torch.arange(40) * 37 % VOCABULARY, model.new_cache(64)
    model.prefill(tokens[:16], cache)
    together = model.logits(model(tokens[16:], torch.arange(24), cache, causal_mask(24, "cpu")))
    moved = []
    for row, token in enumerate(tokens[16:28]):
        alone = model.logits(model(token[None], torch.tensor([0]), cache, causal_mask(1, "cpu")))
        moved.append((alone[0] - together[row]).abs().max().item())
        cache.confirm(1)
    assert max(moved) < 1e-3


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A directory of a deep model with random weights, whose greedy text does not repeat itself at once."""
    path = tmp_path_factory.mktemp("models") / "deep"
    torch.manual_seed(0)
    model = LlamaForCausalLM(deep_config(192))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                weight.normal_(std=0.3 if "embed" in name else weight.shape[1] ** -0.5)
    model.half().save_pretrained(path)
    train_tokenizer([TEXT], VOCABULARY, 256).save_pretrained(path)
    return path


@pytest.mark.parametrize("prompt", ["7 plus 5 makes", "and 9 times 3"])
def test_generate_is_lossless_with_8_bit_activations(deep, capsys, prompt):
    """The model drafts for itself in fp16, so that drafts of many lengths are accepted."""
    command = ["generate", "--model", str(deep), "--scheme", "w8a8", "--device", "cpu", "--prompt", prompt]
    written = []
    for method in ("autoregressive", "vanilla"):
        options = ["--method", method, "--intermediate", str(deep), "--max-new-tokens", "48", "--json"]
        assert main([*command, *options]) == 0
        written.append(json.loads(capsys.readouterr().out))
    assert written[1]["token_ids"] == written[0]["token_ids"]
    assert len(set(written[1]["accepted_lengths"])) > 2


def test_what_is_timed_computes_in_its_schemes_default_unless_a_dtype_is_given(small_models):
    about = {"model": str(small_models / "target"), "schemes": ("fp16", "w8a8"), "weights": "synthetic"}
    for given, expected in ((None, ("float32", "float64")), ("float32", ("float32", "float32"))):
        parameters = verify_cost.Parameters(**about, processes=1, device="cpu", dtype=given)
        units = parameters.units()
        assert [unit["scheme"] for unit in units] == ["fp16", "w8a8"]
        assert tuple(dtype_name(parameters.load(unit).dtype) for unit in units) == expected
        same = parameters.same()
        assert (same["dtype"], same["dtype_of_8_bit_activations"]) == expected


@pytest.mark.parametrize("given", [None, "float32"])
def test_replays_compute_in_the_targets_default_unless_a_dtype_is_given(small_models, monkeypatch, given):
    made = {}
    monkeypatch.setattr(replay, "SyntheticModels", lambda *names, **options: made.update({names[2]: options["dtype"]}))
    monkeypatch.setattr(replay, "replay_plans", lambda *arguments: [])
    parameters = replay.Parameters(str(small_models / "target"), schemes=("fp16", "w8a8"), device="cpu", dtype=given)
    assert len(list(replay.run(parameters, parameters.units()))) == 2 * parameters.processes
    assert made == {"fp16": torch.float32, "w8a8": torch.float32 if given else torch.float64}
    assert parameters.same()["dtype_of_8_bit_activations"] == (given or "float64")
