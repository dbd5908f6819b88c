import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from specquant.errors import SpecquantError
from specquant.models import quantize
from specquant.models.loading import load_model, load_tokenizer
from specquant.models.quantize import calibration_sequences, quantize_layers, quantize_model, run_layer
from specquant.quant import SCHEMES, get_scheme
from specquant.training.tokenizer import train_tokenizer

TEXT = "\n".join(f"{a} plus {b} makes {a + b}, and {a} times {b} makes {a * b}." for a in range(40) for b in range(5))
LENGTH = 64
quantized_schemes = pytest.mark.parametrize("name", [name for name in SCHEMES if name != "fp16"])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A small model directory in fp16, random but with outlier channels, and a calibration text beside it."""
    path = tmp_path_factory.mktemp("source")
    tokenizer = train_tokenizer([TEXT], 300, LENGTH)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        vocab_size=len(tokenizer),
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_(1 + torch.rand_like(parameter))
            else:
                parameter.mul_(2)
                parameter[3] *= 8
    model.half().save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "text.txt").write_text(TEXT)
    return path


def logits_of(path_or_model, tokens=None):
    model = load_model(path_or_model) if not isinstance(path_or_model, torch.nn.Module) else path_or_model
    tokens = torch.arange(60) * 7 % 256 if tokens is None else tokens
    return model.logits(model.prefill(tokens, model.new_cache(len(tokens))))


@quantized_schemes
def test_a_quantized_directory_loads_again(source, tmp_path, name, monkeypatch):
    """And gives the logits of the model that was written, bit by bit."""
    written = []
    write = quantize.write_model
    monkeypatch.setattr(quantize, "write_model", lambda model, *rest: (written.append(model), write(model, *rest)))
    out = tmp_path / "nested" / name
    quantize_model(source, name, out, source / "text.txt", progress=False)

    loaded = load_model(out)
    assert loaded.scheme.name == name
    assert (loaded.feature_map is not None) == SCHEMES[name].rotated
    in_double = load_model(out, dtype=torch.float64)
    assert torch.equal(logits_of(in_double), logits_of(written[0]))
    assert load_tokenizer(out)("1 plus 1")["input_ids"] == load_tokenizer(source)("1 plus 1")["input_ids"]
    assert [path.name for path in out.parent.iterdir()] == [name]

    record = json.loads((out / "config.json").read_text())["quantization_config"]
    assert record["quant_method"] == "specquant"
    assert record["scheme"] == name
    assert record["rotated"] == SCHEMES[name].rotated
    assert record["calibration"]["text"] == "text.txt"
    sequences = calibration_sequences(source, source / "text.txt", LENGTH, 1024)
    assert record["calibration"]["tokens"] == sum(map(len, sequences))


@quantized_schemes
def test_calibration_beats_round_to_nearest(source, tmp_path, name):
    quantize_model(source, name, tmp_path / "calibrated", source / "text.txt", progress=False)
    quantize_model(source, name, tmp_path / "nearest", method="round-to-nearest", progress=False)
    assert "calibration" not in json.loads((tmp_path / "nearest/config.json").read_text())["quantization_config"]
    tokens = calibration_sequences(source, source / "text.txt", LENGTH, 1024)[0]
    expected = logits_of(source, tokens)
    calibrated, nearest = ((logits_of(tmp_path / d, tokens) - expected).norm() for d in ("calibrated", "nearest"))
    assert calibrated < nearest


def test_quantizing_again_gives_the_same_bytes(source, tmp_path):
    for name in ("first", "second"):
        quantize_model(source, "w4a8-qqq", tmp_path / name, source / "text.txt", progress=False)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second


def test_running_layer_by_layer_is_the_forward_pass(source):
    model = load_model(source)
    sequences = [torch.arange(LENGTH) * 3 % 256, torch.arange(20) * 5 % 256]
    visited = []
    states = [model.embed_tokens(tokens) for tokens in sequences]
    for layer in model.layers:
        states = run_layer(model, layer, states, lambda name, x: visited.append((name, tuple(x.shape))))
    for tokens, rows in zip(sequences, states, strict=True):
        assert torch.allclose(model.logits(model.norm(rows)), logits_of(model, tokens), atol=1e-4)
    sizes = {"qkv_proj": 128, "o_proj": 128, "gate_up_proj": 128, "down_proj": 256}
    assert visited == [(name, (LENGTH + 20, size)) for name, size in sizes.items()] * 2


def test_each_layer_is_calibrated_on_what_the_quantized_ones_before_it_give(source, monkeypatch):
    """What the second layer's Hessian is made of must come through the quantized first layer."""
    sequences = calibration_sequences(source, source / "text.txt", LENGTH, 1024)[:2]
    hessians = []
    original = quantize.quantize_linear
    monkeypatch.setattr(quantize, "quantize_linear", lambda s, w, h=None: (hessians.append(h), original(s, w, h))[1])
    model = load_model(source)
    quantize_layers(model, get_scheme("w4a16-g128"), sequences)
    states = [model.embed_tokens(tokens) for tokens in sequences]
    states = run_layer(model, model.layers[0], states, lambda *_: None)
    inputs = model.layers[1].input_norm(torch.cat(states))
    assert torch.allclose(hessians[4], inputs.t() @ inputs, rtol=1e-4, atol=1e-3)


