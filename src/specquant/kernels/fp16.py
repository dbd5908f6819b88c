"""The product with fp16 weights: cuBLAS through torch; on a CPU, which has no fp16 arithmetic, in float32.

cuBLAS chooses by the number of rows how it sums, so that a row's bits depend on it; the kernel here can do without.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from specquant.kernels.launch import jit, tl, wait_for_previous
from specquant.kernels.products import GROUP, Configuration, add_splits, is_last, launch_product, steps


def fp16_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [rows, in] times weight [out, in] -> [rows, out] in x's dtype, computed in the weight's dtype."""
    return F.linear(x.to(weight.dtype), weight).to(x.dtype)


def fp16_triton(
    x: torch.Tensor, weight: torch.Tensor, row_invariant: bool = False, chosen: Configuration | None = None
) -> torch.Tensor:
    """The launcher: x [rows, in] times weight [out, in], both fp16 or both bf16 -> [rows, out] in their dtype.

    row_invariant: a row's result does not depend on how many other rows there are.
    """
    return launch_product(
        _kernel,
        "fp16",
        x,
        (weight,),
        len(weight),
        x.dtype,
        accumulator=torch.float32,
        row_invariant=row_invariant,
        chosen=chosen,
        EVEN=x.shape[1] % GROUP == 0,
    )


@jit(do_not_specialize=["rows"])
def _kernel(
    x, weight, out, partials, arrivals, rows, out_features, in_features,
    OUTPUTS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr, WHOLE: tl.constexpr,
    OVERLAPPING: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    first, end = steps(in_features if EVEN else in_features + 127)
    wait_for_previous(OVERLAPPING, next_at_once=False)
    step = first * 128 + tl.arange(0, 128)
    weight += output[:, None].to(tl.int64) * in_features + step[None, :]
    x += row[None, :] * in_features + step[:, None]
    sums = tl.zeros((OUTPUTS, ROWS), tl.float32)
    for _ in tl.range(first, end, num_stages=STAGES):
        if EVEN:
            weights = tl.load(weight) if WHOLE else tl.load(weight, mask=output[:, None] < out_features, other=0)
            activations = tl.load(x, mask=row[None, :] < rows, other=0)
        else:
            weights = tl.load(weight, mask=(output[:, None] < out_features) & (step[None, :] < in_features), other=0)
            activations = tl.load(x, mask=(row[None, :] < rows) & (step[:, None] < in_features), other=0)
            step += 128
        sums = tl.dot(weights, activations, sums)
        weight += 128
        x += 128
    mask = (row[None, :] < rows) & (output[:, None] < out_features)
    out += row[None, :] * out_features + output[:, None]
    if partials is None:
        tl.store(out, sums.to(out.dtype.element_ty), mask=mask)
    elif is_last(sums, mask, partials, arrivals, OUTPUTS, ROWS):
        tl.store(out, add_splits(sums, mask, partials, OUTPUTS, ROWS).to(out.dtype.element_ty), mask=mask)
