"""What `specquant export` writes: read by transformers itself, and against packing written down from the formats."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from specquant.cli import main
from specquant.errors import SpecquantError
from specquant.models import checkpoint
from specquant.models.checkpoint import Checkpoint
from specquant.models.export import export_model
from specquant.models.loading import load_model, load_tokenizer
from specquant.models.quantize import quantize_model
from tests.family import write_random
from tests.models.conftest import TARGET
from tests.models.formats import packing


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


@pytest.mark.parametrize("scheme", ["w4a16-g128", "w4a16-g128-asym", "w8a8", "fp8"])
def test_of_a_bfloat16_model_transformers_rounds_nothing(tmp_path, scheme):
    """With the dtype left alone it takes that of config.json, and holds scales in it, too."""
    shape = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 96}
    sizes = {"vocab_size": 270, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    config = LlamaConfig(**shape, **sizes, bos_token_id=None, eos_token_id=None, tie_word_embeddings=False)
    write_random(config, tmp_path / "model", torch.bfloat16)
    assert json.loads((tmp_path / "model/config.json").read_text())["dtype"] == "bfloat16"
    quantize_model(tmp_path / "model", scheme, tmp_path / "ours", method="round-to-nearest", progress=False)
    export_model(tmp_path / "ours", "compressed-tensors", tmp_path / "out")
    written = Checkpoint(tmp_path / "out")
    theirs, ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), load_model(tmp_path / "ours")
    assert theirs.dtype == (torch.float32 if scheme == "fp8" else torch.float16)
    for name, tensor in (*theirs.named_parameters(), *theirs.named_buffers()):
        if name.endswith(("_scale", "norm.weight", "embed_tokens.weight", "lm_head.weight")):
            assert torch.equal(tensor, written.read(name).to(tensor.dtype)), name
            assert written.read(name).dtype in (tensor.dtype, torch.float16), name
    tokens = torch.arange(20) * 7
    with torch.inference_mode():
        found = theirs(tokens[None]).logits[0].float()
    expected = logits(ours, tokens[None])
    # float16's rounding; for int8 also compressed-tensors' other grid of activations
    limit = {"fp8": 1e-5, "w8a8": 0.06}.get(scheme, 4e-3)
    assert (found - expected).abs().max() < limit * expected.abs().max()
    weight = theirs.model.layers[1].mlp.down_proj.weight
    assert torch.equal(weight, ours.layers[1].down_proj.dequantize().to(weight.dtype))


def test_a_model_that_lacks_a_tensor_is_not_exported(native, tmp_path):
    directory = shutil.copytree(native("w8a8"), tmp_path / "damaged")
    (directory / "model.safetensors.index.json").unlink()
    file = directory / "model-00002-of-00006.safetensors"
    save_file({name: t for name, t in load_file(file).items() if not name.endswith("down_proj.scales")}, file)
    with pytest.raises(SpecquantError, match=r"it has no tensor layers\.1\.down_proj\.scales"):
        export_model(directory, "compressed-tensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
