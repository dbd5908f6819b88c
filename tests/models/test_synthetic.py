"""Random weights of true shapes: seeded, never zero, in each scheme's own form, and small enough for the device."""

import pytest
import torch
from transformers import LlamaConfig

from specquant.errors import SpecquantError
from specquant.models import synthetic
from specquant.models.llama import Llama
from specquant.models.synthetic import (
    SHAPES,
    NotEnoughMemory,
    bytes_read,
    code_shares,
    memory_needed,
    require_integer_codes,
    require_memory,
    synthetic_config,
    synthetic_head,
    synthetic_model,
)
from specquant.quant import SCHEMES, PackedLinear
from tests.family import small_llama

every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


@pytest.fixture
def config():
    return small_llama(num_hidden_layers=24)


def made(config, scheme, **options):
    return synthetic_model(config, scheme, 64, torch.float32, "cpu", **options)


@every_scheme
def test_activations_keep_their_size_through_all_layers(scheme, config):
    model = made(config, scheme)
    states = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _, inputs, outputs: states.append(sum(outputs)))
    logits = model.logits(model.prefill(torch.arange(48), model.new_cache(48)))
    sizes = torch.stack([state.pow(2).mean().sqrt() for state in states])
    assert len(sizes) == 24
    assert ((sizes > 0.5) & (sizes < 20)).all()  # each layer adds about as much as one embedding holds
    assert (sizes.diff() > 0).float().mean() > 0.5
    assert 0.5 < logits.std() < 2
    assert logits.isfinite().all()


@every_scheme
def test_weights_have_the_variance_of_a_layer_that_keeps_sizes(scheme, config):
    model = made(config, scheme)
    for layer in model.layers:
        for linear in (layer.qkv_proj, layer.o_proj, layer.gate_up_proj, layer.down_proj):
            weight = linear.dequantize()
            assert weight.std() * linear.in_features**0.5 == pytest.approx(1, rel=0.1)
            assert weight.mean().abs() < 0.05 * weight.std()
            assert (weight.std(dim=1) > 0).all()


@every_scheme
def test_a_seed_gives_the_same_model_again(scheme, config):
    config.num_hidden_layers = 1
    first, again, other = (made(config, scheme, seed=seed).state_dict() for seed in (1, 1, 2))
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        if not name.endswith(("zeros", "group_grids")):  # ranges are symmetric, and in QoQ relative to the channel's
            assert not torch.equal(tensor, other[name])


@every_scheme
def test_weights_are_as_large_as_the_skeleton_says(scheme, config):
    model = made(config, scheme)
    stored = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    unpacked = 0
    if scheme != "fp16":
        unpacked = sum(
            4 * part.in_features * part.out_features for part in model.modules() if isinstance(part, PackedLinear)
        )
    needed = memory_needed(config, scheme, 64, torch.float32, "cpu")
    assert needed.weights == stored + unpacked
    cache = model.new_cache(64)
    assert needed.cache == cache.keys.nbytes + cache.values.nbytes
    matrices = sum(part.nbytes for part in model.modules() if isinstance(part, PackedLinear))
    assert bytes_read(model, 64) == matrices + model.lm_head.weight.nbytes + needed.cache


@pytest.mark.parametrize(
    ("model", "scheme", "gigabytes"),
    [
        ("llama-3-8b", "fp16", 16.1),  # 8.03e9 parameters
        ("llama-3-8b", "w4a16-g128", 5.7),
        ("llama-3-70b", "fp16", 141.1),  # 70.6e9
        ("llama-3-70b", "w8a8", 72.7),
        ("llama-3-70b", "w4a16-g128", 39.5),
    ],
)
def test_the_named_shapes_are_the_published_ones(model, scheme, gigabytes):
    needed = memory_needed(synthetic_config(model), scheme, 512, torch.float16, "cuda")
    assert needed.weights / 1e9 == pytest.approx(gigabytes, abs=0.06)


def test_what_does_not_fit_is_refused_before_any_memory_is_taken(monkeypatch):
    monkeypatch.setattr(synthetic, "free_bytes", lambda device: 80 * 10**9)
    monkeypatch.setattr(Llama, "__init__", _only_on_meta(Llama.__init__))
    with pytest.raises(
        NotEnoughMemory, match=r"need 14\d\.\d GB \(141\.1 weights, .* 80\.0 GB are free on cuda"
    ) as error:
        synthetic_model(synthetic_config("llama-3-70b"), "fp16", 512)
    assert "\n" not in str(error.value)


def test_a_cpu_is_not_told_that_fewer_bits_would_help(monkeypatch):
    monkeypatch.setattr(synthetic, "free_bytes", lambda device: 10**9)
    with pytest.raises(NotEnoughMemory, match=r"weights, unpacked for a CPU, .* on cpu: choose a GPU, a smaller model"):
        require_memory(synthetic_config("llama-3-8b"), "w4a16-g128", 512, torch.float32, "cpu")
    with pytest.raises(NotEnoughMemory, match=r"weights, \d.* on cpu: choose fewer bits"):
        require_memory(synthetic_config("llama-3-8b"), "fp16", 512, torch.float32, "cpu")


def _only_on_meta(init):
    def checked(self, *arguments):
        assert torch.get_default_device().type == "meta"
        init(self, *arguments)

    return checked


