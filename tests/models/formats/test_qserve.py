import hashlib

import pytest
import torch

from tests.models.formats.one_matrix import OneMatrix
from tests.models.formats.packing import example_codes, pack_qserve, pack_qserve_groups

OUTPUTS, INPUTS = 64, 256
CODES = example_codes(OUTPUTS, INPUTS)
SCALES = (torch.arange(OUTPUTS * 2).reshape(OUTPUTS, 2)[:, 0] % 7 + 1).half() / 64
ZEROS = torch.from_numpy(example_codes(OUTPUTS, 1))[:, 0]
GROUP_ZEROS = torch.from_numpy(example_codes(OUTPUTS, 2))
STEPS = torch.arange(OUTPUTS * 2).reshape(OUTPUTS, 2) % 8 + 1
CONFIG = {"quant_method": "qoq", "wbits": 4, "group_size": -1}


@pytest.fixture
def per_channel(tmp_path):
    return OneMatrix(tmp_path, OUTPUTS, INPUTS, None, pack_qserve(CODES, SCALES, ZEROS))


@pytest.fixture
def per_group(tmp_path):
    return OneMatrix(tmp_path, OUTPUTS, INPUTS, None, pack_qserve_groups(CODES, SCALES, STEPS, GROUP_ZEROS))


@pytest.fixture
def w8a8(tmp_path):
    tensors = {"weight": (torch.from_numpy(CODES) * 17 - 128).to(torch.int8), "dequant_scale": SCALES}
    return OneMatrix(tmp_path, OUTPUTS, INPUTS, None, tensors)


def weight():
    return (torch.from_numpy(CODES) - ZEROS[:, None]) * SCALES[:, None].float()


def group_integers():
    codes = torch.from_numpy(CODES).unflatten(1, (2, 128))
    return ((codes - GROUP_ZEROS[..., None]) * STEPS[..., None]).flatten(1)


def digest(tensors):
    return hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors.values())).hexdigest()


def test_what_qserve_writes_is_what_the_tests_read(per_channel, per_group):
    """The digests are of what QServe's W4A8OF16LinearDynamicInputScale.from_linear makes of these numbers, run without
    its CUDA kernels."""
    assert list(per_channel.tensors) == ["qweight", "s1_scales", "s1_szeros"]
    assert digest(per_channel.tensors) == "5f0b52e50d9c667f926bf82fded45216b56254bcd9ef87d0aaf2ae966e74d401"
    assert list(per_group.tensors) == ["qweight", "s1_scales", "s2_scales", "s2_zeros"]
    assert digest(per_group.tensors) == "db7c62b76b6db5fe01c65ba795ebca5c49a027854d517f5f1506308e861a24ff"


def test_codes_scales_and_zero_points_per_channel_are_read(per_channel):
    assert torch.equal(per_channel.load().dequantize(), weight())


def test_scales_of_which_zero_points_were_rounded_are_read(per_channel):
    """fp16 cannot hold most products of a scale and a zero point."""
    scales = torch.linspace(1e-4, 0.3, OUTPUTS).half()
    expected = (torch.from_numpy(CODES) - ZEROS[:, None]) * scales[:, None].float()
    assert torch.equal(per_channel.load(pack_qserve(CODES, scales, ZEROS)).dequantize(), expected)


def test_the_product_per_group_multiplies_the_int8_weights_that_qserves_kernel_does(per_group):
    loaded = per_group.load()
    assert torch.equal(loaded.operand(torch.float32), group_integers().float())
    assert torch.equal(loaded.dequantize(), group_integers() * SCALES[:, None].float())


def test_int8_weights_are_read(w8a8):
    assert torch.equal(w8a8.load().dequantize(), w8a8.tensors["weight"] * SCALES[:, None].float())


def test_a_config_that_names_the_format_is_read(per_channel, per_group):
    per_channel.quantization = per_group.quantization = CONFIG
    assert torch.equal(per_channel.load().dequantize(), weight())
    assert torch.equal(per_group.load(group_size=128).dequantize(), group_integers() * SCALES[:, None].float())
    per_group.refused("quantization_config: wbits is 8", wbits=8)
    per_group.refused("quantization_config: group_size is 64", group_size=64)
    per_group.refused("has no tensor .*o_proj.s1_szeros")
    per_channel.refused("has no tensor .*o_proj.s2_scales", group_size=128)


def test_joined_matrices_are_what_their_parts_are(per_group):
    """SpecMQuant joins gate and up along the outputs, tensor by tensor."""
    per_group.outputs *= 2
    parts = [per_group.tensors, per_group.tensors | {"qweight": per_group.tensors["qweight"].flip(0)}]
    joined = {name: torch.cat([part[name] for part in parts], dim=0 if name == "qweight" else -1) for name in parts[0]}
    loaded = per_group.load(parts=parts, module="gate_up_proj")
    assert torch.equal(loaded.operand(torch.float32)[:OUTPUTS], group_integers().float())
    assert torch.equal(
        per_group.load(parts=[joined], module="gate_up_proj", fused=True).dequantize(), loaded.dequantize()
    )


def test_zero_points_that_are_no_whole_steps_are_refused(per_channel, per_group):
    says = "holds zero points that are no whole numbers of steps, 0 to 15: quantize with zero_point PreScale"
    tensors = per_channel.tensors
    per_channel.refused(f"o_proj: s1_szeros {says}", tensors | {"s1_szeros": tensors["s1_szeros"] + SCALES / 2})
    per_channel.refused(f"o_proj: s1_szeros {says}", tensors | {"s1_szeros": -tensors["s1_szeros"]})
    per_channel.refused(f"o_proj: s1_szeros {says}", tensors | {"s1_scales": torch.zeros_like(SCALES)})
    tensors = per_group.tensors
    per_group.refused(f"o_proj: s2_zeros {says}", tensors | {"s2_zeros": tensors["s2_zeros"] + 1})


def test_weights_that_leave_int8_are_refused(per_group):
    far = pack_qserve_groups(CODES, SCALES, torch.full_like(STEPS, 10), torch.zeros_like(GROUP_ZEROS))
    per_group.refused("o_proj: s2_scales and s2_zeros make weights that leave int8", far)
    none = per_group.tensors | {"s2_scales": torch.zeros_like(per_group.tensors["s2_scales"])}
    per_group.refused("o_proj: s2_scales holds scales that are not above 0", none)


@pytest.mark.parametrize("name", ["qweight", "s1_scales", "s2_scales", "s2_zeros"])
def test_tensors_that_are_missing_or_of_a_wrong_kind_are_refused(per_group, name):
    tensors = per_group.tensors
    if name != "s1_scales":  # these say which format it is
        per_group.quantization = CONFIG | {"group_size": 128}
        per_group.refused(f"has no tensor .*o_proj.{name}", {key: tensors[key] for key in tensors if key != name})
    per_group.refused(f"o_proj: {name} holds torch.float64", tensors | {name: tensors[name].double()})
    per_group.refused(rf"o_proj.{name} has shape", tensors | {name: tensors[name][..., :32]})