def test_calibration_sequences_are_documents_that_begin_as_prompts_do(source, tmp_path):
    documents = ["1 plus 1 makes 2.\nGood.", TEXT]
    (tmp_path / "text.txt").write_text("\n\f\n".join(documents))
    first, *rest = calibration_sequences(source, tmp_path / "text.txt", LENGTH, 1024)
    tokenize = load_tokenizer(source)
    assert first.tolist() == tokenize(documents[0])["input_ids"]
    assert all(len(tokens) == LENGTH and tokens[0] == 0 for tokens in rest[:-1])
    content = [token for tokens in rest for token in tokens[1:].tolist()]
    assert content == tokenize(TEXT, add_special_tokens=False)["input_ids"][: len(content)]


def test_calibration_takes_only_the_beginning_of_a_long_text(source, tmp_path):
    (tmp_path / "long.txt").write_text(TEXT * 20)
    tokens = sum(map(len, calibration_sequences(source, tmp_path / "long.txt", LENGTH, 3000)))
    assert 3000 <= tokens < 3000 + LENGTH


@pytest.fixture
def refused(source, tmp_path):
    """Quantize with bad arguments: expects a sentence that matches, and nothing written."""

    def refuse(match, model_dir=source, scheme="w4a8-qqq", out=None, **arguments):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SpecquantError, match=match) as error:
            quantize_model(model_dir, scheme, out or tmp_path / "out", **arguments, progress=False)
        assert "\n" not in str(error.value)
        assert sorted(tmp_path.rglob("*")) == before

    return refuse


def test_bad_arguments_are_refused(refused, source, tmp_path):
    text = source / "text.txt"
    refused("unknown scheme 'w3'", scheme="w3")
    refused("choose another scheme", scheme="fp16")
    refused("unknown quantization method 'magic'", method="magic")
    refused("no config.json", model_dir=tmp_path / "missing")
    refused("cannot read calibration text", calibration=tmp_path / "missing.txt")
    (tmp_path / "short.txt").write_text("1 plus 1")
    refused(r"only \d+ tokens: give one of 32 or more", calibration=tmp_path / "short.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\xd8")
    refused("give a UTF-8 text file", calibration=tmp_path / "binary.txt")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    refused("exists and is not empty", out=tmp_path / "full", calibration=text)
    refused("cannot write", out=tmp_path / "full" / "file" / "out", calibration=text)


def test_a_quantized_model_is_not_quantized_again(refused, source, tmp_path):
    quantize_model(source, "w8a8", tmp_path / "once", source / "text.txt", progress=False)
    refused("already quantized to w8a8", model_dir=tmp_path / "once")


def test_a_full_disk_leaves_nothing(refused, source, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quantize, "save_file", fail)
    refused("No space left on device", calibration=source / "text.txt")


@pytest.mark.parametrize(
    ("size", "scheme", "match"), [(192, "w4a16-g128", "multiple of 128"), (896, "w4a16-g128-rot", "hidden size of 896")]
)
def test_sizes_that_a_scheme_cannot_store_are_refused(source, tmp_path, refused, size, scheme, match):
    config = LlamaConfig(**json.loads((source / "config.json").read_text()) | {"hidden_size": size})
    LlamaForCausalLM(config).half().save_pretrained(tmp_path / "odd")
    load_tokenizer(source).save_pretrained(tmp_path / "odd")
    refused(match, model_dir=tmp_path / "odd", scheme=scheme, calibration=source / "text.txt")
