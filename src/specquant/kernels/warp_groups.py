"""Products for up to 64 rows on Hopper by warp groups with different tasks, written in Gluon, Triton's lower level.

A product by `products.launch_product` begins with weights when the kernel before it has ended, and its warps widen
codes and multiply in turn. Here a program fills a multiprocessor alone. One warp, the producer, has the copy engine
(TMA) bring weights and activations into shared memory, some steps ahead, and begins with weights before the previous
kernel has ended. Two to four warp groups multiply: each widens the codes of its own slabs of 64 outputs in its
registers and adds to sums that stay there, while the tensor cores work for the others. Barriers in shared memory say
which steps are there, and which have been used. One program's activations serve up to 448 outputs, so they are seldom
read again.

The forms are those of `products`. Their results are as exact as the ordinary kernels', and integers the very same. In
`w4a16` a weight is rounded to fp16 once, (code - 8) * scale, as dequantized checkpoints are: sums need not be scaled.
Where rows are at most 16, a group's sums are fewer than its weights, and are scaled instead, as `w4a16` does.

Up to 8 rows, a warp multiplies by `mma` instead of `wgmma`: that has no waits of its own, and neighbouring slabs
overlap. Not e4m3, which Triton's `mma` widens to fp16, nor weights that the tensor cores read from shared memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from specquant.errors import SpecquantError
from specquant.kernels.launch import MOST_COUNTERS, arrival_counters, constexpr, wait_for_previous
from specquant.kernels.products import gpu_kind, known
from specquant.kernels.widening import (
    FORMS,
    FP8,
    FP8_GROUP,
    QOQ,
    QQQ,
    QQQ_GROUP,
    W4A16,
    factors_of,
    halves_of_inputs,
    per_output,
    to_bytes,
    to_fp16,
    zero_points,
)

try:
    import triton.experimental.gluon.language as gl
    from triton.experimental import gluon
    from triton.experimental.gluon.language.nvidia.ampere import mma_v2
    from triton.experimental.gluon.language.nvidia.hopper import (
        mbarrier,
        tma,
        warpgroup_mma,
        warpgroup_mma_wait,
    )
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    jit = gluon.jit
    barrier = getattr(gl, "thread_barrier", None) or gl.barrier  # its name until Triton 3.6, and from 3.7 on
except ImportError:  # no Triton, or one without Gluon: `recorded` then never offers this kernel
    gl = None

    def jit(function=None, **_):
        return function or jit


TILES = 8, 16, 32, 64  # rows of a program's tile
SLAB = 64  # outputs of one product of the tensor cores
REGISTERS = {2: 240, 3: 160, 4: 112}  # of a thread that multiplies, by the number of warp groups
# Steps of weights that are asked for before the previous kernel has ended, by the rows of a program's tile.
EARLY = {8: 8, 16: 4, 32: 2, 64: 2}
AHEAD = 8  # steps by which the numbers of groups are brought into the L2 cache before they are loaded
UNPACKED = "w8a8", "fp8"
FLOATING = "fp8", "w4a8-fp8-g128", "w4a16"  # their sums are float32


class WarpGroups(NamedTuple):
    """How a program is cut up: slabs of each warp group that multiplies, splits of the inputs, steps held in memory."""

    slabs: tuple[int, ...]
    splits: int
    stages: int


def recorded(form: str, x: torch.Tensor, out_features: int, in_features: int | None = None) -> WarpGroups | None:
    """The tables' choice for a product of x [rows, in] on this card; None where another kernel is faster, or this one
    cannot run. in_features: of the product, where x is what its input is still to be made of."""
    in_features = in_features or x.shape[1]
    takes = x.dtype == torch.float16 if form == "w4a16" else in_features % 16 == 0
    if gl is None or not takes or len(x) > TILES[-1] or x.data_ptr() % 16:
        return None
    numbers = known(form, out_features, in_features, group_tile(len(x)), gpu_kind(x.device), x.device, groups=True)
    return WarpGroups(tuple(numbers[:-2]), *numbers[-2:]) if numbers else None


def group_tile(rows: int) -> int:
    """The rows of a program's tile."""
    return next((tile for tile in TILES if rows <= tile), TILES[-1])


