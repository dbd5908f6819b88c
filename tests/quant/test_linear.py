import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from specquant.errors import SpecquantError
from specquant.kernels import warp_groups
from specquant.kernels.activations import quantize_per_token
from specquant.kernels.fp8 import quantize_per_token_e4m3
from specquant.kernels.int4 import unpair_outputs
from specquant.quant import SCHEMES, empty_linear, get_scheme, quantize_linear
from specquant.quant.linear import QoQGroupLinear, QQQGroupLinear

OUTPUTS, INPUTS = 48, 384
GROUPS = INPUTS // 128
# fp16 scales (float32 in fp8) and the rest, per output channel
BYTES_PER_ROW = {
    "fp16": 2 * INPUTS,
    "w8a8": INPUTS + 2,
    "w4a16-g128": INPUTS // 2 + 2 * GROUPS,
    "w4a16-g128-rot": INPUTS // 2 + 2 * GROUPS,
    "w4a16-g128-asym": INPUTS // 2 + 3 * GROUPS,
    "w4a8-qqq": INPUTS // 2 + 2,
    "w4a8-qqq-g128": INPUTS // 2 + 2 + 2 * GROUPS,
    "w4a8-qoq": INPUTS // 2 + 2 + 1,
    "w4a8-qoq-g128": INPUTS // 2 + 2 + 2 * GROUPS,
    "fp8": INPUTS + 4,
    "w4a8-fp8-g128": INPUTS // 2 + 2 * GROUPS,
}
every_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
every_integer_scheme = pytest.mark.parametrize(
    "scheme", [s for s in SCHEMES.values() if s.activation_bits == 8 and not s.floating], ids=lambda s: s.name
)


@pytest.fixture
def weight():
    return torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(0)) * 0.05


@every_scheme
def test_storage_is_as_small_as_the_scheme_says(scheme, weight):
    linear = quantize_linear(scheme, weight)
    linear(torch.randn(1, INPUTS))  # the operand made here is not storage
    assert linear.nbytes == OUTPUTS * BYTES_PER_ROW[scheme.name]
    assert sum(tensor.nbytes for tensor in linear.state_dict().values()) == linear.nbytes


@every_scheme
def test_rounding_error_is_that_of_the_bits(scheme, weight):
    error = (quantize_linear(scheme, weight).dequantize() - weight).norm() / weight.norm()
    assert error < (0.03 if scheme.name == "fp8" else {16: 1e-3, 8: 1e-2, 4: 0.14}[scheme.weight_bits])


@every_scheme
def test_the_product_is_that_of_the_dequantized_matrices(scheme, weight):
    """Ties `dequantize` to the kernels: they unpack the same storage by separate code."""
    linear = quantize_linear(scheme, weight)
    x = torch.randn(9, INPUTS, dtype=torch.float64)
    codes, scales = (quantize_per_token_e4m3 if scheme.floating else quantize_per_token)(x)
    seen = codes * scales if scheme.activation_bits == 8 else x
    expected = seen @ linear.dequantize().double().t()
    assert torch.allclose(linear(x), expected, rtol=0, atol=1e-6 * expected.abs().max().item())


@every_scheme
@pytest.mark.parametrize("rows", [0, 1, 7, 300])
def test_any_number_of_rows_and_the_dtype_of_x(scheme, rows, weight):
    linear = quantize_linear(scheme, weight)
    for dtype in (torch.float16, torch.float32, torch.float64):
        y = linear(torch.randn(rows, INPUTS).to(dtype))
        assert y.shape == (rows, OUTPUTS)
        assert y.dtype == dtype


@every_scheme
def test_rows_of_zeros_are_zero_in_weights_and_activations(scheme, weight):
    weight[3] = 0
    linear = quantize_linear(scheme, weight)
    assert not linear.dequantize()[3].any()
    x = torch.randn(4, INPUTS)
    x[2] = 0
    y = linear(x)
    assert y.isfinite().all()
    assert not y[2].any()
    assert not y[:, 3].any()


@every_scheme
@pytest.mark.parametrize("magnitude", [1e-9, 1e-4, 1e4])
def test_very_small_and_large_weights_stay_finite(scheme, magnitude, weight):
    stored = quantize_linear(scheme, weight / weight.abs().max() * magnitude).dequantize()
    assert stored.isfinite().all()
    assert stored.abs().max() <= 1.1 * magnitude + 1e-6


