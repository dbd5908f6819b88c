import pytest
import torch

from specquant.kernels.norm import add_rms_norm_reference, add_rms_norm_triton


def problem(rows, size, dtype, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, delta = torch.randn(2, rows, size, generator=generator) * torch.tensor([30.0, 1.0])[:, None, None]
    return (
        x.to(dtype).to(device),
        delta.to(dtype).to(device),
        torch.rand(size, generator=generator).to(dtype).to(device),
    )


def check(x, delta, weight, quantized):
    """Sums to the bit; norms to the last place of their dtype, for float32 sums have an order; codes to one step."""
    total, normed = add_rms_norm_triton(x, delta, weight, 1e-5, quantized)
    expected_total, expected = add_rms_norm_reference(x, delta, weight, 1e-5, quantized)
    assert torch.equal(total, expected_total)
    if quantized:
        codes, scales = normed
        assert codes.dtype == torch.int8
        torch.testing.assert_close(scales, expected[1], rtol=1e-3, atol=0)
        steps = (codes.float() - expected[0]).abs()
        assert steps.max() <= 1
        assert (steps > 0).float().mean() < 0.01
    else:
        torch.testing.assert_close(normed, expected, rtol=1.01 * torch.finfo(x.dtype).eps, atol=1e-6)


@pytest.mark.bits
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("rows", "size"), [(1, 384), (3, 500), (2, 1024)])
def test_sum_and_norm(rows, size, dtype, quantized, device):
    x, delta, weight = problem(rows, size, dtype, device)
    check(x, delta, weight, quantized)
    check(x, None, weight, quantized)


@pytest.mark.bits
@pytest.mark.parametrize("code_dtype", [torch.int8, torch.float8_e4m3fn])
def test_codes_have_the_bits_of_the_reference_where_the_norm_is_exact(code_dtype, device):
    # Powers of two with mean square 1, weights of one place: no rounding but the quantization's.
    x = torch.tensor([[1.0, -1.0, 1.0, 1.0]]).repeat(2, 64).half().to(device)
    weight = torch.rand(256, generator=torch.Generator().manual_seed(0)).half().to(device)
    weight[:8] *= 2**-9  # subnormal codes in e4m3
    _, (codes, scales) = add_rms_norm_triton(x, None, weight, 0.0, True, code_dtype)
    _, expected = add_rms_norm_reference(x, None, weight, 0.0, True, code_dtype)
    assert codes.dtype == code_dtype
    assert torch.equal(codes.float(), expected[0])
    assert torch.equal(scales, expected[1])


def test_a_row_of_zeros(device):
    x = torch.zeros(1, 384, dtype=torch.float16, device=device)
    _, (codes, scales) = add_rms_norm_triton(x, None, torch.ones_like(x[0]), 1e-5, quantized=True)
    assert not codes.any()
    assert scales.item() > 0


@pytest.mark.gpu
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("rows", [1, 13, 64])
def test_llama_70b(rows, quantized):
    x, delta, weight = problem(rows, 8192, torch.float16, "cuda")
    check(x, delta, weight, quantized)
    alone = add_rms_norm_triton(x[-1:], delta[-1:], weight, 1e-5)
    together = add_rms_norm_triton(x, delta, weight, 1e-5)
    assert torch.equal(alone[1][0], together[1][-1])
