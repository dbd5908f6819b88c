"""Every reference product against the definition, computed once more with Python's integers and fractions."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from specquant.kernels import w4a8
from specquant.kernels.fp16 import fp16_product
from specquant.kernels.int4 import pack_int4, pair_outputs
from specquant.kernels.w4a16 import w4a16
from specquant.kernels.w8a8 import EXACT_CHUNK, integer_product, w8a8

ROWS, OUTPUTS, INPUTS, GROUP = 3, 16, 256, 128
GROUPS = INPUTS // GROUP


@pytest.fixture
def x(generator):
    return torch.randn(ROWS, INPUTS, generator=generator)


@pytest.fixture
def codes(generator):
    codes = torch.randint(0, 16, (OUTPUTS, INPUTS), generator=generator)
    codes[0], codes[1] = 0, 15
    return codes


@pytest.fixture
def scales(generator):
    return (torch.rand(OUTPUTS, generator=generator) * 0.02 + 0.001).half()


def quantized_tokens(x, number):
    """Codes (Python integers) and scales of each row, by the definition, in precision `number`."""
    for row in x.numpy().astype(number):
        scale = np.abs(row).max() / number(127)
        yield [round(float(value / scale)) for value in row], scale


def integer_reference(x, weight, scales, number=np.float32):
    """The definition: exact integer sums, rounded once to `number`, times the token's scale, times the channel's."""
    return np.array(
        [
            [
                number(sum(a * w for a, w in zip(token, row, strict=True))) * token_scale * number(scale)
                for row, scale in zip(weight, scales.tolist(), strict=True)
            ]
            for token, token_scale in quantized_tokens(x, number)
        ]
    )


def check_integer_product(product, x, weight, scales):
    """Bit by bit in float32, in float64, and rounded once more in float16."""
    for dtype, number in ((torch.float32, np.float32), (torch.float64, np.float64)):
        expected = torch.from_numpy(integer_reference(x, weight, scales, number))
        y = product(x.to(dtype))
        assert y.dtype == dtype
        assert torch.equal(y, expected)
    half = product(x.half())
    assert half.dtype == torch.float16
    assert torch.equal(half, torch.from_numpy(integer_reference(x.half(), weight, scales)).half())


def test_w8a8(x, scales, generator):
    weight = torch.randint(-127, 128, (OUTPUTS, INPUTS), generator=generator, dtype=torch.int8)
    check_integer_product(lambda x: w8a8(x, weight, scales), x, weight.tolist(), scales)


def test_qqq(x, codes, scales):
    weight = [[code - 8 for code in row] for row in codes.tolist()]
    check_integer_product(lambda x: w4a8.qqq(x, pack_int4(codes, 8), scales), x, weight, scales)


def test_qqq_group_rounds_the_exact_product_half_to_even(x, codes, scales, generator):
    group_scales = (torch.rand(OUTPUTS, GROUPS, generator=generator) * 15 + 0.3).half()
    group_scales[2], group_scales[3] = 0.5, 127 / 8  # every odd code is a tie; the largest that fits
    weight = [
        [round((code - 8) * Fraction(group_scales[o, i // GROUP].item())) for i, code in enumerate(row)]
        for o, row in enumerate(codes.tolist())
    ]
    assert max(abs(w) for row in weight for w in row) == 127
    stored = pair_outputs(group_scales.t())
    check_integer_product(lambda x: w4a8.qqq_group(x, pack_int4(codes, 8), scales, stored), x, weight, scales)


def test_qoq_group(x, codes, scales, generator):
    group_scales = torch.randint(1, 9, (OUTPUTS, GROUPS), generator=generator, dtype=torch.uint8)
    group_zeros = torch.randint(0, 16, (OUTPUTS, GROUPS), generator=generator, dtype=torch.uint8)
    weight = [
        [(code - int(group_zeros[o, i // GROUP])) * int(group_scales[o, i // GROUP]) for i, code in enumerate(row)]
        for o, row in enumerate(codes.tolist())
    ]
    grids = torch.cat((pair_outputs(group_scales.t()), pair_outputs(group_zeros.t())), dim=-1)
    check_integer_product(lambda x: w4a8.qoq_group(x, pack_int4(codes, 8), scales, grids), x, weight, scales)


def test_qoq(x, codes, scales):
    zeros = torch.arange(OUTPUTS, dtype=torch.uint8)
    weight = [[code - zero for code in row] for row, zero in zip(codes.tolist(), zeros.tolist(), strict=True)]
    check_integer_product(lambda x: w4a8.qoq(x, pack_int4(codes, 8), scales, zeros), x, weight, scales)


def test_w4a16_weights_are_exact(x, codes, generator):
    group_scales = (torch.rand(OUTPUTS, GROUPS, generator=generator) * 0.02).half()
    weight = [
        [(code - 8) * Fraction(group_scales[o, i // GROUP].item()) for i, code in enumerate(row)]
        for o, row in enumerate(codes.tolist())
    ]
    packed, stored_scales = pack_int4(codes, 16), pair_outputs(group_scales.t())
    # One input at a time: the product then shows a weight as it is.
    for i in (0, 1, 127, 128, 255):
        unit = torch.zeros(1, INPUTS)
        unit[0, i] = 1
        y = w4a16(unit, packed, stored_scales)
        assert [Fraction(value) for value in y[0].tolist()] == [row[i] for row in weight]
    exact = [[sum(Fraction(a) * w for a, w in zip(row, out, strict=True)) for out in weight] for row in x.tolist()]
    exact = torch.tensor([[float(value) for value in row] for row in exact], dtype=torch.float64)
    magnitude = exact.abs().max()
    assert (w4a16(x, packed, stored_scales) - exact).abs().max() < 1e-6 * magnitude
    assert (w4a16(x.double(), packed, stored_scales) - exact).abs().max() < 1e-14 * magnitude


@pytest.mark.bits
def test_fp16_computes_in_float32_on_a_cpu(generator):
    """There these sums are exact in any order."""
    x, weight = (torch.randint(-127, 128, (count, INPUTS), generator=generator) for count in (ROWS, OUTPUTS))
    y = fp16_product(x.half(), weight.float() / 128)
    assert torch.equal(y, (x @ weight.t() / 128).half())


@pytest.mark.bits
@pytest.mark.parametrize("inputs", [EXACT_CHUNK, 2 * EXACT_CHUNK + 384, 14336])
def test_integer_sums_are_exact_where_they_are_largest(inputs):
    a = torch.full((2, inputs), 127.0)
    a[1] = torch.randint(-127, 128, (inputs,)).float()
    b = torch.stack((torch.full((inputs,), 127.0), torch.full((inputs,), -127.0), a[1]))
    exact = a.long() @ b.long().t()
    # Above 2**24 an int32 sum is rounded when it becomes float32, once.
    assert torch.equal(integer_product(a, b), exact.to(torch.int32).float())
    assert torch.equal(integer_product(a.double(), b.double()), exact.double())


@pytest.mark.bits
@pytest.mark.parametrize("rows", [1, 3, 64, 1001])
def test_integer_products_of_a_row_do_not_depend_on_the_other_rows(codes, scales, rows):
    x = torch.randn(rows, INPUTS)
    y = w4a8.qqq(x, pack_int4(codes, 8), scales)
    zeros = torch.full((OUTPUTS,), 7, dtype=torch.uint8)
    z = w4a8.qoq(x, pack_int4(codes, 8), scales, zeros)
    for i in {0, rows // 2, rows - 1}:
        assert torch.equal(w4a8.qqq(x[i : i + 1], pack_int4(codes, 8), scales)[0], y[i])
        assert torch.equal(w4a8.qoq(x[i : i + 1], pack_int4(codes, 8), scales, zeros)[0], z[i])