@pytest.mark.bits
@every_scheme
def test_a_state_dict_carries_the_matrix(scheme, weight):
    linear = quantize_linear(scheme, weight)
    copy = empty_linear(scheme, OUTPUTS, INPUTS)
    x = torch.randn(5, INPUTS)
    assert not copy(x).any()
    copy.load_state_dict(linear.state_dict())  # also replaces what the call before has unpacked
    assert torch.equal(copy(x), linear(x))


@every_scheme
def test_the_hessian_reaches_the_quantizer(scheme, weight):
    hessian = torch.diag(torch.linspace(0.01, 100, INPUTS))
    nearest, calibrated = quantize_linear(scheme, weight), quantize_linear(scheme, weight, hessian)
    assert torch.equal(nearest.dequantize(), calibrated.dequantize()) == (scheme.name == "fp16")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([QoQGroupLinear, QQQGroupLinear]),
    st.floats(-3, 3),
    st.floats(0, 1.5),
    st.booleans(),
)
def test_weights_per_group_never_leave_int8(seed, storage, offset, spread, calibrated):
    """Not even for weights beyond the range that the scales were made for, which GPTQ's corrections produce."""
    generator = torch.Generator().manual_seed(seed)
    magnitudes = torch.exp(torch.randn(16, 2, 1, generator=generator) * spread)
    weight = ((torch.randn(16, 2, 128, generator=generator) + offset) * magnitudes).flatten(1)
    if calibrated:
        scheme = get_scheme("w4a8-qoq-g128" if storage is QoQGroupLinear else "w4a8-qqq-g128")
        mixing = torch.randn(256, 256, generator=generator)
        linear = quantize_linear(scheme, weight, mixing @ mixing.t())
    else:
        linear = storage(16, 256)
        grouped = weight.unflatten(1, (2, 128))
        linear.fit(grouped.amin(-1).clamp_max(0), grouped.amax(-1).clamp_min(0))
        linear.set_codes(linear.grid().at(..., None).encode(grouped * 100).flatten(1))
    integers = linear.operand(torch.float32)
    assert integers.abs().max() <= 127
    assert torch.equal(integers, integers.round())
    if storage is QoQGroupLinear:  # a kernel multiplies before it subtracts, in a byte
        group_scales = unpair_outputs(linear.group_grids[..., :2]).t()
        products = linear.integer_codes().unflatten(1, (2, 128)).int() * group_scales[..., None].int()
        assert products.max() <= 255


@pytest.mark.parametrize("name", [name for name, scheme in SCHEMES.items() if scheme.weight_bits == 4])
@pytest.mark.parametrize(("outputs", "inputs"), [(40, 384)])
def test_matrices_that_are_no_whole_tiles_are_refused(name, outputs, inputs):
    with pytest.raises(SpecquantError, match=rf"{outputs} x {inputs} .* outputs must be a multiple of 16"):
        empty_linear(get_scheme(name), outputs, inputs)


@every_scheme
@pytest.mark.parametrize("inputs", [320, 129, 100])
def test_any_number_of_inputs_is_stored_as_with_weights_of_zero_behind_it(scheme, inputs, weight):
    """The last group is short, and what fills it up takes part in nothing."""
    linear = quantize_linear(scheme, weight[:, :inputs])
    filled = quantize_linear(scheme, F.pad(weight[:, :inputs], (0, -inputs % 128)))
    assert linear.dequantize().shape == (OUTPUTS, inputs)
    assert scheme.name == "fp16" or linear.integer_codes().shape == (OUTPUTS, inputs)
    assert torch.equal(linear.dequantize(), filled.dequantize()[:, :inputs])
    for name, stored in linear.state_dict().items():
        assert stored.shape == (filled.state_dict()[name].shape if scheme.weight_bits == 4 else stored.shape), name
    x = torch.randn(9, inputs, dtype=torch.float64)
    assert torch.allclose(linear(x), filled(F.pad(x, (0, -inputs % 128))), rtol=1e-12, atol=1e-12)
    copy = empty_linear(scheme, OUTPUTS, inputs)
    copy.load_state_dict(linear.state_dict())
    assert torch.equal(copy(x), linear(x))


