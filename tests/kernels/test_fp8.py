"""e4m3 products: the references against the definition, the kernels against the references."""

import pytest
import torch

from specquant.kernels.activations import quantize_per_token_triton
from specquant.kernels.fp8 import fp8, fp8_triton, quantize_per_token_e4m3
from specquant.kernels.int4 import pair_outputs
from specquant.kernels.products import Configuration
from specquant.kernels.w4a8_fp8 import pack_codes, unpack_codes, w4a8_fp8, w4a8_fp8_triton, w4a8_fp8_weight
from tests.kernels.test_product_kernels import relative_error

# Every finite e4m3 number by the format's definition: exponent bias 7, 3 bits of mantissa, subnormal below 2**-6.
NUMBERS = sorted(
    {
        sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))
        for sign in (1, -1)
        for exponent in range(16)
        for mantissa in range(8)
        if (exponent, mantissa) != (15, 7)
    }
)
EDGES = [
    (1, 16, 128, Configuration(64, 1, 2, 4)),
    (3, 80, 384, Configuration(64, 2, 3, 4)),
    (64, 144, 640, Configuration(128, 3, 2, 8)),
    (150, 64, 256, Configuration(64, 1, 2, 4)),
    (130, 48, 384, None),
    (3, 80, 320, Configuration(64, 2, 3, 4)),
    (20, 64, 100, None),
]
edges = pytest.mark.parametrize(("rows", "outputs", "inputs", "chosen"), EDGES, ids=str)


def fp8_matrix(outputs, inputs, generator):
    weight = torch.randn(outputs, inputs, generator=generator)
    scales = weight.abs().amax(dim=1) / 448
    return (weight / scales[:, None]).to(torch.float8_e4m3fn), scales


