from fractions import Fraction

import numpy as np
import pytest
import torch

from specquant.kernels.activations import quantize_per_token


def test_codes_and_scales_are_correctly_rounded():
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).half()
    codes, scales = quantize_per_token(x)
    assert codes.dtype == scales.dtype == torch.float32
    for row, row_codes, scale in zip(x, codes, scales, strict=True):
        largest = max(abs(Fraction(v)) for v in row.tolist())
        # numpy rounds the exact quotient to float32 by itself: one division, correctly rounded.
        expected_scale = np.float32(float(largest)) / np.float32(127)
        assert scale.item() == expected_scale
        for value, code in zip(row.tolist(), row_codes.tolist(), strict=True):
            assert code == round(float(np.float32(value) / expected_scale))  # Python rounds half to even


def test_half_rounds_to_even():
    codes, _ = quantize_per_token(torch.tensor([[127.0, 0.5, 1.5, -0.5, -1.5, -2.5]]))
    assert codes.tolist() == [[127, 0, 2, 0, -2, -2]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_codes_never_exceed_127(dtype):
    generator = torch.Generator().manual_seed(1)
    for exponent in (-20, -7, 0, 7, 14):
        x = (torch.randn(200, 32, generator=generator, dtype=torch.float64) * 2.0**exponent / 8).to(dtype)
        codes, scales = quantize_per_token(x)
        assert codes.abs().max() == 127
        assert scales.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_rows_of_zeros_and_of_subnormal_numbers_are_zero_and_do_not_disturb_others():
    x = torch.tensor([[0.0, 0.0], [1e-44, -1e-44], [1.0, -0.5]])
    codes, scales = quantize_per_token(x)
    assert codes.tolist() == [[0, 0], [0, 0], [127, -64]]
    assert scales.isfinite().all()
    assert (scales > 0).all()


@pytest.mark.bits
def test_a_row_does_not_depend_on_the_others():
    x = torch.randn(7, 48)
    codes, scales = quantize_per_token(x)
    for i in range(7):
        alone = quantize_per_token(x[i : i + 1])
        assert torch.equal(alone[0][0], codes[i])
        assert torch.equal(alone[1][0], scales[i])