@pytest.mark.parametrize("name", [name for name, scheme in SCHEMES.items() if scheme.weight_bits == 4])
def test_gptq_of_a_short_last_group_errs_less_than_rounding(name, weight):
    x = torch.randn(900, 320, generator=torch.Generator().manual_seed(1)) @ torch.randn(320, 320) * 0.1
    rounded, solved = (quantize_linear(get_scheme(name), weight[:, :320], h) for h in (None, x.t() @ x))
    errors = [((linear.dequantize() - weight[:, :320]) @ x.t()).norm() for linear in (rounded, solved)]
    assert errors[1] < 0.8 * errors[0]


@every_scheme
def test_weights_that_are_not_finite_are_refused(scheme, weight):
    weight[0, 0] = torch.inf
    with pytest.raises(SpecquantError, match="not finite"):
        quantize_linear(scheme, weight)


@every_integer_scheme
def test_integer_products_are_the_same_in_float32_and_float64_up_to_rounding(scheme, weight):
    linear = quantize_linear(scheme, weight)
    x = torch.randn(6, INPUTS)
    single, double = linear(x), linear(x.double())
    # A code may fall on the other side of a tie, so not bit by bit.
    assert (single - double).abs().max() < 2e-3 * double.abs().max()


@pytest.mark.bits
@every_scheme
def test_a_kernel_gets_the_codes_that_its_storage_names(scheme, weight, device):
    linear = quantize_linear(scheme, weight).to(device)
    x = torch.randn(3, INPUTS, device=device)
    inputs = linear.kernel_inputs(x)
    if linear.code_dtype is None:
        assert len(inputs) == 1
        assert torch.equal(inputs[0], x)
    else:
        codes, scales = inputs
        assert codes.dtype == linear.code_dtype
        expected = (quantize_per_token_e4m3 if scheme.floating else quantize_per_token)(x)
        assert torch.equal(codes.float(), expected[0])
        assert torch.equal(scales, expected[1])


@every_scheme
def test_a_product_starts_early_where_warp_groups_multiply_few_rows(scheme, monkeypatch):
    """They bring weights before their input is there. It is asked of a tensor that the input is made of."""
    if warp_groups.gl is None:
        pytest.skip("needs Triton")
    with torch.device("meta"):
        recorded, unknown = empty_linear(scheme, 8192, 28672), empty_linear(scheme, 4096, 28672)
    x = torch.zeros(17, 64).half()
    assert not recorded.starts_early(x[:1])  # on a CPU
    monkeypatch.setattr(warp_groups, "gpu_kind", lambda device: "sm90")
    # By the recorded table; AWQ's sums of x, which torch makes, come first, and cuBLAS starts when it likes.
    early = scheme.name not in ("w4a16-g128-asym", "fp16")
    assert recorded.starts_early(x[:1]) == early
    assert recorded.starts_early(x[:16]) or scheme.name not in ("w4a16-g128", "w4a16-g128-rot")
    assert not any(each.starts_early(rows) for each, rows in ((recorded, x), (unknown, x[:1])))
    assert recorded.starts_early(x[:1].bfloat16()) == (early and recorded.form != "w4a16")
    recorded.row_invariant = True  # then the ordinary kernel multiplies
    assert not recorded.starts_early(x[:1])


@every_scheme
def test_no_rows_make_no_output_and_run_no_kernel(scheme, monkeypatch):
    linear = empty_linear(scheme, OUTPUTS, INPUTS)
    monkeypatch.setattr(type(linear), "runs_kernel", lambda self, x: True)
    monkeypatch.setattr(type(linear), "run_kernel", lambda *arguments, **_: pytest.fail("a kernel was run"))
    y = linear(torch.empty(0, INPUTS, dtype=torch.float16))
    assert (y.shape, y.dtype) == ((0, OUTPUTS), torch.float16)
    if linear.code_dtype is not None:
        codes = torch.empty(0, INPUTS, dtype=linear.code_dtype), torch.empty(0, 1)
        assert linear(codes, torch.bfloat16).dtype == torch.bfloat16