def w4a8_fp8_matrix(outputs, inputs, generator):
    codes = torch.randint(0, 16, (outputs, inputs), generator=generator)
    scales = (torch.rand(-(-inputs // 128), outputs, generator=generator) * 0.02).half()
    return pack_codes(codes), pair_outputs(scales)


def wide_rows(dtype, generator):
    """Rows with small and large numbers, so that the small become subnormal; and a row of zeros."""
    x = torch.randn(6, 384, generator=generator) * torch.exp2(torch.randint(-14, 3, (6, 384), generator=generator))
    x[2] = 0
    return x.to(dtype)


@pytest.mark.bits
def test_codes_are_the_nearest_numbers_of_the_format(generator):
    x = wide_rows(torch.float32, generator)
    codes, scales = quantize_per_token_e4m3(x)
    numbers = torch.tensor(NUMBERS)
    assert len(numbers) == 253
    distances = (x / scales)[..., None].sub(numbers).abs()
    assert torch.equal((x / scales - codes).abs(), distances.amin(dim=-1))
    assert torch.equal(scales[:, 0], x.abs().amax(dim=1).clamp_min(1e-30) / 448)
    assert codes[[0, 1, 3, 4, 5]].abs().amax(dim=1).eq(448).all()


@pytest.mark.bits
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_kernel_quantizes_to_the_same_bits(dtype, device, generator):
    x = wide_rows(dtype, generator)
    codes, scales = quantize_per_token_triton(x.to(device), torch.float8_e4m3fn)
    expected_codes, expected_scales = quantize_per_token_e4m3(x)
    assert torch.equal(codes.float().cpu(), expected_codes)
    assert torch.equal(scales.cpu(), expected_scales)


def test_ties_go_to_even(device):
    x = torch.tensor([[448.0, 17, 19, -17, -19, 2**-10, 3 * 2**-10, 2**-11] + [0.0] * 120])
    codes, _ = quantize_per_token_triton(x.to(device), torch.float8_e4m3fn)
    assert codes[0, :8].float().tolist() == [448, 16, 20, -16, -20, 0, 2 * 2**-9, 0]


def test_the_references_multiply_what_is_stored(generator):
    x = torch.randn(5, 256, generator=generator, dtype=torch.float64)
    codes, scales = quantize_per_token_e4m3(x)
    weight_codes, weight_scales = fp8_matrix(16, 256, generator)
    expected = (codes * scales) @ (weight_codes.double() * weight_scales[:, None]).t()
    assert torch.allclose(fp8(x, weight_codes, weight_scales), expected, rtol=1e-12)
    integers = torch.randint(0, 16, (16, 256), generator=generator)
    group_scales = (torch.rand(2, 16, generator=generator) * 0.02).half()
    weight = (integers - 8).double() * group_scales.double().t().repeat_interleave(128, dim=1)
    stored = pack_codes(integers), pair_outputs(group_scales)
    assert torch.equal(unpack_codes(stored[0]).long(), integers)
    assert torch.allclose(w4a8_fp8(x, *stored), (codes * scales) @ weight.t(), rtol=1e-12)


@edges
@pytest.mark.parametrize(
    ("launch", "reference", "make"), [(fp8_triton, fp8, fp8_matrix), (w4a8_fp8_triton, w4a8_fp8, w4a8_fp8_matrix)]
)
def test_kernels(launch, reference, make, rows, outputs, inputs, chosen, device, generator):
    matrix = make(outputs, inputs, generator)
    x = torch.randn(rows, inputs, generator=generator).half()
    quantized = quantize_per_token_triton(x.to(device), torch.float8_e4m3fn)
    y = launch(*quantized, *(part.to(device) for part in matrix), out_dtype=torch.float16, chosen=chosen)
    assert y.shape == (rows, outputs)
    # Tensor cores add e4m3 products with fewer bits than float32 has.
    assert relative_error(y, reference(x.double(), *matrix)) < (2e-3 if device == "cuda" else 4e-4)


@pytest.mark.gpu
@pytest.mark.parametrize(("outputs", "inputs"), [(10240, 8192), (8192, 28672), (11024, 4096)])
@pytest.mark.parametrize(
    ("launch", "reference", "make"), [(fp8_triton, fp8, fp8_matrix), (w4a8_fp8_triton, w4a8_fp8, w4a8_fp8_matrix)]
)
def test_true_shapes(launch, reference, make, outputs, inputs):
    matrix = make(outputs, inputs, torch.Generator().manual_seed(0))
    matrix = tuple(part.cuda() for part in matrix)
    x = torch.randn(300, inputs, device="cuda").half()
    expected = reference(x.double(), *matrix).cpu()
    codes, scales = quantize_per_token_triton(x, torch.float8_e4m3fn)

    def run(rows):
        return launch(codes[:rows], scales[:rows], *matrix, out_dtype=torch.float16, row_invariant=True)

    whole = run(300)
    for rows in (1, 13, 16, 30, 64, 100):
        y = launch(codes[:rows], scales[:rows], *matrix, out_dtype=torch.float16)
        assert relative_error(y, expected[:rows]) < 2e-3, rows
        assert torch.equal(y, launch(codes[:rows], scales[:rows], *matrix, out_dtype=torch.float16))
        assert torch.equal(run(rows), whole[:rows]), rows


@pytest.mark.gpu
def test_assembly_widens_exactly(generator):
    """One input at a time, so that a product shows a weight as it is."""
    x = torch.eye(256, device="cuda").to(torch.float8_e4m3fn)
    codes, scales = (part.cuda() for part in w4a8_fp8_matrix(64, 256, generator))
    ones = torch.ones(256, 1, device="cuda")
    options = {"out_dtype": torch.float32, "chosen": Configuration(64, 1, 3, 4)}
    widened = [w4a8_fp8_triton(x, ones, codes, scales, **options, assembly=assembly) for assembly in (True, False)]
    assert torch.equal(*widened)
    assert torch.equal(widened[0].t().cpu(), w4a8_fp8_weight(codes, scales).cpu())
