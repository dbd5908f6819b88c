"""What `specquant export` writes: read by transformers itself, and against packing written down from the formats."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from specquant.cli import main
from specquant.errors import SpecquantError
from specquant.models import checkpoint
from specquant.models.checkpoint import Checkpoint
from specquant.models.export import export_model
from specquant.models.loading import load_model, load_tokenizer
from specquant.models.quantize import quantize_model
from specquant.paths import project_root
from tests.models.formats import packing

TARGET = project_root() / "data/tiny/target"


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """scheme -> the tiny target as we store it, rounded to nearest; made when it is asked for first."""
    directory = tmp_path_factory.mktemp("native")

    def quantized(scheme):
        if not (directory / scheme).is_dir():
            quantize_model(TARGET, scheme, directory / scheme, method="round-to-nearest", progress=False)
        return directory / scheme

    return quantized


@pytest.fixture(scope="module")
def prompt():
    return load_tokenizer(TARGET)("Question: A farmer has 12 cows.\nAnswer: def f(x):", return_tensors="pt")[
        "input_ids"
    ]


def logits(model, tokens):
    return model.logits(model.prefill(tokens[0], model.new_cache(64)))


@pytest.mark.parametrize("scheme", ["w4a16-g128", "w4a16-g128-asym", "w8a8", "fp8"])
def test_transformers_loads_it(native, tmp_path, prompt, scheme):
    """With 16-bit activations the logits are ours but for the order of sums. With 8 bits the weights are the same, but
    a token's codes may differ: compressed-tensors takes 127.5 for its largest int8 where we take 127, and a different
    last bit of an activation can make another e4m3 of it."""
    export_model(native(scheme), "compressed-tensors", tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.inference_mode():
        found = theirs(prompt).logits[0]
    ours = load_model(native(scheme))
    expected = logits(ours, prompt)
    assert (found - expected).abs().max() < (1e-5 if "a16" in scheme else 0.03) * expected.abs().max()
    weight = theirs.model.layers[3].mlp.down_proj.weight
    assert torch.equal(weight, ours.layers[3].down_proj.dequantize())
    assert (found.argmax(dim=-1) == expected.argmax(dim=-1)).float().mean() > 0.9
    assert theirs.lm_head.weight.dtype == torch.float32
    assert load_tokenizer(tmp_path / "out")("1 plus 1")["input_ids"] == load_tokenizer(TARGET)("1 plus 1")["input_ids"]


@pytest.mark.parametrize(
    ("scheme", "format"),
    [
        ("w4a16-g128", "gptq"),
        ("w4a16-g128", "compressed-tensors"),
        ("w8a8", "compressed-tensors"),
        ("fp8", "compressed-tensors"),
    ],
)
def test_read_again_it_is_the_same_model(native, tmp_path, prompt, scheme, format):
    export_model(native(scheme), format, tmp_path / "out")
    assert torch.equal(logits(load_model(tmp_path / "out"), prompt), logits(load_model(native(scheme)), prompt))


@pytest.mark.parametrize(
    ("format", "pack"), [("gptq", packing.pack_gptq), ("compressed-tensors", packing.pack_compressed_int4)]
)
def test_every_matrix_is_packed_as_the_format_defines_it(native, tmp_path, format, pack):
    export_model(native("w4a16-g128"), format, tmp_path / "out")
    written = Checkpoint(tmp_path / "out")
    ours = load_model(native("w4a16-g128")).layers[2]
    for linear, names in (
        (ours.qkv_proj, {"self_attn.q_proj": 384, "self_attn.k_proj": 128, "self_attn.v_proj": 128}),
        (ours.o_proj, {"self_attn.o_proj": 384}),
        (ours.gate_up_proj, {"mlp.gate_proj": 1024, "mlp.up_proj": 1024}),
        (ours.down_proj, {"mlp.down_proj": 384}),
    ):
        codes, steps = linear.integer_codes().numpy(), linear.grid().expand((linear.out_features, linear.groups)).step
        first = 0
        for name, rows in names.items():
            tensors = pack(codes[first : first + rows], steps[first : first + rows].half())
            for suffix, tensor in tensors.items():
                assert torch.equal(written.read(f"model.layers.2.{name}.{suffix}"), tensor), (name, suffix)
            first += rows


def test_a_layer_is_a_file_and_the_index_lists_them(native, tmp_path):
    export_model(native("w4a16-g128"), "gptq", tmp_path / "out")
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    files = index["weight_map"]
    assert files["model.layers.0.mlp.up_proj.qweight"] == "model-00001-of-00006.safetensors"
    assert files["model.embed_tokens.weight"] == "model-00006-of-00006.safetensors"
    checkpoint = Checkpoint(tmp_path / "out")
    assert set(checkpoint.shapes) == set(files)
    assert index["metadata"]["total_size"] == sum(checkpoint.read(name).nbytes for name in files)


def test_the_command_writes_it(native, tmp_path):
    out = tmp_path / "nested/out"
    assert main(["export", str(native("w8a8")), "--format", "compressed-tensors", "--out", str(out)]) == 0
    assert json.loads((out / "config.json").read_text())["quantization_config"]["quant_method"] == "compressed-tensors"


@pytest.mark.parametrize(
    ("scheme", "format", "match"),
    [
        ("w4a16-g128", "gguf", "unknown format 'gguf': choose one of compressed-tensors, gptq"),
        ("w8a8", "gptq", "cannot be written as gptq: its scheme is w8a8, and the format has w4a16-g128"),
        (None, "gptq", "target is not quantized by us: make a directory of it by `specquant quantize"),
    ],
)
def test_what_cannot_be_exported_is_refused(native, tmp_path, scheme, format, match):
    with pytest.raises(SpecquantError, match=match):
        export_model(native(scheme) if scheme else TARGET, format, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_output_directory_is_never_overwritten_and_a_full_disk_leaves_nothing(native, tmp_path, monkeypatch):
    with pytest.raises(SpecquantError, match="exists and is not empty: choose another output directory"):
        export_model(native("w4a16-g128"), "gptq", native("w8a8"))

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(SpecquantError, match="No space left on device"):
        export_model(native("w4a16-g128"), "gptq", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
