"""GPTQ: quantize a matrix input by input, spreading each rounding error over the inputs still to come."""

import torch

from specquant.errors import SpecquantError
from specquant.quant.grid import Grid, in_groups

BLOCK = 128  # columns updated at once
CLIPPING = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65]  # shares of a group's range that the search tries


def gptq(
    weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, damping: float = 0.01, group_size: int = 0
) -> torch.Tensor:
    """Codes [out, in] for a weight [out, in] on a fixed grid [out, groups] (arXiv 2210.17323, algorithm 1).

    hessian: [in, in], the sum over calibration tokens of x x^T. damping: a share of its mean diagonal, added to it.
    group_size: inputs of a group, of which the last may have fewer; 0 where all groups have the same number.
    Inputs are taken in order of falling Hessian diagonal ("act-order"); the groups are those of the original order and
    their scales are fixed beforehand, so nothing of the order needs to be stored.
    """
    inputs = weight.shape[1]
    groups = grid.step.shape[1]
    diagonal = hessian.diagonal()
    order = diagonal.argsort(descending=True, stable=True)
    factor = inverse_factor(hessian[order[:, None], order], damping).to(weight.dtype)
    # One row per input: a column of the matrix lies together in memory.
    rest = weight.t()[order].contiguous()
    codes = torch.empty_like(rest)
    grids = [grid.at(slice(None), group) for group in range(groups)]
    group_of = (order // (group_size or inputs // groups)).tolist()
    for start in range(0, inputs, BLOCK):
        block = rest[start : start + BLOCK]
        upper = factor[start : start + BLOCK]
        errors = torch.empty_like(block)
        for i in range(len(block)):
            grid = grids[group_of[start + i]]
            codes[start + i] = grid.encode(block[i])
            errors[i] = (block[i] - grid.decode(codes[start + i])) / upper[i, start + i]
            block[i + 1 :].addr_(upper[i, start + i + 1 : start + len(block)], errors[i], alpha=-1)
        rest[start + BLOCK :].addmm_(upper[:, start + BLOCK :].t(), errors, alpha=-1)
    return codes[order.argsort()].t()


def inverse_factor(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper Cholesky factor of the damped Hessian's inverse, float64 [in, in]."""
    hessian = hessian.double()
    diagonal = hessian.diagonal()
    mean = diagonal.mean()
    if not mean.isfinite():
        raise SpecquantError("the calibration activations are not finite: use another calibration text or model")
    # An input that is always zero has no curvature of its own; the damping gives it one. So does 1 where all are zero.
    damped = hessian.clone()
    damped.diagonal().add_(damping * mean.item() or 1.0)
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)


def search_clipping(linear, weight: torch.Tensor, low: torch.Tensor, high: torch.Tensor, hessian: torch.Tensor) -> None:
    """Fit a PackedLinear's scales to the share of each group's range [low, high] with the least weighted error.

    The error of a weight counts as much as its input's Hessian diagonal: what rounding alone would cost at the output.
    """
    weight = in_groups(weight, linear.group_size)
    importance = in_groups(hessian.diagonal()[None].to(weight.dtype), linear.group_size)
    best_error = torch.full_like(low, torch.inf)
    best_share = torch.ones_like(low)
    for share in CLIPPING:
        linear.fit(low * share, high * share)
        grid = linear.grid().at(..., None)
        error = ((weight - grid.decode(grid.encode(weight))) ** 2 * importance).sum(dim=-1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_share = torch.where(better, share, best_share)
    linear.fit(low * best_share, high * best_share)
