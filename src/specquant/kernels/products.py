"""What the linear products share: how the work is cut up, and how partial sums become one result.

All of them compute the transposed product, weight [out, in] times x^T [in, rows], so that the few rows of decoding and
verification lie along the narrow side of the tensor cores' tile. A program makes a tile of outputs by rows from a share
of the inputs. Where the inputs are split among programs, each stores its partial sums, and the last to finish adds them
up in the order of the splits: the same inputs give the same bits, whoever is last.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from specquant.errors import SpecquantError
from specquant.kernels.launch import (
    MOST_COUNTERS,
    arrival_counters,
    jit,
    multiprocessors,
    overlapping,
    prefetch,
    tl,
    triton,
    wait_for_previous,
)

ROW_TILES = (16, 32, 64, 128)  # one pass has up to 64 rows; a prompt's chunk takes tiles of 128
GROUP = 128  # inputs in one step of every product
CONFIGURATIONS = Path(__file__).with_name("configurations.json")


class Configuration(NamedTuple):
    """How a product is cut up: outputs of a program, splits of the inputs, stages of the load pipeline, warps.

    registers: of a thread at most, so that more programs fit on a multiprocessor; 0: as many as the compiler likes.
    """

    outputs: int
    splits: int
    stages: int
    warps: int
    registers: int = 0


@cache
def winners() -> dict:
    """The recorded winners: kind of GPU -> scheme -> shape -> rows of a tile -> configuration."""
    return json.loads(CONFIGURATIONS.read_text())


def row_tile(rows: int) -> int:
    """The rows of a program's tile."""
    return next((tile for tile in ROW_TILES if rows <= tile), ROW_TILES[-1])


def configuration(
    scheme: str, out_features: int, in_features: int, rows: int, device: torch.device, row_invariant: bool = False
) -> Configuration:
    """The recorded winner for this shape on this kind of GPU, or a choice that works everywhere.

    The order in which a row's products are summed depends on the splits alone, so `row_invariant` takes those of
    one row, whatever the number of rows.
    """
    tile = row_tile(rows)
    shapes = winners().get(gpu_kind(device), {}).get(scheme, {})
    recorded = shapes.get(f"{out_features}x{in_features}", {}).get(str(tile))
    chosen = Configuration(*recorded) if recorded else _untuned(out_features, in_features, tile, device)
    if row_invariant and tile > ROW_TILES[0]:
        chosen = chosen._replace(splits=configuration(scheme, out_features, in_features, 1, device).splits)
    return chosen


def gpu_kind(device: torch.device) -> str:
    """The table's name for GPUs that share their winners."""
    return "sm{}{}".format(*torch.cuda.get_device_capability(device)) if device.type == "cuda" else "interpreter"


