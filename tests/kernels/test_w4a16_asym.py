"""Asymmetric 4-bit weights: the reference against the definition, and the launcher against the reference."""

from fractions import Fraction

import pytest
import torch

from specquant.kernels.int4 import pack_int4, pair_outputs
from specquant.kernels.w4a16_asym import w4a16_asym, w4a16_asym_triton, w4a16_asym_weight

OUTPUTS, INPUTS, GROUPS = 48, 256, 2


@pytest.fixture
def numbers():
    """Codes [out, in], scales and zero points [groups, out]."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (OUTPUTS, INPUTS), generator=generator)
    scales = (torch.rand(GROUPS, OUTPUTS, generator=generator) * 0.02).half()
    zeros = torch.randint(0, 16, (GROUPS, OUTPUTS), generator=generator, dtype=torch.uint8)
    zeros[:, :2] = torch.tensor([0, 15], dtype=torch.uint8)
    return codes, scales, zeros


def stored(codes, scales, zeros):
    return pack_int4(codes, 16), pair_outputs(scales), pair_outputs(zeros)


def test_the_reference_is_the_definition(numbers):
    codes, scales, zeros = numbers
    weight = [
        [(int(codes[o, i]) - int(zeros[i // 128, o])) * Fraction(scales[i // 128, o].item()) for i in range(INPUTS)]
        for o in range(OUTPUTS)
    ]
    assert w4a16_asym_weight(*stored(*numbers)).tolist() == [[float(value) for value in row] for row in weight]
    x = torch.randn(3, INPUTS, dtype=torch.float64)
    expected = torch.tensor(
        [
            [float(sum(Fraction(a) * w for a, w in zip(row, weights, strict=True))) for weights in weight]
            for row in x.tolist()
        ]
    )
    assert torch.allclose(w4a16_asym(x, *stored(*numbers)), expected.double(), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "inputs"), [(1, INPUTS), (17, INPUTS), (17, INPUTS - 28)])
def test_the_launcher_gives_what_the_reference_does(numbers, rows, inputs, dtype, device):
    """Also with fewer inputs than whole groups."""
    x = (torch.randn(rows, inputs, generator=torch.Generator().manual_seed(1)) + 0.5).to(dtype)
    matrix = stored(*numbers)
    y = w4a16_asym_triton(x.to(device), *(tensor.to(device) for tensor in matrix))
    assert y.dtype == dtype
    expected = w4a16_asym(x.double(), *matrix)
    error = (y.double().cpu() - expected).norm() / expected.norm()
    assert error < (6e-4 if dtype == torch.float16 else 6e-3)  # rounded to the dtype twice
