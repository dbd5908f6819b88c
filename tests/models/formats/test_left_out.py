"""Checkpoints that left some matrices as they were, and say so in quantization_config."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from specquant.errors import SpecquantError
from specquant.models.export import export_model
from specquant.models.loading import load_model, require_memory, weight_bytes
from tests.models.conftest import TARGET

DOWN, QUERY = "model.layers.4.mlp.down_proj", "model.layers.2.self_attn.q_proj"
TOKENS = torch.arange(20) * 7


@pytest.fixture
def write(native, tmp_path):
    """Writes a scheme of the tiny target in a format, with some matrices as they were before quantization."""

    def write(matrices, format="compressed-tensors", scheme="w4a16-g128", **said):
        export_model(native(scheme), format, directory := tmp_path / "written")
        tensors, original = {}, load_file(TARGET / "model.safetensors")
        for file in directory.glob("*.safetensors"):
            tensors |= load_file(file)
            file.unlink()
        (directory / "model.safetensors.index.json").unlink()
        kept = {name: t for name, t in tensors.items() if name.rpartition(".")[0] not in matrices}
        kept |= {f"{name}.weight": original[f"{name}.weight"] for name in matrices}
        save_file(kept, directory / "model.safetensors", {"format": "pt"})
        config = json.loads((directory / "config.json").read_text())
        config["quantization_config"] |= said
        (directory / "config.json").write_text(json.dumps(config))
        return directory

    yield write
    shutil.rmtree(tmp_path / "written")


def logits_of(model):
    return model.logits(model.prefill(TOKENS, model.new_cache(len(TOKENS))))


@pytest.mark.parametrize("scheme", ["w4a16-g128", "w8a8", "fp8"])
@pytest.mark.parametrize("ignore", [["lm_head", DOWN], ["lm_head", "re:.*layers[.]4[.]mlp[.]down"]])
def test_a_matrix_that_llm_compressor_ignored_is_fp16_and_the_rest_is_not(native, write, scheme, ignore):
    directory = write([DOWN], scheme=scheme, ignore=ignore)
    model, whole = load_model(directory), load_model(native(scheme))
    original = load_model(TARGET).layers[4].down_proj.weight
    assert model.scheme.name == scheme
    assert torch.equal(model.layers[4].down_proj.weight, original)
    assert torch.equal(model.layers[3].down_proj.dequantize(), whole.layers[3].down_proj.dequantize())
    whole.layers[4].down_proj = load_model(TARGET).layers[4].down_proj
    assert torch.equal(logits_of(model), logits_of(whole))
    saved = whole.layers[3].down_proj.nbytes - original.nbytes
    assert (
        weight_bytes(model, torch.float16, "cuda")
        == weight_bytes(load_model(native(scheme)), torch.float16, "cuda") - saved
    )
    require_memory(model, torch.float32, "cpu", directory)


def test_it_is_the_model_that_transformers_loads(write):
    directory = write([DOWN], ignore=["lm_head", DOWN])
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)(TOKENS[None]).logits[0]
    assert (logits_of(load_model(directory)) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    "said", [["model.layers.4.mlp.down_proj"], ["layers.4.mlp.down"], ["lm_head", "layers.4.mlp.d"]]
)
def test_a_part_of_a_name_in_modules_to_not_convert(native, write, said):
    model = load_model(write([DOWN], "gptq", modules_to_not_convert=said))
    assert torch.equal(model.layers[4].down_proj.weight, load_model(TARGET).layers[4].down_proj.weight)
    assert model.layers[3].down_proj.group_size == 128


def test_joined_matrices_are_left_out_together(write):
    parts = [QUERY.replace("q_proj", f"{x}_proj") for x in "qkv"]
    model = load_model(write(parts, ignore=["lm_head", *parts]))
    assert torch.equal(model.layers[2].qkv_proj.weight, load_model(TARGET).layers[2].qkv_proj.weight)


def refused(directory, match):
    with pytest.raises(SpecquantError, match=match) as error:
        load_model(directory)
    assert str(directory) in str(error.value)


def test_one_of_joined_matrices_is_refused_by_field_and_layer(write):
    refused(
        write([QUERY], ignore=["lm_head", QUERY]), rf"ignore leaves {QUERY} as it was, and .*layers.2.*k_proj is qu"
    )


def test_what_is_left_out_and_not_said_is_refused(write):
    refused(write([DOWN]), rf"{DOWN} is not quantized, and neither ignore nor modules_to_not_convert .* says so")


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"ignore": 3}, "ignore is 3; it must be a list of names"),
        ({"ignore": ["lm_head", None]}, r"ignore is \['lm_head', None\]; it must be a list of names"),
        ({"ignore": ["re:("]}, "ignore holds a pattern that is none"),
        ({"modules_to_not_convert": {"a": 1}}, "modules_to_not_convert is {'a': 1}; it must be a list"),
        ({"modules_to_not_convert": ["visual"]}, "modules_to_not_convert is .'visual'.; no module is called so"),
    ],
)
def test_fields_that_name_nothing_are_refused(write, said, match):
    refused(write([], **said), f"quantization_config: {match}")


def test_sparsity_of_dense_weights_is_none(native, write):
    dense = {
        "format": "dense",
        "global_sparsity": 0.12,
        "sparsity_structure": "unstructured",
        "targets": [],
        "ignore": [],
    }
    assert torch.equal(
        logits_of(load_model(write([], sparsity_config=dense))), logits_of(load_model(native("w4a16-g128")))
    )


def test_other_sparsity_is_refused(write):
    sparse = {"format": "sparse-24-bitmask"}
    refused(
        write([], sparsity_config=sparse), "sparsity_config.format is 'sparse-24-bitmask'; what can be loaded is None"
    )
