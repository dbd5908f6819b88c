"""What the linear products share: how the work is cut up, and how partial sums become one result.

All of them compute the transposed product, weight [out, in] times x^T [in, rows], so that the few rows of decoding and
verification lie along the narrow side of the tensor cores' tile. A program makes a tile of outputs by rows from a share
of the inputs. Where the inputs are split among programs, each stores its partial sums, and the last to finish adds them
up in the order of the splits: the same inputs give the same bits, whoever is last.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from specquant import __version__
from specquant.errors import SpecquantError
from specquant.files import cache_folder
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
from specquant.tables.provenance import note_configuration

ROW_TILES = (16, 32, 64, 128)  # one pass has up to 64 rows; a prompt's chunk takes tiles of 128
GROUP = 128  # inputs in one step of every product
CONFIGURATIONS = Path(__file__).with_name("configurations.json")
TABLE = "{}-warp-groups"  # of a form's configurations for `warp_groups`: slabs of each group, then splits and stages
MULTIPROCESSORS = {"sm90": 132}  # of the cards that the recorded winners are of
MOST_SPLITS = 16
MOST_WASTE = 1.4  # times the multiprocessors that a product would need if none idled in its last wave


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


def tuned_path(device: torch.device) -> Path:
    """Where `specquant tune` keeps this user's winners: a file for each card and each state of the kernels.

    What is fastest depends on a card's multiprocessors and bandwidth, which its name and memory tell. It also depends
    on Triton, and on the kernels, which change within a version, too.
    """
    about, digest = torch.cuda.get_device_properties(device), hashlib.sha256()
    for path in sorted(CONFIGURATIONS.parent.glob("*.py")):
        digest.update(path.read_bytes())
    card = f"{about.name}-{about.total_memory >> 30}gib-{about.multi_processor_count}"
    name = f"{card}-{__version__}-triton-{triton.__version__}-{digest.hexdigest()[:8]}".lower()
    return cache_folder() / "configurations" / f"{re.sub(r'[^a-z0-9.]+', '-', name)}.json"


def read_tuned(path: Path) -> dict:
    """What a file of this user's winners holds: scheme -> shape -> rows of a tile -> numbers; nothing where none can be
    read.

    Raises SpecquantError for a file that holds anything else.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        sound = all(
            is_sound(name, shape, tile, numbers)
            for name, shapes in table.items()
            for shape, tiles in shapes.items()
            for tile, numbers in tiles.items()
        )
    except OSError:
        return {}
    except (ValueError, AttributeError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise SpecquantError(f"{path} is no table of configurations: remove it, and run specquant tune again")
    return table


def is_sound(name: str, shape: str, tile: str, numbers: list[int]) -> bool:
    """Whether numbers are a configuration that the kernels take for this shape. Raises ValueError if it is no shape."""
    outputs, inputs = map(int, shape.split("x"))
    if any(type(number) is not int or number < 0 for number in numbers):
        return False
    if name.endswith(TABLE.format("")):
        *slabs, splits, stages = numbers
        fits = len(slabs) in (2, 3, 4) and min(slabs) > 0 and stages > 0 and outputs % 64 == 0
        fits = fits and int(tile) in (8, *ROW_TILES[:-1])
    else:
        block, splits, stages, warps, _ = numbers
        fits = block in (64, 128, 256) and stages > 0 and warps in (4, 8) and int(tile) in ROW_TILES
    return fits and 1 <= splits <= max(1, inputs // GROUP)


@cache
def tuned(device: torch.device) -> dict:
    """This user's own winners on this card, as `winners` has them of a kind. Raises SpecquantError as `read_tuned`."""
    if device.type != "cuda":
        return {}
    try:
        path = tuned_path(device)
    except SpecquantError:  # a user without a home folder has tuned nothing
        return {}
    return read_tuned(path)


def shape_name(out_features: int, in_features: int) -> str:
    """The name of a shape in the tables: with whole steps of inputs, which kernels of packed weights are given."""
    return f"{out_features}x{-(-in_features // GROUP) * GROUP}"


def known(
    form: str, out_features: int, in_features: int, tile: int, kind: str, device: torch.device, groups: bool = False
) -> list[int] | None:
    """The numbers of this shape's winner: what this user tuned, else as recorded of this kind of GPU; None for none.

    groups: whether the winner is for warp groups. Where this user's tuning kept none, the ordinary kernel was faster.
    A winner of this user is noted, so that the JSON beside a table names it.
    """
    shape, rows, own = shape_name(out_features, in_features), str(tile), tuned(device)
    name = TABLE.format(form) if groups else form
    is_own = str(max(tile, ROW_TILES[0])) in own.get(form, {}).get(shape, {})
    numbers = (own if is_own else winners().get(kind, {})).get(name, {}).get(shape, {}).get(rows)
    if is_own and numbers:
        note_configuration(f"{name} {shape}, up to {rows} rows", numbers)
    return numbers


def row_tile(rows: int) -> int:
    """The rows of a program's tile."""
    return next((tile for tile in ROW_TILES if rows <= tile), ROW_TILES[-1])


def configuration(
    scheme: str, out_features: int, in_features: int, rows: int, device: torch.device, row_invariant: bool = False
) -> Configuration:
    """The winner for this shape on this card: tuned here, or recorded of its kind, or made from that of another shape.

    The order in which a row's products are summed depends on the splits alone, so `row_invariant` takes those of
    one row, whatever the number of rows.
    """
    tile = row_tile(rows)
    numbers = known(scheme, out_features, in_features, tile, gpu_kind(device), device)
    chosen = Configuration(*numbers) if numbers else _unknown(scheme, out_features, in_features, tile, device)
    if row_invariant and tile > ROW_TILES[0]:
        chosen = chosen._replace(splits=configuration(scheme, out_features, in_features, 1, device).splits)
    return chosen


def gpu_kind(device: torch.device) -> str:
    """The table's name for GPUs that share their winners: they have one capability, and as many multiprocessors."""
    if device.type != "cuda":
        return "interpreter"
    kind = "sm{}{}".format(*torch.cuda.get_device_capability(device))
    count = multiprocessors(device)
    return kind if count == MULTIPROCESSORS.get(kind, count) else f"{kind} x {count}"


@cache
def _unknown(scheme: str, out_features: int, in_features: int, tile: int, device: torch.device) -> Configuration:
    """For a shape without a winner on this card: that of the nearest shape, or a choice that works everywhere.

    Of 20 shapes in four schemes on an H200, each left out of the table, this was nearer to the fastest that was tried
    than either alone: eight warps seldom suit another shape, nor do splits that leave a last wave nearly empty.
    """
    kind, everywhere = gpu_kind(device).split(" ")[0], _untuned(out_features, in_features, tile, device)
    shapes = winners().get(kind, {}).get(scheme, {})
    shapes = {shape: tiles[str(tile)] for shape, tiles in shapes.items() if str(tile) in tiles}
    if not shapes:
        return everywhere
    available = multiprocessors(device)
    taken = transferred(shapes, out_features, in_features, available / MULTIPROCESSORS[kind])
    waves = -(-out_features // taken.outputs) * taken.splits / available
    suits = taken.warps == 4 and math.ceil(waves) <= MOST_WASTE * waves
    return taken if suits or shape_name(out_features, in_features) in shapes else everywhere


def transferred(shapes: dict[str, list[int]], out_features: int, in_features: int, larger: float = 1) -> Configuration:
    """What a shape [out, in] takes from the winner of the nearest one, on a card of `larger` times as many
    multiprocessors: all of it but the splits, which make as many programs for each multiprocessor."""
    nearest = nearest_shape(shapes, out_features, in_features)
    winner = Configuration(*shapes[nearest])
    programs = -(-int(nearest.split("x")[0]) // winner.outputs) * winner.splits * larger
    splits = round(programs / -(-out_features // winner.outputs))
    return winner._replace(splits=_at_most(splits, in_features))


def nearest_shape(shapes: Iterable[str], out_features: int, in_features: int) -> str:
    """The shape that is most like [out, in]: in outputs, of which programs are made, and half as much in size."""

    def distance(shape: str) -> float:
        outputs, inputs = map(int, shape.split("x"))
        sizes = math.log(outputs * inputs / (out_features * in_features))
        return abs(sizes) / 2 + abs(math.log(outputs / out_features))

    return min(shapes, key=distance)


def _untuned(out_features: int, in_features: int, tile: int, device: torch.device) -> Configuration:
    splits = 3 * multiprocessors(device) // -(-out_features // 64) if tile < ROW_TILES[-1] else 1
    stages = 4 if tile <= 32 else 3
    if not overlapping(device)["OVERLAPPING"]:
        stages = 2  # GPUs before Hopper have less shared memory
    return Configuration(64, _at_most(splits, in_features), stages, warps=4)


def _at_most(splits: int, in_features: int) -> int:
    """Splits of which each has four steps."""
    return max(1, min(splits, in_features // GROUP // 4, MOST_SPLITS))


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
