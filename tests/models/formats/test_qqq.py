import hashlib

import numpy as np
import pytest
import torch

from tests.models.formats.one_matrix import OneMatrix
from tests.models.formats.packing import example_codes, pack_qqq, pack_qqq_groups

OUTPUTS, INPUTS = 64, 256
CODES = np.maximum(example_codes(OUTPUTS, INPUTS), 1)  # QQQ's signed codes are symmetric: -7 to 7
GROUP_CODES = example_codes(OUTPUTS, INPUTS)
GROUP_SCALES = (torch.arange(OUTPUTS * 2).reshape(OUTPUTS, 2) % 7 + 1).half() / 64
SCALES = GROUP_SCALES[:, 0]
CONFIG = {"quant_method": "qqq", "wbits": 4, "group_size": -1}
# What QQQ divides by: the scale of int8 for the largest weight of the channel.
LARGEST = (torch.from_numpy(GROUP_CODES) - 8).unflatten(1, (2, 128)).abs().amax(dim=2) * GROUP_SCALES.float()
CHANNEL_SCALES = LARGEST.amax(dim=1) / 127
STEPS = (GROUP_SCALES.float() / CHANNEL_SCALES[:, None]).half()


@pytest.fixture
def per_channel(tmp_path):
    return OneMatrix(tmp_path, OUTPUTS, INPUTS, CONFIG, pack_qqq(CODES, SCALES))


@pytest.fixture
def per_group(tmp_path):
    tensors = pack_qqq_groups(GROUP_CODES, CHANNEL_SCALES, STEPS)
    return OneMatrix(tmp_path, OUTPUTS, INPUTS, CONFIG | {"group_size": 128}, tensors)


def weight():
    return (torch.from_numpy(CODES) - 8) * SCALES[:, None].float()


def group_integers():
    steps = STEPS.float().repeat_interleave(128, dim=1)
    return ((torch.from_numpy(GROUP_CODES) - 8) * steps).round()


def digest(tensors):
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors.values())).hexdigest()


def test_what_qqq_writes_is_what_the_tests_read(per_channel, per_group):
    """The digests are of what QQQ's QuantLinear.pack makes of these numbers, run without its CUDA kernels."""
    assert list(per_channel.tensors) == list(per_group.tensors) == ["B", "s_channel", "s_group"]
    assert digest(per_channel.tensors) == "96f7fb6f1dd20d4918baaf715710a5b3a616b8ed6e4e7370b61d6541327d5512"
    assert digest(per_group.tensors) == "f5571b23f1f95a9fbf40908db503e3faa6ecffcbbf25dfc8ec1b292ebb18885e"


def test_codes_and_scales_per_channel_are_read(per_channel):
    loaded = per_channel.load()
    assert torch.equal(loaded.dequantize(), weight())
    without = {name: tensor for name, tensor in per_channel.tensors.items() if name != "s_group"}
    assert torch.equal(per_channel.load(without, wbits=4, sym=True).dequantize(), weight())


def test_the_product_per_group_multiplies_the_int8_weights_that_qqqs_kernel_does(per_group):
    loaded = per_group.load()
    assert torch.equal(loaded.operand(torch.float32), group_integers())
    # The channel's scale is float32 in the checkpoint and fp16 in ours.
    assert torch.allclose(loaded.dequantize(), group_integers() * CHANNEL_SCALES[:, None], rtol=2**-11, atol=0)


def test_joined_matrices_are_what_their_parts_are(per_channel, per_group):
    """SpecMQuant joins q, k and v, and gate and up, tensor by tensor along the outputs."""
    twice = {name: torch.cat((tensor, tensor), dim=-1) for name, tensor in per_group.tensors.items()}
    parts = [per_group.tensors, per_group.tensors]
    for matrix in (per_channel, per_group):
        matrix.outputs *= 2
    loaded = per_group.load(parts=parts, module="gate_up_proj")
    assert torch.equal(loaded.operand(torch.float32), torch.cat((group_integers(), group_integers())))
    joined = per_group.load(parts=[twice], module="gate_up_proj", fused=True)
    assert torch.equal(joined.dequantize(), loaded.dequantize())
    loaded = per_channel.load(parts=[per_channel.tensors] * 2, module="gate_up_proj")
    assert torch.equal(loaded.dequantize(), torch.cat((weight(), weight())))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"wbits": 8}, "wbits is 8; what can be loaded is 4"),
        ({"group_size": 64}, "group_size is 64; what can be loaded is -1 or 128"),
        ({"group_size": None}, "group_size is None"),
        ({"sym": False}, "sym is False"),
    ],
)
def test_what_cannot_be_loaded_is_refused_by_its_field(per_channel, fields, match):
    per_channel.refused(f"quantization_config: {match}", **fields)


def test_a_group_size_that_contradicts_the_tensors_is_refused(per_channel, per_group):
    per_group.refused(r"s_group has shape \(2, 64\) where config.json asks for \(0,\)", group_size=-1)
    per_channel.refused(r"s_group has shape \(0,\) where config.json asks for \(2, 64\)", group_size=128)


@pytest.mark.parametrize("name", ["B", "s_channel", "s_group"])
def test_tensors_that_are_missing_or_of_a_wrong_kind_are_refused(per_group, name):
    tensors = per_group.tensors
    per_group.refused(f"has no tensor .*o_proj.{name}", {key: tensors[key] for key in tensors if key != name})
    per_group.refused(f"o_proj: {name} holds torch.float64", tensors | {name: tensors[name].double()})
    per_group.refused(rf"o_proj.{name} has shape", tensors | {name: tensors[name][:, :32]})


def test_weights_that_leave_int8_are_refused(per_group):
    tensors = per_group.tensors
    per_group.refused("o_proj: s_group makes weights that leave int8", tensors | {"s_group": 2 * tensors["s_group"]})


def test_weights_that_gptqmodel_lets_leave_int8_come_back_to_it(per_group):
    """Its quantizer writes integers of up to 160, and the kernel that reads them saturates."""
    steps = (STEPS.float() * (160 / 127)).half()
    written = pack_qqq_groups(GROUP_CODES, CHANNEL_SCALES, steps)
    integers = ((torch.from_numpy(GROUP_CODES) - 8) * steps.float().repeat_interleave(128, dim=1)).round()
    assert integers.abs().max() > 150
    loaded = per_group.load(written)
    assert loaded.clamped
    assert torch.equal(loaded.operand(torch.float32), integers.clamp(-128, 127))
    assert torch.allclose(loaded.dequantize(), integers.clamp(-128, 127) * CHANNEL_SCALES[:, None], rtol=2**-11, atol=0)
    assert not per_group.load().clamped


def test_scales_below_0_are_refused(per_channel, per_group):
    says = "o_proj has scales or zero points that w4a8-qqq"
    per_channel.refused(says, per_channel.tensors | {"s_channel": -per_channel.tensors["s_channel"]})
    per_group.refused(says, per_group.tensors | {"s_group": -per_group.tensors["s_group"]})
    nothing = per_group.tensors | {"s_group": 0 * per_group.tensors["s_group"]}  # a group of zeros has such a scale
    assert not per_group.load(nothing).dequantize().any()
