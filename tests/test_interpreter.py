"""The interpreter's products, which tests of bits build on: a number depends on its own row and column alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specquant.kernels.launch import jit, tl
from tests.interpreter import fixed_order_product

pytestmark = pytest.mark.bits


def operands(rows=64, inner=128, columns=16):
    generator = np.random.default_rng(0)
    return (generator.standard_normal(shape).astype(np.float32) for shape in ((rows, inner), (inner, columns)))


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
def test_a_row_is_the_same_with_others_and_alone(layout):
    a, b = map(layout, operands())
    whole = fixed_order_product(a, b)
    for rows in (slice(0, 1), slice(5, 6), slice(3, 20), slice(None, None, -1)):
        assert np.array_equal(fixed_order_product(a[rows], b), whole[rows])
        assert np.array_equal(fixed_order_product(b.T[rows], a.T), whole.T[rows])
    assert abs(whole - a.astype(float) @ b).max() < 1e-5


def test_halves_are_added():
    """By hand: 1e8 and what is too small to be added to it alone."""
    a = np.array([[1e8, 3, -1e8, 4]], np.float32)
    assert fixed_order_product(a, np.ones((4, 1), np.float32)) == [[7]]
    assert fixed_order_product(a[:, [0, 1, 3, 2]], np.ones((4, 1), np.float32)) != [[7]]
    stacked = fixed_order_product(np.stack([a, 2 * a]), np.ones((2, 4, 1), np.float32))
    assert stacked.tolist() == [[[7]], [[14]]]


@jit
def _dot(a, b, c, K: tl.constexpr):
    row, inner = tl.arange(0, 16), tl.arange(0, K)
    left = tl.load(a + row[:, None] * K + inner[None, :])
    right = tl.load(b + inner[:, None] * 16 + row[None, :])
    tl.store(c + row[:, None] * 16 + row[None, :], tl.dot(left, right))


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_kernels_multiply_so(dtype, device):
    a, b = (torch.from_numpy(operand).to(dtype) for operand in operands(16))
    c = torch.empty(16, 16)
    _dot[(1,)](a, b, c, K=128)
    assert np.array_equal(c.numpy(), fixed_order_product(a.float().numpy(), b.float().numpy()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")
def test_integers_are_exact(device):
    a, b = (torch.randint(-127, 128, shape, dtype=torch.int8) for shape in ((16, 128), (128, 16)))
    c = torch.empty(16, 16, dtype=torch.int32)
    _dot[(1,)](a, b, c, K=128)
    assert torch.equal(c, a.int() @ b.int())
