"""SpecMQuant's W4A16 checkpoints: AutoGPTQ's, joined and in Marlin's order."""

import hashlib

import pytest
import torch

from tests.models.formats.one_matrix import OneMatrix
from tests.models.formats.packing import example_codes, pack_specmquant

OUTPUTS, INPUTS = 64, 256
CODES = example_codes(OUTPUTS, INPUTS)
SCALES = (torch.arange(OUTPUTS * 2).reshape(OUTPUTS, 2) % 7 + 1).half() / 64
CONFIG = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": True, "static_groups": True}


@pytest.fixture
def matrix(tmp_path):
    return OneMatrix(tmp_path, OUTPUTS, INPUTS, CONFIG, pack_specmquant(CODES, SCALES))


def weight(scales=SCALES):
    return (torch.from_numpy(CODES) - 8).float() * scales.float().repeat_interleave(INPUTS // scales.shape[1], dim=1)


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        (SCALES, "34bd32431f916bb2ec337f2068a30e8032ef67faf4acf28b50de8f27007b26ad"),
        (SCALES[:, :1], "073b920a6893c915c1cc72752b110917710522ae9daa0a169188a88368490067"),
    ],
)
def test_what_specmquant_writes_is_what_the_tests_read(scales, expected):
    """The digests are of what vLLM's reference of gptq_marlin_repack and its marlin_permute_scales make of these
    numbers: SpecMQuant's converter calls the former, and has a copy of the latter."""
    tensors = pack_specmquant(CODES, scales)
    digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors.values()))
    assert digest.hexdigest() == expected


def test_a_joined_matrix_is_read(matrix):
    assert torch.equal(matrix.load(module="qkv_proj", fused=True).dequantize(), weight())


def test_scales_per_channel_are_read(matrix):
    tensors = pack_specmquant(CODES, SCALES[:, :1])
    loaded = matrix.load(tensors, module="qkv_proj", fused=True, group_size=-1)
    assert torch.equal(loaded.dequantize(), weight(SCALES[:, :1]))


def test_the_config_is_checked_as_autogptqs(matrix):
    options = {"module": "qkv_proj", "fused": True}
    matrix.refused("quantization_config: sym is False", sym=False, **options)
    matrix.refused(
        "quantization_config: static_groups is False; what can be loaded is True", static_groups=False, **options
    )
    assert torch.equal(matrix.load(desc_act=False, static_groups=False, **options).dequantize(), weight())
    matrix.quantization = {name: value for name, value in CONFIG.items() if name != "sym"}
    matrix.refused("quantization_config: sym is missing", **options)
    matrix.quantization = CONFIG
    matrix.refused(r"scales has shape \(2, 64\) where config.json asks for \(1, 64\)", group_size=-1, **options)
    matrix.refused("has no tensor .*qkv_proj.scales", {"qweight": matrix.tensors["qweight"]}, **options)