def test_a_directory_gives_its_shapes(small_models):
    assert synthetic_config(small_models / "target").num_hidden_layers == 2
    with pytest.raises(SpecquantError, match="neither a model directory nor one of llama-3-8b, llama-3-70b"):
        synthetic_config("llama-9")


def test_every_shape_is_one_that_every_scheme_stores():
    for name in SHAPES:
        for scheme in SCHEMES:
            assert sum(memory_needed(synthetic_config(name), scheme, 512, torch.float16, "cuda")) > 1e9


def test_a_width_that_a_scheme_does_not_have_is_refused_by_its_field():
    config = LlamaConfig(**SHAPES["llama-3-8b"] | {"hidden_size": 568, "num_attention_heads": 8, "head_dim": 64})
    config.num_key_value_heads = 2
    says = "hidden_size 568 is not a multiple of 16; schemes that it fits: fp16, w8a8, fp8"
    with pytest.raises(SpecquantError, match=f"the model does not fit w4a16-g128: {says}"):
        memory_needed(config, "w4a16-g128", 64, torch.float16, "cpu")
    memory_needed(config, "w8a8", 64, torch.float16, "cpu")
    ends = Llama(LlamaConfig(**config.to_dict() | {"vocab_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}))
    with pytest.raises(SpecquantError, match=f"the EAGLE head does not fit w4a16-g128: {says}"):
        synthetic_head(ends.config, ends, "w4a16-g128")


def test_an_eagle_3_head_fuses_three_layers_and_drafts_a_part_of_the_vocabulary(config, monkeypatch):
    monkeypatch.setattr(synthetic, "EAGLE3_VOCABULARY", 100)
    model = made(config, "fp16")
    head = synthetic_head(config, model, feature_layers=(2, 12, 21))
    assert (head.feature_layers, head.embed_tokens) == ((2, 12, 21), model.embed_tokens)
    assert (head.fc.in_features, head.fc.out_features) == (3 * 128, 128)
    assert head.lm_head.out_features == 100
    assert head.vocabulary.tolist() == list(range(100))
    smaller = synthetic_head(config, model, "w4a16-g128", 64, feature_layers=(2, 12, 21))
    assert isinstance(smaller.lm_head, PackedLinear)
    assert smaller.vocabulary.tolist() == list(range(64))
    known = head.known(torch.randn(5, 3 * 128, generator=torch.Generator().manual_seed(0)))
    rows = torch.arange(5)
    outputs = head(rows, known, rows, head.new_cache(8), torch.ones(5, 5, dtype=torch.bool).tril())
    log_p, tokens = head.likeliest(outputs, 3)
    assert log_p.isfinite().all()
    assert tokens.max() < 100
    monkeypatch.setattr(synthetic, "free_bytes", lambda device: 10**5)
    with pytest.raises(NotEnoughMemory, match="an EAGLE head of 128 needs"):
        synthetic_head(config, model, feature_layers=(2, 12, 21))


with_integer_codes = pytest.mark.parametrize("scheme", [name for name in SCHEMES if name not in ("fp16", "fp8")])


def bell(width):
    distances = torch.arange(-synthetic.FARTHEST_CODE, synthetic.FARTHEST_CODE + 1, dtype=torch.float64)
    shares = torch.exp(-0.5 * (distances / width) ** 2) * (distances.abs() < (8 if width < 5 else 128))
    return shares / shares.sum()


@with_integer_codes
def test_codes_are_drawn_as_often_as_is_stated_and_the_variance_stays(scheme, config):
    wanted = bell(40.0 if SCHEMES[scheme].weight_bits == 8 else 2.0)
    drawn, uniform = made(config, scheme, codes=wanted), made(config, scheme)
    found = code_shares(drawn)
    assert (found - wanted).abs().max() < 0.005
    assert (code_shares(uniform) - wanted).abs().max() > 5 * (found - wanted).abs().max()
    layer = drawn.layers[0].gate_up_proj
    assert layer.dequantize().std() * layer.in_features**0.5 == pytest.approx(1, rel=0.15)


@with_integer_codes
def test_what_fills_up_a_short_last_group_is_no_code_of_the_model(scheme, config):
    """192 inputs are a group and a half. As codes, the zeros behind them would be 8 below the zero point."""
    config.hidden_size, config.intermediate_size = 192, 320
    shares = code_shares(made(config, scheme))
    there = shares[shares > 0]
    assert len(there) >= 15
    assert (there - there.mean()).abs().max() < 0.3 * there.mean()


@with_integer_codes
def test_uniform_codes_are_what_they_were_and_symmetric(scheme, config):
    shares = code_shares(made(config, scheme))
    there = shares[shares > 0]
    assert float(shares.sum()) == pytest.approx(1)
    assert len(there) >= 15
    assert (there - there.mean()).abs().max() < 0.3 * there.mean()


def test_schemes_without_integer_codes_are_refused(config):
    for scheme in ("fp16", "fp8"):
        with pytest.raises(SpecquantError, match=f"{scheme} has no integer codes"):
            require_integer_codes(scheme)
        with pytest.raises(SpecquantError, match=f"{scheme} has no integer codes"):
            code_shares(made(config, scheme))
