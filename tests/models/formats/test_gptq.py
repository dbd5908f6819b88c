import hashlib

import pytest
import torch

from tests.models.formats.one_matrix import OneMatrix
from tests.models.formats.packing import example_codes, pack_gptq, words

OUTPUTS, INPUTS = 64, 256
CODES = example_codes(OUTPUTS, INPUTS)
SCALES = (torch.arange(OUTPUTS * 2).reshape(OUTPUTS, 2) % 7 + 1).half() / 64
CONFIG = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}


@pytest.fixture
def matrix(tmp_path):
    return OneMatrix(tmp_path, OUTPUTS, INPUTS, CONFIG, pack_gptq(CODES, SCALES))


def weight(scales=SCALES):
    """What the definition says: (code - 8) * scale."""
    return (torch.from_numpy(CODES) - 8).float() * scales.float().repeat_interleave(INPUTS // scales.shape[1], dim=1)


def test_what_autogptq_writes_is_what_the_tests_read():
    """The digest is of the buffers that AutoGPTQ 0.7.1's QuantLinear.pack made of these codes and scales."""
    tensors = pack_gptq(CODES, SCALES)
    assert list(tensors) == ["qweight", "qzeros", "scales", "g_idx"]
    digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors.values()))
    assert digest.hexdigest() == "56f5f3b06a676fcd6d262f30e5b5893bca1a9b21158a3a1e89eac159e73bec1c"


@pytest.mark.parametrize(("version", "name"), [(1, "gptq"), (2, "gptq_v2")])
def test_both_versions_are_read(matrix, version, name):
    tensors = pack_gptq(CODES, SCALES, version)
    assert torch.equal(matrix.load(tensors, checkpoint_format=name).dequantize(), weight())
    assert torch.equal(matrix.load(tensors, format=name).dequantize(), weight())


def test_without_a_version_it_is_the_first(matrix):
    assert torch.equal(matrix.load().dequantize(), weight())


@pytest.mark.parametrize("group_size", [-1, 256])
def test_one_scale_per_channel_becomes_that_of_all_its_groups(matrix, group_size):
    loaded = matrix.load(pack_gptq(CODES, SCALES[:, :1]), group_size=group_size)
    assert torch.equal(loaded.dequantize(), weight(SCALES[:, :1]))


def test_parts_lie_one_below_the_other(matrix):
    parts = [pack_gptq(CODES[rows], SCALES[rows]) for rows in (slice(0, 32), slice(32, 64))]
    assert torch.equal(matrix.load(parts=parts, module="gate_up_proj").dequantize(), weight())


def test_activation_order_with_static_groups_needs_nothing(matrix):
    assert torch.equal(matrix.load(desc_act=True).dequantize(), weight())
    per_channel = pack_gptq(CODES, SCALES[:, :1])
    loaded = matrix.load(per_channel, desc_act=True, group_size=-1)
    assert torch.equal(loaded.dequantize(), weight(SCALES[:, :1]))


def test_activation_order_that_moves_inputs_between_groups_is_refused(matrix):
    moved = matrix.tensors | {"g_idx": matrix.tensors["g_idx"].flip(0)}
    matrix.refused("o_proj: g_idx is not .* with desc_act true, quantize with static groups", moved, desc_act=True)


def test_groups_of_inputs_that_are_not_listed_must_be_consecutive(matrix):
    unlisted = {name: tensor for name, tensor in matrix.tensors.items() if name != "g_idx"}
    assert torch.equal(matrix.load(unlisted).dequantize(), weight())
    matrix.refused("has no tensor .*o_proj.g_idx", unlisted, desc_act=True)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"bits": 3}, "bits is 3; what can be loaded is 4"),
        ({"bits": 8}, "bits is 8"),
        ({"group_size": 64}, "group_size is 64; what can be loaded is 128, or -1"),
        ({"group_size": None}, "group_size is None"),
        ({"group_size": 384}, "group_size is 384, which does not divide 256 inputs"),
        ({"sym": False}, "sym is False; what can be loaded is True"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'; what can be loaded is 'gptq' or 'gptq_v2'"),
        ({"checkpoint_format": "gptq", "format": "gptq_v2"}, "checkpoint_format and format contradict each other"),
        ({"lm_head": True}, "lm_head is True"),
        ({"dynamic": {"-:.*down.*": {}}}, "dynamic is"),
        ({"quant_method": "hqq"}, "quant_method is 'hqq'; what can be loaded is specquant, gptq"),
        ({"quant_method": None}, "quant_method is None"),
    ],
)
def test_what_cannot_be_loaded_is_refused_by_its_field(matrix, fields, match):
    matrix.refused(f"quantization_config: {match}", **fields)


def test_zero_points_that_are_not_those_of_symmetric_weights_are_refused(matrix):
    second = pack_gptq(CODES, SCALES, version=2)
    matrix.refused("o_proj: qzeros holds 8 where symmetric weights .sym true. have 7", second)
    matrix.refused("qzeros holds 7 where .* have 8", checkpoint_format="gptq_v2")
    asymmetric = matrix.tensors | {"qzeros": words(CODES[:2, :OUTPUTS])}
    matrix.refused("sym or checkpoint_format in quantization_config is wrong", asymmetric)


@pytest.mark.parametrize("name", ["qweight", "scales", "qzeros"])
def test_tensors_that_are_missing_or_of_a_wrong_kind_are_refused(matrix, name):
    tensors = matrix.tensors
    matrix.refused(f"has no tensor .*o_proj.{name}", {key: tensors[key] for key in tensors if key != name})
    matrix.refused(f"o_proj: {name} holds torch.float64", tensors | {name: tensors[name].double()})
    matrix.refused(rf"o_proj.{name} has shape .* where config.json asks for", tensors | {name: tensors[name][:, :4]})


def test_a_group_size_that_the_tensors_do_not_have_is_refused(matrix):
    matrix.refused(r"qzeros has shape \(2, 8\) where config.json asks for \(1, 8\)", group_size=-1)


@pytest.mark.parametrize("value", [torch.inf, torch.nan, -1.0, 1e6, 0.0, -1e-9])
def test_scales_that_fp16_cannot_hold_are_refused(matrix, value):
    tensors = pack_gptq(CODES, SCALES.float())
    tensors["scales"][1, 5] = value
    matrix.refused("o_proj has scales or zero points that w4a16-g128 cannot hold", tensors)


def test_scales_in_bfloat16_are_read(matrix):
    assert torch.equal(matrix.load(pack_gptq(CODES, SCALES.bfloat16())).dequantize(), weight())


def test_biases_are_read_where_the_model_has_them(matrix):
    biases = torch.arange(OUTPUTS).half() / 8
    parts = [pack_gptq(CODES[rows], SCALES[rows]) | {"bias": biases[rows]} for rows in (slice(0, 32), slice(32, 64))]
    loaded = matrix.load(parts=parts, module="gate_up_proj", bias=True)
    x = torch.randn(3, INPUTS)
    assert torch.allclose(loaded(x), x @ weight().t() + biases.float(), atol=1e-4)
    matrix.refused("has no tensor .*o_proj.bias", bias=True)


def test_biases_of_zeros_are_none_and_others_are_refused(matrix):
    assert torch.equal(matrix.load(matrix.tensors | {"bias": torch.zeros(OUTPUTS)}).dequantize(), weight())
    matrix.refused("does not call for: .*o_proj.bias", matrix.tensors | {"bias": torch.ones(OUTPUTS)})
