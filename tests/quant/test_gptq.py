import pytest
import torch

from specquant.errors import SpecquantError
from specquant.quant import SCHEMES, empty_linear, quantize_linear
from specquant.quant.gptq import CLIPPING, gptq, inverse_factor, search_clipping
from specquant.quant.grid import Grid, in_groups

OUTPUTS, INPUTS = 48, 256
four_bit_schemes = pytest.mark.parametrize(
    "scheme", [s for s in SCHEMES.values() if s.weight_bits == 4], ids=lambda s: s.name
)


@pytest.fixture
def weight(generator):
    return torch.randn(OUTPUTS, INPUTS, generator=generator) * 0.05


@pytest.fixture
def inputs(generator):
    """Correlated activations, as a model's are: a few directions carry most."""
    mixing = torch.randn(INPUTS, INPUTS, generator=generator) * torch.logspace(0, -1.5, INPUTS)[:, None]
    return torch.randn(1000, INPUTS, generator=generator) @ mixing


def output_error(linear, weight, inputs):
    return (inputs @ (linear.dequantize() - weight).t()).norm() / (inputs @ weight.t()).norm()


@four_bit_schemes
def test_gptq_beats_round_to_nearest_on_correlated_inputs(scheme, weight, inputs):
    nearest = output_error(quantize_linear(scheme, weight), weight, inputs)
    calibrated = output_error(quantize_linear(scheme, weight, inputs.t() @ inputs), weight, inputs)
    assert calibrated < 0.7 * nearest


def integers(lowest=-127, highest=127, shape=(OUTPUTS, 1)):
    """A grid of plain integers."""
    one = torch.ones(shape)
    return Grid(one, one, 0 * one, lowest * one, highest * one)


def test_without_correlation_gptq_is_round_to_nearest(weight):
    hessian = torch.diag(torch.rand(INPUTS) + 0.5)
    codes = gptq(weight * 100, hessian, integers())
    assert torch.equal(codes, (weight * 100).round())


@pytest.mark.parametrize("block", [128, 7])
def test_the_steps_are_those_of_the_inverse_hessian_recomputed_each_time(weight, inputs, block, monkeypatch):
    """Against optimal brain quantization done slowly: after each input, solve for the best change of the rest."""
    monkeypatch.setitem(gptq.__globals__, "BLOCK", block)
    weight, inputs = weight[:3, :24] * 60, inputs[:, :24]
    hessian = (inputs.t() @ inputs).double()
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    order = hessian.diagonal().argsort(descending=True, stable=True)
    rest, expected = weight.double().clone(), torch.empty(3, 24, dtype=torch.float64)
    for step, i in enumerate(order):
        later = order[step + 1 :]
        expected[:, i] = rest[:, i].round()
        error = expected[:, i] - rest[:, i]
        if len(later):
            rest[:, later] -= error[:, None] * torch.linalg.solve(damped[later][:, later], damped[later, i])
    assert torch.equal(gptq(weight.double(), hessian, integers(shape=(3, 1))), expected)
    assert not torch.equal(expected, weight.double().round())


def test_blocks_and_groups_do_not_mix(inputs, weight):
    """Each group's codes obey its own limits, also when inputs are taken in another order than they are stored in."""
    grid = integers(shape=(OUTPUTS, 2))
    grid.highest[:, 1] = 0
    codes = gptq(weight * 100, inputs.t() @ inputs, grid)
    assert codes[:, 128:].max() <= 0
    assert codes[:, :128].max() > 0


def test_the_clipping_of_least_weighted_error_is_found(weight, inputs):
    """For each group by itself. An outlier of an input that hardly counts is cut; none of the shares is better."""
    weight[:, 5], inputs[:, 5] = 0.4, 0.001 * inputs[:, 5]
    hessian = inputs.t() @ inputs
    linear, groups = empty_linear(SCHEMES["w4a16-g128"], *weight.shape), in_groups(weight, 128)
    importance = in_groups(hessian.diagonal()[None], 128)
    low, high = groups.amin(dim=-1).clamp(max=0), groups.amax(dim=-1).clamp(min=0)

    def error():
        grid = linear.grid().at(..., None)
        return ((groups - grid.decode(grid.encode(groups))).square() * importance).sum(dim=-1)

    errors = []
    for share in CLIPPING:
        linear.fit(share * low, share * high)
        errors.append(error())
    search_clipping(linear, weight, low, high, hessian)
    torch.testing.assert_close(error(), torch.stack(errors).amin(dim=0))
    assert (errors[0] > 1.1 * error()).any()


def test_inputs_that_are_always_zero_are_no_problem(weight, inputs):
    inputs[:, [3, 200]] = 0
    linear = quantize_linear(SCHEMES["w4a16-g128"], weight, inputs.t() @ inputs)
    assert linear.dequantize().isfinite().all()
    silent = quantize_linear(SCHEMES["w4a16-g128"], weight, torch.zeros(INPUTS, INPUTS))
    assert silent.dequantize().isfinite().all()


def test_fewer_tokens_than_inputs_are_enough(weight, inputs):
    few = inputs[:20]
    assert inverse_factor(few.t() @ few, 0.01).isfinite().all()
    linear = quantize_linear(SCHEMES["w4a8-qqq"], weight, few.t() @ few)
    assert output_error(linear, weight, few) < output_error(quantize_linear(SCHEMES["w4a8-qqq"], weight), weight, few)


def test_activations_that_are_not_finite_are_refused(weight):
    with pytest.raises(SpecquantError, match="not finite"):
        quantize_linear(SCHEMES["w4a8-qqq"], weight, torch.full((INPUTS, INPUTS), torch.nan))
