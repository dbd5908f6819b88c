import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from specquant.errors import SpecquantError
from specquant.models import checkpoint, quantize
from specquant.models.llama import set_compute_dtype
from specquant.models.loading import load_model, load_tokenizer
from specquant.models.quantize import (
    Chunk,
    calibration_sequences,
    chunks_of,
    quantize_layer,
    quantize_model,
    run_layer,
)
from specquant.quant import SCHEMES, get_scheme
from specquant.training.tokenizer import train_tokenizer
from tests.family import small_llama

TEXT = "\n".join(f"{a} plus {b} makes {a + b}, and {a} times {b} makes {a * b}." for a in range(40) for b in range(5))
LENGTH = 64
quantized_schemes = pytest.mark.parametrize("name", [name for name in SCHEMES if name != "fp16"])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A small model directory in fp16, random but with outlier channels, and a calibration text beside it."""
    path = tmp_path_factory.mktemp("source")
    tokenizer = train_tokenizer([TEXT], 300, LENGTH)
    config = small_llama(
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


@pytest.mark.bits
@quantized_schemes
def test_a_quantized_directory_loads_again(source, tmp_path, name, monkeypatch):
    """And computes what the model that was written did, bit by bit."""
    last = []  # of each chunk, the states behind the last quantized layer
    run = quantize.run_layer
    monkeypatch.setattr(quantize, "run_layer", lambda *arguments: last.append(run(*arguments)) or last[-1])
    out = tmp_path / "nested" / name
    quantize_model(source, name, out, source / "text.txt", progress=False)

    loaded = load_model(out)
    assert loaded.scheme.name == name
    assert (loaded.feature_map is not None) == SCHEMES[name].rotated
    in_double = load_model(out, dtype=torch.float64)
    sequences = calibration_sequences(source, source / "text.txt", LENGTH, 1024)
    ((states, lengths),) = last[-1]
    assert lengths == [len(tokens) for tokens in sequences]
    chunks = chunks_of(sequences, in_double.embed_tokens.weight)  # the same rows together: bits depend on that
    for layer in in_double.layers:
        chunks = run_layer(in_double, layer, chunks, lambda *_: None)
    assert torch.equal(chunks[0].states, states)
    for tokens, rows in zip(sequences, states.split(lengths), strict=True):
        torch.testing.assert_close(logits_of(in_double, tokens), in_double.logits(in_double.norm(rows)))
    assert load_tokenizer(out)("1 plus 1")["input_ids"] == load_tokenizer(source)("1 plus 1")["input_ids"]
    assert [path.name for path in out.parent.iterdir()] == [name]

    record = json.loads((out / "config.json").read_text())["quantization_config"]
    assert record["quant_method"] == "specquant"
    assert record["scheme"] == name
    assert record["rotated"] == SCHEMES[name].rotated
    assert record["calibration"]["text"] == "text.txt"
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


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.bits
def test_quantizing_again_gives_the_same_bytes(source, tmp_path):
    for name in ("first", "second"):
        quantize_model(source, "w4a8-qqq", tmp_path / name, source / "text.txt", progress=False)
    assert files(tmp_path / "first") == files(tmp_path / "second")


# Of what the schemes write for a model of set weights; the rotated one depends on the order of sums.
WRITTEN = {
    "w8a8": "314420b97296f2e1",
    "w4a16-g128": "f75766eacc5dc67f",
    "w4a8-qqq": "8b9d4a3de720e711",
    "w4a8-qqq-g128": "93e281f5860ba174",
    "w4a8-qoq": "ceae99170aeb022a",
    "w4a8-qoq-g128": "47e291bdecb945b8",
    "fp8": "2602935e59e89d8d",
    "w4a8-fp8-g128": "852401377d8ab94a",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_changes_with_the_format_version_alone(source, tmp_path, name):
    """Copies of models are kept by it. Where this fails, raise `FORMAT_VERSION` and write the new digest down."""
    model = shutil.copytree(source, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    for number, (key, tensor) in enumerate(sorted(weights.items())):
        values = torch.arange(tensor.numel()) * (37 + 2 * number) % 1021 - 510
        weights[key] = (values / 1024).half().view(tensor.shape)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    quantize_model(model, name, tmp_path / "out", method="round-to-nearest", progress=False)
    digest = hashlib.sha256(str(quantize.FORMAT_VERSION).encode())
    for file in sorted((tmp_path / "out").glob("*.safetensors")):
        for key, tensor in sorted(load_file(file).items()):
            digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    assert digest.hexdigest()[:16] == WRITTEN[name]


def test_running_layer_by_layer_is_the_forward_pass(source, monkeypatch):
    model = load_model(source)
    sequences = [torch.arange(LENGTH) * 3 % 256, torch.arange(20) * 5 % 256]
    visited = []
    for most in (quantize.CHUNK_TOKENS, 1):  # all in one chunk; each sequence in its own
        monkeypatch.setattr(quantize, "CHUNK_TOKENS", most)
        chunks = [
            Chunk(chunk.states.float(), chunk.lengths) for chunk in chunks_of(sequences, model.embed_tokens.weight)
        ]
        assert [chunk.lengths for chunk in chunks] == ([[LENGTH, 20]] if most > 1 else [[LENGTH], [20]])
        visited.clear()
        for layer in model.layers:
            chunks = run_layer(
                model, layer, chunks, lambda name, xs: visited.append((name, [tuple(x.shape) for x in xs]))
            )
        states = torch.cat([chunk.states for chunk in chunks]).split([LENGTH, 20])
        for tokens, rows in zip(sequences, states, strict=True):
            assert torch.allclose(model.logits(model.norm(rows)), logits_of(model, tokens), atol=1e-4)
        rows = [LENGTH + 20] if most > 1 else [LENGTH, 20]
        sizes = {"qkv_proj": 128, "o_proj": 128, "gate_up_proj": 128, "down_proj": 256}
        assert visited == [(name, [(n, size) for n in rows]) for name, size in sizes.items()] * 2


@pytest.mark.bits
def test_each_layer_is_calibrated_on_what_the_quantized_ones_before_it_give(source, monkeypatch):
    """What the second layer's Hessian is made of must come through the quantized first layer."""
    sequences = calibration_sequences(source, source / "text.txt", LENGTH, 1024)[:2]
    hessians = []
    original = quantize.quantize_linear
    monkeypatch.setattr(quantize, "quantize_linear", lambda s, w, h=None: (hessians.append(h), original(s, w, h))[1])
    model = load_model(source)
    chunks = chunks_of(sequences, model.embed_tokens.weight)
    set_compute_dtype(model, torch.float64)
    for layer in model.layers:
        before = chunks
        chunks = quantize_layer(model, layer, get_scheme("w4a16-g128"), None, chunks)
    inputs = model.layers[1].input_norm(before[0].states)
    through_the_first = run_layer(
        model, model.layers[0], chunks_of(sequences, model.embed_tokens.weight), lambda *_: None
    )
    assert torch.equal(before[0].states, through_the_first[0].states)
    assert torch.equal(hessians[4], inputs.t() @ inputs)