def multiply_by_groups(
    form: str,
    x: torch.Tensor,
    codes: torch.Tensor,
    chosen: WarpGroups,
    out_dtype: torch.dtype,
    *,
    token_scales: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
    grid: torch.Tensor | None = None,
    clamped: bool = False,
) -> torch.Tensor:
    """The launcher: x [up to 64 rows, in], as its form's kernel takes it, times a matrix -> [rows, out] in `out_dtype`.

    Args:
        form: As in the table of configurations.
        x: fp16 for w4a16, e4m3 for fp8 and w4a8-fp8-g128, else int8; packed weights take whole steps of inputs.
        codes: The matrix as the form stores it.
        chosen: How the work is cut up.
        out_dtype: Of the result; for w4a16 fp16.
        token_scales: float32 [rows, 1], of x; None for w4a16.
        scales: [out], of channels, where the form has any.
        grid: What the form stores of groups, or the zero points of channels.
        clamped: As for `w4a8_triton`.

    Raises:
        SpecquantError: The outputs are no multiple of 64, or the rows or splits are too many.
    """
    (rows, in_features), tile = x.shape, group_tile(len(x))
    out_features = len(codes) if form in UNPACKED else codes.shape[1] * 16
    if rows > TILES[-1] or out_features % SLAB:
        raise SpecquantError(
            f"warp groups multiply up to 64 rows by a multiple of 64 outputs, not {rows} by {out_features}"
        )
    slabs, splits = sum(chosen.slabs), chosen.splits
    columns, steps = -(-out_features // (slabs * SLAB)), -(-in_features // 128)
    if splits > steps:
        raise SpecquantError(f"{in_features} inputs cannot be split in {splits}: each share needs 128")
    if splits > 1 and columns * slabs > MOST_COUNTERS:
        raise SpecquantError(f"{out_features} outputs are too many to split their inputs")
    out = torch.empty(rows, out_features, dtype=out_dtype, device=x.device)
    partials = None
    if splits > 1:
        size, dtype = columns * slabs * splits * SLAB * tile, torch.float32 if form in FLOATING else torch.int32
        partials = torch.empty(size, dtype=dtype, device=x.device)
    if form == "w4a16":
        # A row has the words of four lanes, eight rows a tile of 16 outputs.
        weights = TensorDescriptor.from_tensor(codes.view(torch.int32).view(-1, 32), [32, 32], _shared(32))
    elif form in UNPACKED:
        weights = TensorDescriptor.from_tensor(codes, [SLAB, 128], _shared(8))
    else:
        weights = TensorDescriptor.from_tensor(codes.view(torch.int8).view(-1, 128), [32, 128], _shared(8))
    width, bits = (64, 16) if form == "w4a16" else (128, 8)
    _kernel[(columns, splits)](
        TensorDescriptor.from_tensor(x.contiguous(), [tile, width], _shared(bits)), weights, token_scales, scales,
        grid if form == "w4a8-qoq" or grid is None else grid.view(torch.int32),
        out, partials, arrival_counters(x.device), rows, out_features, steps,
        FORM=FORMS.index(form), SLABS=chosen.slabs, ROWS=tile, STAGES=chosen.stages,
        REGISTERS=REGISTERS[len(chosen.slabs)], EARLY=min(EARLY[tile], chosen.stages), AHEAD=AHEAD, CLAMPED=clamped,
        num_warps=4, launch_pdl=True,
    )  # fmt: skip
    return out


def _shared(bits: int):
    """The layout of a tile in shared memory, with rows of 128 bytes."""
    return gl.NVMMASharedLayout(128, bits, 2)


@jit(do_not_specialize=["rows", "steps"])
def _kernel(
    x, weights, token_scales, scales, grid, out, partials, arrivals, rows, out_features, steps,
    FORM: constexpr, SLABS: constexpr, ROWS: constexpr, STAGES: constexpr, REGISTERS: constexpr,
    EARLY: constexpr, AHEAD: constexpr, CLAMPED: constexpr,
):  # fmt: skip
    """A program: two to four warp groups, each of which multiplies by its own slabs, and the producer (`_bring`)."""
    S1: constexpr = SLABS[0]  # where the slabs of each warp group begin
    S2: constexpr = S1 + SLABS[1]
    S3: constexpr = S2 + SLABS[2] if len(SLABS) > 2 else S2
    TOTAL: constexpr = S3 + SLABS[3] if len(SLABS) > 3 else S3
    # In fp16, two tiles of 64 inputs make the activations of a step.
    HALVES: constexpr = 2 if FORM == W4A16 else 1
    x_tiles = gl.allocate_shared_memory(x.dtype, [STAGES * HALVES, x.block_shape[0], x.block_shape[1]], x.layout)
    tiles: gl.constexpr = [STAGES * TOTAL, weights.block_shape[0], weights.block_shape[1]]
    weight_tiles = gl.allocate_shared_memory(weights.dtype, tiles, weights.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    used = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(used.index(stage), count=len(SLABS))
    split, splits = gl.program_id(1), gl.num_programs(1)
    first, end = split * steps // splits, (split + 1) * steps // splits
    shared = (x_tiles, weight_tiles, ready, used)
    result = (token_scales, scales, grid, out, partials, arrivals, rows, out_features)
    if len(SLABS) == 2:
        gl.warp_specialize(
            [
                (_multiply, (shared, result, first, end, 0, S1, FORM, TOTAL, ROWS, STAGES, REGISTERS, CLAMPED)),
                (_multiply, (shared, result, first, end, S1, S2, FORM, TOTAL, ROWS, STAGES, REGISTERS, CLAMPED)),
                (_bring, (x, weights, grid, shared, out_features, first, end, FORM, TOTAL, ROWS, STAGES, EARLY, AHEAD)),
            ],
            [4, 1],
            [REGISTERS, 24],
        )
    elif len(SLABS) == 3:
        gl.warp_specialize(
            [
                (_multiply, (shared, result, first, end, 0, S1, FORM, TOTAL, ROWS, STAGES, REGISTERS, CLAMPED)),
                (_multiply, (shared, result, first, end, S1, S2, FORM, TOTAL, ROWS, STAGES, REGISTERS, CLAMPED)),
                (_multiply, (shared, result, first, end, S2, S3, FORM, TOTAL, ROWS, STAGES, REGISTERS, CLAMPED)),
                (_bring, (x, weights, grid, shared, out_features, first, end, FORM, TOTAL, ROWS, STAGES, EARLY, AHEAD)),
            ],
            [4, 4, 1],
            [REGISTERS, REGISTERS, 24],
        )
    else:
        gl.warp_specialize(
            [
                (_multiply, (shared, result, first, end, 0, S1, FORM, TOTAL, ROWS, STAGES, REGISTERS, CLAMPED)),
                (_multiply, (shared, result, first, end, S1, S2, FORM, TOTAL, ROWS, STAGES, REGISTERS, CLAMPED)),
                (_multiply, (shared, result, first, end, S2, S3, FORM, TOTAL, ROWS, STAGES, REGISTERS, CLAMPED)),
                (_multiply, (shared, result, first, end, S3, TOTAL, FORM, TOTAL, ROWS, STAGES, REGISTERS, CLAMPED)),
                (_bring, (x, weights, grid, shared, out_features, first, end, FORM, TOTAL, ROWS, STAGES, EARLY, AHEAD)),
            ],
            [4, 4, 4, 1],
            [REGISTERS, REGISTERS, REGISTERS, 24],
        )


@jit
def _bring(
    x, weights, grid, shared, out_features, first, end,
    FORM: constexpr, TOTAL: constexpr, ROWS: constexpr, STAGES: constexpr, EARLY: constexpr, AHEAD: constexpr,
):  # fmt: skip
    """The producer: fill the stages in turn, each as soon as all warp groups have used it."""
    GROUPED: constexpr = FORM >= QQQ_GROUP
    x_tiles, weight_tiles, ready, used = shared
    count = end - first
    for i in gl.static_range(EARLY):
        if i < count:
            _bring_weights(weights, out_features, first + i, weight_tiles, ready, i, FORM, TOTAL, ROWS)
    if GROUPED:
        pairs = gl.program_id(0) * (TOTAL * 32)  # the first of this program's pairs of outputs
        size = gl.minimum(TOTAL * 32, out_features // 2 - pairs) * 4
        grid += pairs
        for i in gl.static_range(AHEAD):
            _prefetch(grid + (first + gl.minimum(i, count - 1)) * (out_features // 2), size)
    wait_for_previous(True)
    for i in range(0, count):
        stage = i % STAGES
        mbarrier.wait(used.index(stage), (i // STAGES + 1) & 1)
        if i >= EARLY:
            _bring_weights(weights, out_features, first + i, weight_tiles, ready, stage, FORM, TOTAL, ROWS)
        if FORM == W4A16:
            for half in gl.static_range(2):
                at = [0, (first + i) * 128 + half * 64]
                tma.async_copy_global_to_shared(x, at, ready.index(stage), x_tiles.index(stage * 2 + half))
        else:
            tma.async_copy_global_to_shared(x, [0, (first + i) * 128], ready.index(stage), x_tiles.index(stage))
        if GROUPED:
            _prefetch(grid + (first + gl.minimum(i + AHEAD, count - 1)) * (out_features // 2), size)


@jit
def _bring_weights(
    weights, out_features, step, weight_tiles, ready, stage, FORM: constexpr, TOTAL: constexpr, ROWS: constexpr
):
    """Ask for a step's codes: packed ones come in tiles of 16 outputs, eight rows of 128 bytes each."""
    UNPACKED: constexpr = FORM <= FP8
    # Bytes, those of the activations included.
    mbarrier.expect(ready.index(stage), TOTAL * (8192 if UNPACKED else 4096) + ROWS * (256 if FORM == W4A16 else 128))
    for slab in gl.static_range(TOTAL):
        if UNPACKED:
            at = [(gl.program_id(0) * TOTAL + slab) * 64, step * 128]
        else:
            at = [step * (out_features // 2) + (gl.program_id(0) * TOTAL + slab) * 32, 0]
        to = weight_tiles.index(stage * TOTAL + slab)
        tma.async_copy_global_to_shared(weights, at, ready.index(stage), to)


@jit
def _multiply(
    shared, result, first, end, BEGIN: constexpr, END: constexpr,
    FORM: constexpr, TOTAL: constexpr, ROWS: constexpr, STAGES: constexpr, REGISTERS: constexpr,
    CLAMPED: constexpr,
):  # fmt: skip
    """A warp group: the sums of slabs BEGIN to END over this program's steps, and what they make."""
    SLABS: constexpr = END - BEGIN
    FLOATS: constexpr = FORM == FP8 or FORM >= FP8_GROUP
    GROUPED: constexpr = FORM >= QQQ_GROUP
    BY_MMA: constexpr = ROWS == 8 and FORM > FP8 and FORM != FP8_GROUP
    SUMS: constexpr = gl.NVMMADistributedLayout(
        [2, 0] if BY_MMA else [3, 0], [4, 1], [16, 8] if BY_MMA else [16, ROWS, 16 if FORM == W4A16 else 32]
    )
    # A warp has a tile of 16 outputs, a lane its 32 bytes (see `int4`), by words or by bytes.
    if FORM == W4A16:
        CODES: constexpr = gl.DistributedLinearLayout(
            [[0, 1], [0, 2], [0, 4]], [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]], [[8, 0], [16, 0]], [], [32, 32]
        )
    else:
        CODES: constexpr = gl.DistributedLinearLayout(
            [[0, 1], [0, 2], [0, 4], [0, 8], [0, 16]], [[0, 32], [0, 64], [1, 0], [2, 0], [4, 0]],
            [[8, 0], [16, 0]], [], [32, 128],
        )  # fmt: skip
    x_tiles, weight_tiles, ready, used = shared
    token_scales, scales, grid, out, partials, arrivals, rows, out_features = result
    pair = (gl.program_id(0) * TOTAL + BEGIN) * 32 + gl.arange(0, 32, gl.SliceLayout(1, CODES))
    pairs = out_features // 2
    # Triton knows no (*sums, ...), which RUF005 asks for.
    sums, numbers = (), ()  # of each slab: the sums, and what its group or its channels have
    for slab in gl.static_range(SLABS):
        sums = sums + (gl.full((64, ROWS), 0, gl.float32 if FLOATS else gl.int32, SUMS),)  # noqa: RUF005
        if GROUPED:
            at = grid + first * pairs + pair + slab * 32
            numbers = numbers + (gl.load(at, mask=pair + slab * 32 < pairs, other=0),)  # noqa: RUF005
        elif FORM == QOQ:
            numbers = numbers + (zero_points(grid, pair + slab * 32, out_features),)  # noqa: RUF005
        else:
            numbers = numbers + (0,)  # noqa: RUF005
    for i in range(0, end - first):
        stage = i % STAGES
        following = numbers
        mbarrier.wait(ready.index(stage), (i // STAGES) & 1)
        if GROUPED:
            at, following = grid + (first + gl.minimum(i + 1, end - first - 1)) * pairs + pair, ()
            for slab in gl.static_range(SLABS):
                following = following + (gl.load(at + slab * 32, mask=pair + slab * 32 < pairs, other=0),)  # noqa: RUF005
        if FORM == W4A16:
            sums = _add_halves(sums, numbers, x_tiles, weight_tiles, stage, BEGIN, TOTAL, ROWS, REGISTERS, CODES, SUMS)
        else:
            sums = _add_bytes(
                sums, numbers, x_tiles, weight_tiles, stage, FORM, BEGIN, TOTAL, ROWS, CLAMPED, CODES, SUMS
            )
        numbers = following
        mbarrier.arrive(used.index(stage), count=1)
    for slab in gl.static_range(SLABS):
        tile = gl.program_id(0) * TOTAL + BEGIN + slab
        _finish(
            sums[slab],
            tile,
            token_scales,
            scales,
            out,
            partials,
            arrivals,
            rows,
            out_features,
            FORM,
            ROWS,
            SUMS,
        )


@jit
def _add_halves(
    sums, scales, x_tiles, weight_tiles, stage,
    BEGIN: constexpr, TOTAL: constexpr, ROWS: constexpr, REGISTERS: constexpr, CODES: constexpr, SUMS: constexpr,
):  # fmt: skip
    """The sums [64, ROWS] of each slab with a step of w4a16 more. scales: pairs of each slab."""
    SLABS: constexpr = len(sums)
    SCALED_SUMS: constexpr = ROWS <= 16
    x0, x1 = x_tiles.index(stage * 2).permute((1, 0)), x_tiles.index(stage * 2 + 1).permute((1, 0))
    if ROWS == 8:
        x0, x1 = x0.load(gl.DotOperandLayout(1, SUMS, 2)), x1.load(gl.DotOperandLayout(1, SUMS, 2))
    new_sums = ()
    for slab in gl.static_range(SLABS):
        codes = weight_tiles.index(stage * TOTAL + BEGIN + slab).load(CODES)
        codes0, codes1 = halves_of_inputs(codes)
        factors = () if SCALED_SUMS else factors_of(scales[slab], codes)
        before = gl.full((64, ROWS), 0, gl.float32, SUMS) if SCALED_SUMS else sums[slab]
        weights = to_fp16(codes0, factors, SUMS)
        if ROWS == 8:
            products = mma_v2(to_fp16(codes1, factors, SUMS), x1, mma_v2(weights, x0, before))
        else:
            products = warpgroup_mma(weights, x0, before, use_acc=not SCALED_SUMS, is_async=True)
            # The second half is widened while the tensor cores multiply the first, if there are registers for both.
            if SLABS * ROWS > REGISTERS:
                products = warpgroup_mma_wait(0, deps=[products])
            products = warpgroup_mma(to_fp16(codes1, factors, SUMS), x1, products, is_async=True)
            products = warpgroup_mma_wait(0, deps=[products])
        if SCALED_SUMS:
            products = sums[slab] + products * per_output(scales[slab], SUMS)
        new_sums = new_sums + (products,)  # noqa: RUF005
    return new_sums


@jit
def _add_bytes(
    sums, numbers, x_tiles, weight_tiles, stage,
    FORM: constexpr, BEGIN: constexpr, TOTAL: constexpr, ROWS: constexpr, CLAMPED: constexpr, CODES: constexpr,
    SUMS: constexpr,
):  # fmt: skip
    """The sums [64, ROWS] of each slab with a step of 8-bit products more. Tensor cores add e4m3 with fewer bits than
    float32 has, so the sum of a step begins anew. numbers: of each slab's groups or channels."""
    SLABS: constexpr = len(sums)
    BY_MMA: constexpr = ROWS == 8 and FORM > FP8 and FORM != FP8_GROUP
    INTEGERS: constexpr = FORM != FP8 and FORM != FP8_GROUP
    x = x_tiles.index(stage).permute((1, 0))
    if BY_MMA:
        x = x.load(gl.DotOperandLayout(1, SUMS, 4))
    products, new_sums = (), ()
    for slab in gl.static_range(SLABS):
        tile = weight_tiles.index(stage * TOTAL + BEGIN + slab)
        weights = tile if FORM <= FP8 else to_bytes(tile.load(CODES), numbers[slab], FORM, CLAMPED, SUMS)
        before = sums[slab] if INTEGERS else gl.full((64, ROWS), 0, gl.float32, SUMS)
        if BY_MMA:
            new_sums = new_sums + (mma_v2(weights, x, before),)  # noqa: RUF005
        else:
            products = products + (warpgroup_mma(weights, x, before, use_acc=INTEGERS, is_async=True),)  # noqa: RUF005
    if not BY_MMA:
        for slab in gl.static_range(SLABS):
            total = warpgroup_mma_wait(SLABS - 1 - slab, deps=[products[slab]])
            if FORM == FP8:
                total = sums[slab] + total
            elif FORM == FP8_GROUP:
                total = sums[slab] + total * (per_output(numbers[slab], SUMS) * 512)
            new_sums = new_sums + (total,)  # noqa: RUF005
    return new_sums


@jit
def _finish(
    sums, tile, token_scales, scales, out, partials, arrivals, rows, out_features,
    FORM: constexpr, ROWS: constexpr, SUMS: constexpr,
):  # fmt: skip
    """Store a slab's sums [64, ROWS]; where inputs are split, the last of its programs adds all up, in their order."""
    output, row = gl.arange(0, 64, gl.SliceLayout(1, SUMS)), gl.arange(0, ROWS, gl.SliceLayout(0, SUMS))
    last = True
    if partials is not None:
        own, splits = gl.program_id(1), gl.num_programs(1)
        place = partials + tile * (splits * (64 * ROWS)) + output[:, None] * ROWS + row[None, :]
        gl.store(place + own * (64 * ROWS), sums)
        barrier()  # all threads' stores come before the arrival of the program
        last = gl.atomic_add(arrivals + tile, 1, sem="acq_rel") == splits - 1
        if last:
            gl.store(arrivals + tile, 0)
            total = gl.full((64, ROWS), 0, sums.dtype, SUMS)
            for split in range(splits):
                if split == own:
                    total += sums
                else:
                    total += gl.load(place + split * (64 * ROWS), cache_modifier=".cg")
            sums = total
    if last:
        output += tile * 64
        if FORM == QQQ:
            sums = sums >> 4  # exact: every weight was sixteen times too large
        result = sums.to(gl.float32)
        if FORM != W4A16:
            # Written by a kernel in front: not through the L1 cache, which may still have what was there before.
            token_scale = gl.load(token_scales + row, mask=row < rows, other=0, cache_modifier=".cg")
            result = result * token_scale[None, :]
        if scales is not None:
            scale = gl.load(scales + output, mask=output < out_features, other=0).to(gl.float32)
            result = result * scale[:, None]
        mask = (row[None, :] < rows) & (output[:, None] < out_features)
        gl.store(out + row[None, :] * out_features + output[:, None], result.to(out.dtype.element_ty), mask=mask)


@jit
def _prefetch(address, size):
    """As `launch.prefetch`, by a warp's first lane."""
    gl.inline_asm_elementwise(
        """{
        .reg .pred first; .reg .u32 lane;
        mov.u32 lane, %laneid; setp.eq.u32 first, lane, 0;
        @first cp.async.bulk.prefetch.L2.global [$1], $2;
        mov.u32 $0, 0;
        }""",
        "=r,l,r", [address.to(gl.int64), size], dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip
