import hashlib

import pytest
import torch

from tests.models.formats.one_matrix import OneMatrix
from tests.models.formats.packing import example_codes, pack_awq

OUTPUTS, INPUTS = 64, 256
CODES = example_codes(OUTPUTS, INPUTS)
ZEROS = example_codes(OUTPUTS, 2)
SCALES = (torch.arange(OUTPUTS * 2).reshape(OUTPUTS, 2) % 7 + 1).half() / 64
CONFIG = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}


@pytest.fixture
def matrix(tmp_path):
    return OneMatrix(tmp_path, OUTPUTS, INPUTS, CONFIG, pack_awq(CODES, SCALES, ZEROS))


def weight():
    """What the definition says: (code - zero) * scale."""
    zeros, scales = (values.repeat_interleave(128, dim=1) for values in (torch.from_numpy(ZEROS), SCALES.float()))
    return (torch.from_numpy(CODES) - zeros) * scales


def test_what_autoawq_writes_is_what_the_tests_read():
    """The digest is of the buffers that AutoAWQ 0.2.9's WQLinear_GEMM.from_linear made of these numbers."""
    tensors = pack_awq(CODES, SCALES, ZEROS)
    assert list(tensors) == ["qweight", "qzeros", "scales"]
    digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors.values()))
    assert digest.hexdigest() == "08d2adbbdd0bfb20bebd6e1252fd50e13be283e8332e53b5cab93c478913d441"


def test_codes_scales_and_zero_points_are_read(matrix):
    assert torch.equal(matrix.load().dequantize(), weight())
    assert torch.equal(matrix.load(modules_to_not_convert=["lm_head"], version="GEMM").dequantize(), weight())


def test_parts_lie_one_below_the_other(matrix):
    parts = [pack_awq(CODES[rows], SCALES[rows], ZEROS[rows]) for rows in (slice(0, 32), slice(32, 64))]
    assert torch.equal(matrix.load(parts=parts, module="gate_up_proj").dequantize(), weight())


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"bits": 8}, "bits is 8; what can be loaded is 4"),
        ({"group_size": 64}, "group_size is 64"),
        ({"zero_point": False}, "zero_point is False; what can be loaded is True"),
        ({"version": "gemv"}, "version is 'gemv'; what can be loaded is 'gemm'"),
        ({"modules_to_not_convert": ["visual"]}, r"modules_to_not_convert is \['visual'\]"),
    ],
)
def test_what_cannot_be_loaded_is_refused_by_its_field(matrix, fields, match):
    matrix.refused(f"quantization_config: {match}", **fields)


@pytest.mark.parametrize("name", ["qweight", "scales", "qzeros"])
def test_tensors_that_are_missing_or_of_a_wrong_kind_are_refused(matrix, name):
    tensors = matrix.tensors
    matrix.refused(f"has no tensor .*o_proj.{name}", {key: tensors[key] for key in tensors if key != name})
    matrix.refused(f"o_proj: {name} holds torch.float64", tensors | {name: tensors[name].double()})
    matrix.refused(rf"o_proj.{name} has shape .* where config.json asks for", tensors | {name: tensors[name][:, :4]})