def _untuned(out_features: int, in_features: int, tile: int, device: torch.device) -> Configuration:
    splits = 3 * multiprocessors(device) // -(-out_features // 64) if tile < ROW_TILES[-1] else 1
    stages = 4 if tile <= 32 else 3
    if not overlapping(device)["OVERLAPPING"]:
        stages = 2  # GPUs before Hopper have less shared memory
    return Configuration(64, max(1, min(splits, in_features // GROUP // 4, 16)), stages, warps=4)


def launch_product(
    kernel,
    scheme: str,
    x: torch.Tensor,
    operands: tuple[torch.Tensor | None, ...],
    out_features: int,
    out_dtype: torch.dtype,
    *,
    accumulator: torch.dtype,
    row_invariant: bool = False,
    chosen: Configuration | None = None,
    **constants,
) -> torch.Tensor:
    """Run kernel(x, *operands, out, partial sums, arrivals, rows, outputs, inputs, ...) and return out [rows, out].

    x: [rows, in]; kernels of packed weights take whole steps of inputs (`int4.in_whole_tiles`). `chosen` overrides the
    recorded configuration. Products of one device must run one after another, as those of one stream do: they share the
    arrival counters. Raises SpecquantError for a shape that the kernels cannot multiply.
    """
    rows, in_features = x.shape
    if out_features % 16:
        raise SpecquantError(
            f"a {out_features} x {in_features} matrix has no kernel: its outputs must be a multiple of 16"
        )
    out = torch.empty(rows, out_features, dtype=out_dtype, device=x.device)
    if not rows:
        return out
    chosen = chosen or configuration(scheme, out_features, in_features, rows, x.device, row_invariant)
    tile = row_tile(rows)
    grid = (triton.cdiv(rows, tile), triton.cdiv(out_features, chosen.outputs), chosen.splits)
    partials = None
    if chosen.splits > 1:
        if grid[0] * grid[1] > MOST_COUNTERS:
            raise SpecquantError(f"{rows} rows of {out_features} outputs are too many for one product: take fewer rows")
        size = grid[0] * grid[1] * chosen.splits * chosen.outputs * tile
        partials = torch.empty(size, dtype=accumulator, device=x.device)
    limit = {"maxnreg": chosen.registers} if x.is_cuda and chosen.registers else {}
    kernel[grid](
        x.contiguous(), *operands, out, partials, arrival_counters(x.device), rows, out_features, in_features,
        OUTPUTS=chosen.outputs, ROWS=tile, STAGES=chosen.stages, WHOLE=out_features % chosen.outputs == 0,
        num_warps=chosen.warps, **limit, **overlapping(x.device), **constants,
    )  # fmt: skip
    return out


@jit
def wait_for_inputs(weights, stride, count, BYTES: tl.constexpr, OVERLAPPING: tl.constexpr):
    """Wait for the previous kernel; in the meantime, fetch this program's first weights into the L2 cache. The next
    kernel is launched when this one has ended: a product's blocks are many.

    weights: where they begin, `BYTES` of them in each of its `count` steps, `stride` elements apart.
    """
    if OVERLAPPING:
        for ahead in tl.static_range(4 if BYTES > 0 else 0):
            step = tl.minimum(ahead, tl.maximum(count - 1, 0))
            prefetch(weights + step * stride, BYTES)
    wait_for_previous(OVERLAPPING, next_at_once=False)


@jit
def steps(in_features):
    """The first and the last step (excluded) of this program's share of the inputs."""
    split, splits = tl.program_id(2), tl.num_programs(2)
    count = in_features // 128
    return split * count // splits, (split + 1) * count // splits


@jit
def is_last(sums, mask, partials, arrivals, OUTPUTS: tl.constexpr, ROWS: tl.constexpr):
    """Store this program's partial sums [OUTPUTS, ROWS]; says whether those of all splits of the tile are there now."""
    tile, splits = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), tl.num_programs(2)
    place = partials + (tile * splits + tl.program_id(2)) * (OUTPUTS * ROWS)
    tl.store(place + tl.arange(0, OUTPUTS)[:, None] * ROWS + tl.arange(0, ROWS)[None, :], sums, mask=mask)
    tl.debug_barrier()  # all threads' stores come before the arrival of the program
    last = tl.atomic_add(arrivals + tile, 1, sem="acq_rel") == splits - 1
    if last:
        tl.store(arrivals + tile, 0)
    return last


@jit
def add_splits(sums, mask, partials, OUTPUTS: tl.constexpr, ROWS: tl.constexpr):
    """The sum over the splits [OUTPUTS, ROWS], in their order; sums: of their shape and dtype."""
    AHEAD: tl.constexpr = 4 if ROWS <= 16 else 1  # loads at a time, as registers allow
    tile, splits = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), tl.num_programs(2)
    place = partials + tile * splits * (OUTPUTS * ROWS)
    place += tl.arange(0, OUTPUTS)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
    sums = tl.zeros_like(sums)
    for first in range(0, splits, AHEAD):
        for split in tl.static_range(AHEAD):
            there = mask & (first + split < splits)
            sums += tl.load(place + split * (OUTPUTS * ROWS), mask=there, other=0, cache_modifier=".cg")
        place += AHEAD * (OUTPUTS * ROWS)
    return sums
