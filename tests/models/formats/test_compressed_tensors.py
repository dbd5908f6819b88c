import copy

import pytest
import torch

from tests.models.formats.one_matrix import OneMatrix
from tests.models.formats.packing import compressed_config, example_codes, pack_compressed_int4

OUTPUTS, INPUTS = 64, 256
CODES = example_codes(OUTPUTS, INPUTS)
ZEROS = example_codes(OUTPUTS, 2)
SCALES = (torch.arange(OUTPUTS * 2).reshape(OUTPUTS, 2) % 7 + 1).half() / 64
INTEGERS = (torch.from_numpy(CODES) * 17 - 128).to(torch.int8)  # -128 to 127
W8A8 = {"weight": INTEGERS, "weight_scale": SCALES[:, :1]}


@pytest.fixture
def w4a16(tmp_path):
    return OneMatrix(tmp_path, OUTPUTS, INPUTS, compressed_config(), pack_compressed_int4(CODES, SCALES))


@pytest.fixture
def w8a8(tmp_path):
    return OneMatrix(tmp_path, OUTPUTS, INPUTS, compressed_config(8, group_size=None), W8A8)


def weight(scales=SCALES, zeros=8):
    """What the definition says: scale * (code - zero), for numbers per group."""
    scales = scales.float().repeat_interleave(INPUTS // scales.shape[1], dim=1)
    if not isinstance(zeros, int):
        zeros = torch.from_numpy(zeros).repeat_interleave(128, dim=1)
    return scales * (torch.from_numpy(CODES) - zeros)


def changed(config, value, *path):
    """The configuration with another value at that place."""
    config = copy.deepcopy(config)
    section = config
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    return config


def write(config, weight, scales, zeros=None):
    """What compressed-tensors' own compressor makes of a float weight."""
    writer = pytest.importorskip("compressed_tensors")
    scheme = writer.quantization.QuantizationScheme(**config["config_groups"]["group_0"])
    compressor = writer.compressors.BaseCompressor.get_value_from_registry(config["format"])
    state = {"weight": weight, "weight_scale": scales}
    if zeros is not None:
        state["weight_zero_point"] = zeros
    return compressor.compress(state, scheme)


def test_what_compressed_tensors_writes_is_read(w4a16, tmp_path):
    written = write(w4a16.quantization, weight(), SCALES)
    assert {name: tensor.tolist() for name, tensor in written.items()} == {
        name: tensor.tolist() for name, tensor in w4a16.tensors.items()
    }
    assert torch.equal(w4a16.load(written).dequantize(), weight())


def test_what_compressed_tensors_writes_with_zero_points_is_read(tmp_path):
    config = compressed_config(symmetric=False)
    zeros = torch.from_numpy(ZEROS - 8).to(torch.int8)
    written = write(config, weight(zeros=ZEROS), SCALES, zeros)
    ours = pack_compressed_int4(CODES, SCALES, ZEROS)
    assert torch.equal(written["weight_zero_point"], ours["weight_zero_point"])
    assert torch.equal(written["weight_packed"], ours["weight_packed"])
    matrix = OneMatrix(tmp_path, OUTPUTS, INPUTS, config, written)
    assert torch.equal(matrix.load().dequantize(), weight(zeros=ZEROS))


def test_what_compressed_tensors_writes_in_8_bits_is_read(w8a8):
    expected = INTEGERS * SCALES[:, :1].float()
    written = write(w8a8.quantization, expected, SCALES[:, :1])
    assert torch.equal(written["weight"], INTEGERS)
    assert torch.equal(w8a8.load(written).dequantize(), expected)


def test_what_compressed_tensors_writes_in_fp8_is_read(tmp_path):
    config = compressed_config(8, group_size=None, type="float")
    numbers = (torch.from_numpy(CODES) - 7.5).to(torch.float8_e4m3fn)
    written = write(config, numbers.float() * SCALES[:, :1].float(), SCALES[:, :1])
    assert torch.equal(written["weight"].float(), numbers.float())
    matrix = OneMatrix(tmp_path, OUTPUTS, INPUTS, config, written)
    assert torch.equal(matrix.load().dequantize(), numbers.float() * SCALES[:, :1].float())
    static = changed(config, False, *ACTIVATIONS, "dynamic")
    OneMatrix(tmp_path, OUTPUTS, INPUTS, static, written).refused("input_activations.dynamic is False")
    damaged = written["weight"].clone()
    damaged.view(torch.uint8)[3, 7] = 0x7F
    matrix.refused("o_proj: weight holds NaN", written | {"weight": damaged})


def test_one_scale_per_channel_becomes_that_of_all_its_groups(tmp_path):
    tensors = pack_compressed_int4(CODES, SCALES[:, :1])
    matrix = OneMatrix(tmp_path, OUTPUTS, INPUTS, compressed_config(group_size=None), tensors)
    assert torch.equal(matrix.load().dequantize(), weight(SCALES[:, :1]))


def test_one_scale_for_a_whole_matrix_is_that_of_all_channels(w8a8):
    w8a8.quantization = changed(w8a8.quantization, "tensor", "config_groups", "group_0", "weights", "strategy")
    loaded = w8a8.load(W8A8 | {"weight_scale": SCALES[0, :1]})
    assert torch.equal(loaded.dequantize(), INTEGERS * SCALES[0, 0].float())


def test_parts_lie_one_below_the_other(w4a16, w8a8):
    parts = [pack_compressed_int4(CODES[rows], SCALES[rows]) for rows in (slice(0, 32), slice(32, 64))]
    assert torch.equal(w4a16.load(parts=parts, module="gate_up_proj").dequantize(), weight())
    parts = [{name: tensor[rows] for name, tensor in W8A8.items()} for rows in (slice(0, 32), slice(32, 64))]
    loaded = w8a8.load(parts=parts, module="gate_up_proj")
    assert torch.equal(loaded.dequantize(), INTEGERS * SCALES[:, :1].float())


WEIGHTS = ("config_groups", "group_0", "weights")
ACTIVATIONS = ("config_groups", "group_0", "input_activations")


@pytest.mark.parametrize(
    ("value", "path", "match"),
    [
        (3, (*WEIGHTS, "num_bits"), r"config_groups.group_0.weights.num_bits is 3; what can be loaded is 4"),
        (64, (*WEIGHTS, "group_size"), r"weights.group_size is 64; what can be loaded is 128"),
        ("group", (*WEIGHTS, "actorder"), "weights.actorder is 'group'"),
        ("float", (*WEIGHTS, "type"), "weights.type is 'float'"),
        ("block", (*WEIGHTS, "strategy"), "weights.strategy is 'block'; what can be loaded is 'group' or 'channel'"),
        (None, (*WEIGHTS, "symmetric"), "weights.symmetric is None"),
        ({"num_bits": 8}, ACTIVATIONS, "input_activations are quantized"),
        (["re:.*mlp.*"], ("config_groups", "group_0", "targets"), r"targets is \['re:"),
        ({}, ("config_groups",), "config_groups has not one group"),
        ("marlin-24", ("format",), "format is 'marlin-24'; what can be loaded is 'pack-quantized', 'int-q"),
        ("calibration", ("quantization_status",), "quantization_status is 'calibration'"),
        ({"num_bits": 8}, ("kv_cache_scheme",), "kv_cache_scheme is"),
        ({"config_groups": {"R1": {}}}, ("transform_config",), "transform_config is"),
    ],
)
def test_what_cannot_be_loaded_is_refused_by_its_field(w4a16, value, path, match):
    w4a16.quantization = changed(w4a16.quantization, value, *path)
    w4a16.refused(f"quantization_config: .*{match}")


@pytest.mark.parametrize(
    ("value", "path", "match"),
    [
        (4, (*WEIGHTS, "num_bits"), "weights.num_bits is 4; what can be loaded is 8"),
        (False, (*WEIGHTS, "symmetric"), "weights.symmetric is False"),
        (False, (*ACTIVATIONS, "dynamic"), "input_activations.dynamic is False"),
        (False, (*ACTIVATIONS, "symmetric"), "input_activations.symmetric is False"),
        ("tensor", (*ACTIVATIONS, "strategy"), "input_activations.strategy is 'tensor'; what can be loaded is 'token'"),
        (None, ACTIVATIONS, "input_activations.num_bits is missing"),
    ],
)
def test_other_w8a8_is_refused_by_its_field(w8a8, value, path, match):
    w8a8.quantization = changed(w8a8.quantization, value, *path)
    w8a8.refused(f"quantization_config: config_groups.group_0.{match}")


def test_a_config_that_contradicts_the_tensors_is_refused(w4a16):
    per_channel = changed(w4a16.quantization, "channel", *WEIGHTS, "strategy")
    asymmetric = changed(w4a16.quantization, False, *WEIGHTS, "symmetric")
    for config, match in (
        (per_channel, r"weight_scale has shape \(64, 2\) where config.json asks for \(64, 1\)"),
        (asymmetric, "has no tensor .*weight_zero_point"),
    ):
        w4a16.quantization = config
        w4a16.refused(match)
    w4a16.quantization = compressed_config()
    zeros = pack_compressed_int4(CODES, SCALES, ZEROS)
    w4a16.refused("does not call for: .*weight_zero_point", zeros)
    w4a16.refused(r"weight_shape says \[64, 8\]", w4a16.tensors | {"weight_shape": torch.tensor([64, 8])})


@pytest.mark.parametrize("value", [0.0, -1.0, torch.nan])
def test_scales_that_are_not_above_0_are_refused(w4a16, w8a8, value):
    for matrix, scheme in ((w4a16, "w4a16-g128"), (w8a8, "w8a8")):
        scales = matrix.tensors["weight_scale"].clone()
        scales[3, 0] = value
        says = f"o_proj has scales or zero points that {scheme} cannot hold"
        matrix.refused(says, matrix.tensors | {"weight_scale": scales})


@pytest.mark.parametrize(
    ("value", "path", "match"),
    [
        ([], ("config_groups",), "config_groups has not one group"),
        (3, ("config_groups", "group_0"), "config_groups has not one group"),
        ([1], WEIGHTS, r"config_groups.group_0.weights is \[1\]; it must be a JSON object"),
        ("x", ACTIVATIONS, "config_groups.group_0.input_activations is 'x'; it must be a JSON object"),
        (["int-quantized"], ("format",), r"format is \['int-quantized'\]"),
        ([], ("quant_method",), r"quant_method is \[\]"),
        (True, (*WEIGHTS, "group_size"), "config_groups.group_0.weights.group_size is True"),
        (128 * 2**40, (*WEIGHTS, "group_size"), "config_groups.group_0.weights.group_size is 140737488355328"),
    ],
)
def test_fields_of_a_wrong_type_are_refused(w4a16, value, path, match):
    w4a16.quantization = changed(w4a16.quantization, value, *path)
    w4a16.refused(f"quantization_config: {match}")