def test_chunks_add_up_to_the_same_hessian(source, tmp_path, monkeypatch):
    """So codes are the same, but where sums in another order decide."""
    for most in (quantize.CHUNK_TOKENS, 1):
        monkeypatch.setattr(quantize, "CHUNK_TOKENS", most)
        quantize_model(source, "w4a8-qoq-g128", tmp_path / str(most), source / "text.txt", progress=False)
    one, many = (load_model(tmp_path / str(most)) for most in (8192, 1))
    for first, second in zip(one.layers, many.layers, strict=True):
        same = first.down_proj.integer_codes() == second.down_proj.integer_codes()
        assert same.float().mean() > 0.999


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
    refused("missing is not a model directory: nothing is there", model_dir=tmp_path / "missing")
    refused("cannot read calibration text", calibration_text=tmp_path / "missing.txt")
    (tmp_path / "short.txt").write_text("1 plus 1")
    refused(r"only \d+ tokens: give one of 32 or more", calibration_text=tmp_path / "short.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\xd8")
    refused("give a UTF-8 text file", calibration_text=tmp_path / "binary.txt")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    refused("exists and is not empty", out=tmp_path / "full", calibration_text=text)
    refused("cannot write", out=tmp_path / "full" / "file" / "out", calibration_text=text)


def test_a_quantized_model_is_not_quantized_again(refused, source, tmp_path):
    quantize_model(source, "w8a8", tmp_path / "once", source / "text.txt", progress=False)
    refused("already quantized to w8a8", model_dir=tmp_path / "once")


def test_a_full_disk_leaves_nothing(refused, source, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    refused("No space left on device", calibration_text=source / "text.txt")


@pytest.mark.parametrize(
    ("size", "scheme", "match"), [(184, "w4a16-g128", "multiple of 16"), (688, "w4a16-g128-rot", "hidden size of 688")]
)
def test_sizes_that_a_scheme_cannot_store_are_refused(source, tmp_path, refused, size, scheme, match):
    config = LlamaConfig(**json.loads((source / "config.json").read_text()) | {"hidden_size": size})
    LlamaForCausalLM(config).half().save_pretrained(tmp_path / "odd")
    load_tokenizer(source).save_pretrained(tmp_path / "odd")
    refused(match, model_dir=tmp_path / "odd", scheme=scheme, calibration_text=source / "text.txt")


@pytest.mark.parametrize(
    ("scheme", "buffer", "value"),
    [
        ("w8a8", "scales", 0.0),
        ("w8a8", "scales", -0.5),
        ("fp8", "scales", 0.0),
        ("w4a16-g128", "scales", -0.5),
        ("w4a16-g128-asym", "zeros", 16),
        ("w4a8-qqq", "scales", 0.0),
        ("w4a8-qqq-g128", "group_scales", -1.0),
        ("w4a8-qoq", "zeros", 200),
        ("w4a8-qoq-g128", "group_grids", 0),
    ],
)
def test_stored_scales_and_zero_points_that_are_none_are_refused(source, tmp_path, scheme, buffer, value):
    quantize_model(source, scheme, tmp_path / "out", method="round-to-nearest", progress=False)
    name, file = f"layers.0.down_proj.{buffer}", tmp_path / "out/model-00001-of-00003.safetensors"
    tensors = load_file(file)
    tensors[name].view(-1)[0] = value
    save_file(tensors, file)
    with pytest.raises(SpecquantError, match=r"layers\.0\.down_proj has scales that are not above 0, or zero points"):
        load_model(tmp_path / "out")
