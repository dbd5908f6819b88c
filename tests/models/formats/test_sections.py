"""Where older tools wrote what config.json's quantization_config says today."""

import json

import pytest

from specquant.errors import SpecquantError
from specquant.models.loading import load_model
from tests.models.formats import packing
from tests.models.formats.test_models import AWQ, EXACT, GPTQ, per_group, write

# As AutoGPTQ 0.4 and AutoAWQ 0.1 wrote them.
QUANTIZE_CONFIG = {
    "bits": 4,
    "group_size": 128,
    "damp_percent": 0.01,
    "desc_act": False,
    "static_groups": False,
    "sym": True,
    "true_sequential": True,
    "model_name_or_path": None,
    "model_file_base_name": "gptq_model-4bit-128g",
}
QUANT_CONFIG = {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}


def same(written, native_dir):
    ours, theirs = load_model(native_dir), load_model(written)
    assert theirs.scheme == ours.scheme
    for first, second in zip(ours.layers, theirs.layers, strict=True):
        assert (first.down_proj.integer_codes() == second.down_proj.integer_codes()).all()


def write_json(path, fields):
    path.write_text(json.dumps(fields))


def change_config(directory, **fields):
    write_json(directory / "config.json", json.loads((directory / "config.json").read_text()) | fields)


def test_autogptq_with_a_file_of_its_own(native, tmp_path):
    written = write(native("w4a16-g128"), tmp_path / "gptq", per_group(packing.pack_gptq), None)
    write_json(written / "quantize_config.json", QUANTIZE_CONFIG)
    (written / "model.safetensors").rename(written / "gptq_model-4bit-128g.safetensors")
    same(written, native("w4a16-g128"))
    write_json(written / "quantize_config.json", QUANTIZE_CONFIG | {"bits": 3})
    says = r"gptq/quantize_config\.json: quantization_config: bits is 3; what can be loaded is 4"
    with pytest.raises(SpecquantError, match=says):
        load_model(written)
    (written / "quantize_config.json").write_text("{")
    with pytest.raises(SpecquantError, match=r"quantize_config\.json is not JSON"):
        load_model(written)


def test_autoawq_with_a_file_of_its_own(native, tmp_path):
    scheme, pack, _ = EXACT["awq"]
    written = write(native(scheme), tmp_path / "awq", pack, None)
    write_json(written / "quant_config.json", QUANT_CONFIG)
    same(written, native(scheme))
    write_json(written / "quant_config.json", QUANT_CONFIG | {"w_bit": 8})
    with pytest.raises(SpecquantError, match="bits is 8"):
        load_model(written)


def test_what_is_said_twice_must_agree(native, tmp_path):
    written = write(native("w4a16-g128"), tmp_path / "gptq", per_group(packing.pack_gptq), GPTQ)
    write_json(written / "quantize_config.json", QUANTIZE_CONFIG)
    same(written, native("w4a16-g128"))
    write_json(written / "quantize_config.json", QUANTIZE_CONFIG | {"group_size": 64})
    with pytest.raises(SpecquantError, match=r"group_size is 128 in config\.json and 64 in quantize_config\.json"):
        load_model(written)
    change_config(written, quantization_config=AWQ)
    with pytest.raises(SpecquantError, match=r"quant_method is 'awq' in config\.json and 'gptq' in"):
        load_model(written)


@pytest.mark.parametrize("name", ["compressed-tensors-w4a16", "compressed-tensors-w8a8"])
def test_llm_compressors_older_field(native, tmp_path, name):
    scheme, pack, quantization = EXACT[name]
    written = write(native(scheme), tmp_path / "older", pack, None)
    older = quantization | {
        "quantization_status": "frozen",
        "quant_method": "sparseml",
        "global_compression_ratio": 1.9,
    }
    change_config(written, compression_config=older)
    same(written, native(scheme))
    del older["quant_method"]
    change_config(written, compression_config=older)
    same(written, native(scheme))
    change_config(written, compression_config=older | {"quantization_status": "calibration"})
    with pytest.raises(SpecquantError, match="quantization_status is 'calibration'"):
        load_model(written)
    change_config(written, compression_config="compressed")
    with pytest.raises(SpecquantError, match="is no JSON object"):
        load_model(written)


def test_the_first_name_of_plain_formats(native, tmp_path):
    scheme, pack, quantization = EXACT["compressed-tensors-w8a8"]
    named = quantization | {"format": "naive-quantized"}
    groups = {"group_0": {name: part for name, part in named["config_groups"]["group_0"].items() if name != "format"}}
    written = write(native(scheme), tmp_path / "naive", pack, named | {"config_groups": groups})
    same(written, native(scheme))
