import pytest
import torch

from specquant.kernels.swiglu import BLOCK, swiglu_reference, swiglu_triton


def check(gate_up):
    output, expected = swiglu_triton(gate_up), swiglu_reference(gate_up)
    assert output.dtype == gate_up.dtype
    torch.testing.assert_close(output, expected, rtol=2.01 * torch.finfo(gate_up.dtype).eps, atol=1e-6)
    codes, scales = swiglu_triton(gate_up, quantized=True)
    expected_codes, expected_scales = swiglu_reference(gate_up, quantized=True)
    assert codes.dtype == torch.int8
    torch.testing.assert_close(scales, expected_scales, rtol=2e-3, atol=0)
    steps = (codes.float() - expected_codes).abs()
    assert steps.max() <= 1
    assert (steps > 0).float().mean() < 0.02
    codes, scales = swiglu_triton(gate_up, True, torch.float8_e4m3fn)
    expected_codes, expected_scales = swiglu_reference(gate_up, True, torch.float8_e4m3fn)
    assert codes.dtype == torch.float8_e4m3fn
    torch.testing.assert_close(scales, expected_scales, rtol=2e-3, atol=0)
    assert (codes.float() != expected_codes).float().mean() < 0.02
    torch.testing.assert_close(codes.float(), expected_codes, rtol=0.13, atol=2.0**-9)  # one step


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("rows", "size"), [(1, 384), (3, BLOCK + 76), (2, 1024)])
def test_swiglu(rows, size, dtype, device):
    check((3 * torch.randn(rows, 2 * size, generator=torch.Generator().manual_seed(0))).to(dtype).to(device))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # the interpreter's
def test_large_gates_neither_overflow_nor_leave_a_fraction(device):
    gate = torch.tensor([[-60000.0, -100.0, -20.0, 0.0, 20.0, 100.0, 60000.0]]).repeat(1, 2)
    gate_up = torch.cat((gate, torch.ones_like(gate)), dim=1).half().to(device)
    output = swiglu_triton(gate_up)
    assert output.isfinite().all()
    torch.testing.assert_close(output, swiglu_reference(gate_up))


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 13, 64])
def test_llama_70b(rows):
    check(torch.randn(rows, 2 * 28672, generator=torch.Generator().manual_seed(rows)).half().cuda())
