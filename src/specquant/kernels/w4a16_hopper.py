"""The product of `w4a16` for up to 64 rows on Hopper: warp groups with different tasks, written in Gluon, Triton's
lower level.

With many rows the tensor cores work as long as memory does, and both only overlap where nobody waits for everybody.
So a program fills a multiprocessor alone. One warp, the producer, has the copy engine (TMA) bring weights and
activations into shared memory, some steps ahead, and begins with weights before the previous kernel has ended. Two to
four warp groups multiply: each widens the codes of its own slabs of 64 outputs in its registers and adds to sums that
stay there, while the tensor cores work for the others. Barriers in shared memory say which steps are there, and which
have been used. One program's activations serve up to 448 outputs, so they are seldom read again.

A weight is rounded to fp16 once, (code - 8) * scale, as dequantized checkpoints are: sums need not be scaled. Where
rows are at most 16, a group's sums are fewer than its weights, and are scaled instead, as `w4a16` does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from specquant.errors import SpecquantError
from specquant.kernels.int4 import WORD_TO_FP16
from specquant.kernels.launch import MOST_COUNTERS, arrival_counters, constexpr, wait_for_previous
from specquant.kernels.products import gpu_kind, known, row_tile

try:
    import triton.experimental.gluon.language as gl
    from triton.experimental import gluon
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


SLAB = 64  # outputs of one product of the tensor cores
REGISTERS = {2: 240, 3: 160, 4: 112}  # of a thread that multiplies, by the number of warp groups
EARLY = {16: 4, 32: 2, 64: 2}  # steps of weights that are asked for before the previous kernel has ended, by the rows
AHEAD = 8  # steps by which scales are brought into the L2 cache before they are loaded
WIDEN = constexpr(f"{{{WORD_TO_FP16}}}")
# The codes of a word, times the scales of its outputs g ($5, twice) and g + 8 ($6).
WIDEN_SCALED = constexpr(f"""{{{WORD_TO_FP16}
    mul.rn.f16x2 $0, $0, $5;
    mul.rn.f16x2 $1, $1, $6;
    mul.rn.f16x2 $2, $2, $5;
    mul.rn.f16x2 $3, $3, $6;
}}""")


class WarpGroups(NamedTuple):
    """How a program is cut up: slabs of each warp group that multiplies, splits of the inputs, steps held in memory."""

    slabs: tuple[int, ...]
    splits: int
    stages: int


def recorded(x: torch.Tensor, out_features: int, in_features: int | None = None) -> WarpGroups | None:
    """The tables' choice for a product of x [rows, in] on this card; None where another kernel is faster, or this one
    cannot run. in_features: of the product, where x is what its input is still to be made of."""
    if gl is None or x.dtype != torch.float16 or x.data_ptr() % 16:
        return None
    about = out_features, in_features or x.shape[1], row_tile(len(x)), gpu_kind(x.device), x.device
    numbers = known("w4a16", *about, groups=True)
    return WarpGroups(tuple(numbers[:-2]), *numbers[-2:]) if numbers else None


def w4a16_hopper(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, chosen: WarpGroups) -> torch.Tensor:
    """The launcher: fp16 x [up to 64 rows, in] times the matrix stored as `w4a16` does -> fp16 [rows, out].

    The outputs must be a multiple of 64. Raises SpecquantError where they are not, or the rows or splits are too many.
    """
    (rows, in_features), out_features, tile = x.shape, codes.shape[1] * 16, row_tile(len(x))
    if tile > 64 or out_features % SLAB:
        raise SpecquantError(
            f"warp groups multiply up to 64 rows by a multiple of 64 outputs, not {rows} by {out_features}"
        )
    slabs, splits = sum(chosen.slabs), chosen.splits
    columns = -(-out_features // (slabs * SLAB))
    if splits > in_features // 128:
        raise SpecquantError(f"{in_features} inputs cannot be split in {splits}: each share needs 128")
    if splits > 1 and columns * slabs > MOST_COUNTERS:
        raise SpecquantError(f"{out_features} outputs are too many to split their inputs")
    out = torch.empty(rows, out_features, dtype=x.dtype, device=x.device)
    partials = None
    if splits > 1:
        partials = torch.empty(columns * slabs * splits * SLAB * tile, dtype=torch.float32, device=x.device)
    words = codes.view(torch.int32).view(-1, 32)  # a row has the words of four lanes, eight rows a tile of 16 outputs
    _kernel[(columns, splits)](
        TensorDescriptor.from_tensor(x.contiguous(), [tile, 64], gl.NVMMASharedLayout(128, 16, 2)),
        TensorDescriptor.from_tensor(words, [32, 32], gl.NVMMASharedLayout(128, 32, 2)),
        scales.view(torch.int32), out, partials, arrival_counters(x.device), rows, out_features, in_features,
        SLABS=chosen.slabs, ROWS=tile, STAGES=chosen.stages, SPLITS=splits, REGISTERS=REGISTERS[len(chosen.slabs)],
        EARLY=min(EARLY[tile], chosen.stages), AHEAD=AHEAD, num_warps=4, launch_pdl=True,
    )  # fmt: skip
    return out


@jit(do_not_specialize=["rows"])
def _kernel(
    x, words, scales, out, partials, arrivals, rows, out_features, in_features,
    SLABS: constexpr, ROWS: constexpr, STAGES: constexpr, SPLITS: constexpr, REGISTERS: constexpr,
    EARLY: constexpr, AHEAD: constexpr,
):  # fmt: skip
    S1: constexpr = SLABS[0]  # where the slabs of each warp group begin
    S2: constexpr = S1 + SLABS[1]
    S3: constexpr = S2 + SLABS[2] if len(SLABS) > 2 else S2
    TOTAL: constexpr = S3 + SLABS[3] if len(SLABS) > 3 else S3
    # Two tiles of 64 inputs make the activations of a step.
    x_tiles = gl.allocate_shared_memory(gl.float16, [STAGES * 2, ROWS, 64], gl.NVMMASharedLayout(128, 16, 2))
    word_tiles = gl.allocate_shared_memory(gl.int32, [STAGES * TOTAL, 32, 32], gl.NVMMASharedLayout(128, 32, 2))
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    used = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(used.index(stage), count=len(SLABS))
    steps = in_features // 128
    first, end = gl.program_id(1) * steps // SPLITS, (gl.program_id(1) + 1) * steps // SPLITS
    shared = (x_tiles, word_tiles, ready, used)
    result = (scales, out, partials, arrivals, rows, out_features)
    if len(SLABS) == 2:
        gl.warp_specialize(
            [
                (_multiply, (shared, result, first, end, 0, S1, TOTAL, ROWS, STAGES, SPLITS, REGISTERS)),
                (_multiply, (shared, result, first, end, S1, S2, TOTAL, ROWS, STAGES, SPLITS, REGISTERS)),
                (_bring, (x, words, scales, shared, out_features, first, end, TOTAL, ROWS, STAGES, EARLY, AHEAD)),
            ],
            [4, 1],
            [REGISTERS, 24],
        )
    elif len(SLABS) == 3:
        gl.warp_specialize(
            [
                (_multiply, (shared, result, first, end, 0, S1, TOTAL, ROWS, STAGES, SPLITS, REGISTERS)),
                (_multiply, (shared, result, first, end, S1, S2, TOTAL, ROWS, STAGES, SPLITS, REGISTERS)),
                (_multiply, (shared, result, first, end, S2, S3, TOTAL, ROWS, STAGES, SPLITS, REGISTERS)),
                (_bring, (x, words, scales, shared, out_features, first, end, TOTAL, ROWS, STAGES, EARLY, AHEAD)),
            ],
            [4, 4, 1],
            [REGISTERS, REGISTERS, 24],
        )
    else:
        gl.warp_specialize(
            [
                (_multiply, (shared, result, first, end, 0, S1, TOTAL, ROWS, STAGES, SPLITS, REGISTERS)),
                (_multiply, (shared, result, first, end, S1, S2, TOTAL, ROWS, STAGES, SPLITS, REGISTERS)),
                (_multiply, (shared, result, first, end, S2, S3, TOTAL, ROWS, STAGES, SPLITS, REGISTERS)),
                (_multiply, (shared, result, first, end, S3, TOTAL, TOTAL, ROWS, STAGES, SPLITS, REGISTERS)),
                (_bring, (x, words, scales, shared, out_features, first, end, TOTAL, ROWS, STAGES, EARLY, AHEAD)),
            ],
            [4, 4, 4, 1],
            [REGISTERS, REGISTERS, REGISTERS, 24],
        )


@jit
def _bring(
    x, words, scales, shared, out_features, first, end,
    TOTAL: constexpr, ROWS: constexpr, STAGES: constexpr, EARLY: constexpr, AHEAD: constexpr,
):  # fmt: skip
    """The producer: fill the stages in turn, each as soon as all warp groups have used it."""
    x_tiles, word_tiles, ready, used = shared
    pairs = gl.program_id(0) * (TOTAL * 32)  # the first of this program's pairs of outputs
    size = gl.minimum(TOTAL * 32, out_features // 2 - pairs) * 4
    scales += pairs
    count = end - first
    for i in gl.static_range(EARLY):
        if i < count:
            _bring_words(words, (first + i) * (out_features // 2) + pairs, word_tiles, ready, i, TOTAL, ROWS)
    for i in gl.static_range(AHEAD):
        _prefetch(scales + (first + gl.minimum(i, count - 1)) * (out_features // 2), size)
    wait_for_previous(True)
    for i in range(0, count):
        stage = i % STAGES
        mbarrier.wait(used.index(stage), (i // STAGES + 1) & 1)
        if i >= EARLY:
            _bring_words(words, (first + i) * (out_features // 2) + pairs, word_tiles, ready, stage, TOTAL, ROWS)
        for half in gl.static_range(2):
            at = [0, (first + i) * 128 + half * 64]
            tma.async_copy_global_to_shared(x, at, ready.index(stage), x_tiles.index(stage * 2 + half))
        _prefetch(scales + (first + gl.minimum(i + AHEAD, count - 1)) * (out_features // 2), size)


@jit
def _bring_words(words, row, word_tiles, ready, stage, TOTAL: constexpr, ROWS: constexpr):
    """Ask for a step's codes, which come in tiles of 16 outputs, eight rows of 32 words each."""
    mbarrier.expect(ready.index(stage), TOTAL * 4096 + ROWS * 256)  # bytes, those of the activations included
    for slab in gl.static_range(TOTAL):
        to = word_tiles.index(stage * TOTAL + slab)
        tma.async_copy_global_to_shared(words, [row + slab * 32, 0], ready.index(stage), to)


@jit
def _multiply(
    shared, result, first, end,
    BEGIN: constexpr, END: constexpr, TOTAL: constexpr, ROWS: constexpr, STAGES: constexpr, SPLITS: constexpr,
    REGISTERS: constexpr,
):  # fmt: skip
    """A warp group: the sums of slabs BEGIN to END over this program's steps, and what they make."""
    SLABS: constexpr = END - BEGIN
    SCALED_SUMS: constexpr = ROWS <= 16
    SUMS: constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    # A warp has a tile of 16 outputs, a lane the eight words of its fragments (see `int4`).
    WORDS: constexpr = gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4]], [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]], [[8, 0], [16, 0]], [], [32, 32]
    )
    x_tiles, word_tiles, ready, used = shared
    scales, out, partials, arrivals, rows, out_features = result
    output = gl.program_id(0) * (TOTAL * 64) + BEGIN * 64
    pair = output // 2 + gl.arange(0, 32, gl.SliceLayout(1, WORDS))
    pairs = out_features // 2
    # Triton knows no (*sums, ...), which RUF005 asks for.
    sums, scale = (), ()
    for slab in gl.static_range(SLABS):
        sums = sums + (gl.full((64, ROWS), 0, gl.float32, SUMS),)  # noqa: RUF005
        at = scales + first * pairs + pair + slab * 32
        scale = scale + (gl.load(at, mask=pair + slab * 32 < pairs, other=0),)  # noqa: RUF005
    for i in range(0, end - first):
        stage = i % STAGES
        following = scales + (first + gl.minimum(i + 1, end - first - 1)) * pairs + pair
        new_sums, new_scale = (), ()
        mbarrier.wait(ready.index(stage), (i // STAGES) & 1)
        for slab in gl.static_range(SLABS):
            codes = word_tiles.index(stage * TOTAL + BEGIN + slab).load(WORDS)
            codes0, codes1 = _halves_of_inputs(codes)
            factors = () if SCALED_SUMS else _factors(scale[slab], codes)
            before = gl.full((64, ROWS), 0, gl.float32, SUMS) if SCALED_SUMS else sums[slab]
            x0 = x_tiles.index(stage * 2).permute((1, 0))
            # The second half is widened while the tensor cores multiply the first, if there are registers for both.
            weights = _widen(codes0, factors, SUMS)
            products = warpgroup_mma(weights, x0, before, use_acc=not SCALED_SUMS, is_async=True)
            if SLABS * ROWS > REGISTERS:
                products = warpgroup_mma_wait(0, deps=[products])
            weights = _widen(codes1, factors, SUMS)
            products = warpgroup_mma(weights, x_tiles.index(stage * 2 + 1).permute((1, 0)), products, is_async=True)
            new_scale = new_scale + (gl.load(following + slab * 32, mask=pair + slab * 32 < pairs, other=0),)  # noqa: RUF005
            products = warpgroup_mma_wait(0, deps=[products])
            if SCALED_SUMS:
                products = sums[slab] + products * _per_output(scale[slab], SUMS)
            new_sums = new_sums + (products,)  # noqa: RUF005
        sums, scale = new_sums, new_scale
        mbarrier.arrive(used.index(stage), count=1)
    for slab in gl.static_range(SLABS):
        tile = gl.program_id(0) * TOTAL + BEGIN + slab
        _finish(sums[slab], tile, out, partials, arrivals, rows, out_features, ROWS, SPLITS, SUMS)


@jit
def _finish(
    sums, tile, out, partials, arrivals, rows, out_features, ROWS: constexpr, SPLITS: constexpr, SUMS: constexpr
):
    """Store a slab's sums [64, ROWS]; where inputs are split, the last of its programs adds all up, in their order."""
    output, row = gl.arange(0, 64, gl.SliceLayout(1, SUMS)), gl.arange(0, ROWS, gl.SliceLayout(0, SUMS))
    last = True
    if SPLITS > 1:
        own = gl.program_id(1)
        place = partials + tile * (SPLITS * 64 * ROWS) + output[:, None] * ROWS + row[None, :]
        gl.store(place + own * (64 * ROWS), sums)
        barrier()  # all threads' stores come before the arrival of the program
        last = gl.atomic_add(arrivals + tile, 1, sem="acq_rel") == SPLITS - 1
        if last:
            gl.store(arrivals + tile, 0)
            total = gl.full((64, ROWS), 0, gl.float32, SUMS)
            for split in range(SPLITS):
                if split == own:
                    total += sums
                else:
                    total += gl.load(place + split * (64 * ROWS), cache_modifier=".cg")
            sums = total
    if last:
        output += tile * 64
        mask = (row[None, :] < rows) & (output[:, None] < out_features)
        gl.store(out + row[None, :] * out_features + output[:, None], sums.to(out.dtype.element_ty), mask=mask)


@jit
def _halves_of_inputs(codes):
    """[32, 32] of a slab -> twice [32, 4, 4]: the words of inputs 0 to 63, and of 64 to 127."""
    return gl.split(gl.permute(gl.reshape(codes, (32, 4, 2, 4)), (0, 1, 3, 2)))


@jit
def _factors(pairs, codes):
    """Pairs of scales [32] -> for half of a slab's words [32, 4, 4] those of outputs g and of g + 8, each twice."""
    low, high = _both_halves(pairs)
    low, _ = gl.broadcast(gl.expand_dims(low, 1), codes)
    high, _ = gl.broadcast(gl.expand_dims(high, 1), codes)
    low, _ = _halves_of_inputs(low)
    high, _ = _halves_of_inputs(high)
    return low, high


@jit
def _per_output(pairs, SUMS: constexpr):
    """Pairs of scales [32] -> float32 [64, 1], one for each output of a slab."""
    scale = gl.permute(gl.reshape(_halves(pairs), (4, 8, 2)), (0, 2, 1))
    scale = gl.convert_layout(gl.reshape(scale, (64,)), gl.SliceLayout(1, SUMS), assert_trivial=True)
    return gl.expand_dims(scale.to(gl.float32), 1)


@jit
def _widen(codes, factors, SUMS: constexpr):
    """Words [32, 4, 4] -> weights [64, 64], already where the tensor cores want them, times `_factors`, if any."""
    pairs = gl.inline_asm_elementwise(
        WIDEN if len(factors) == 0 else WIDEN_SCALED,
        "=&r,=&r,=&r,=&r,r" if len(factors) == 0 else "=&r,=&r,=&r,=&r,r,r,r", (codes,) + factors,  # noqa: RUF005
        dtype=(gl.int32, gl.int32, gl.int32, gl.int32), is_pure=True, pack=1,
    )  # fmt: skip
    weights = gl.join(gl.join(_halves(pairs[0]), _halves(pairs[1])), gl.join(_halves(pairs[2]), _halves(pairs[3])))
    # tile, lane / 4, lane % 4, word | input + 1, output + 8, input + 8
    weights = gl.permute(gl.reshape(weights, (4, 8, 4, 4, 2, 2, 2)), (0, 5, 1, 3, 6, 2, 4))
    return gl.convert_layout(gl.reshape(weights, (64, 64)), gl.DotOperandLayout(0, SUMS, 2), assert_trivial=True)


@jit
def _halves(pair):
    low, high = (pair & 0xFFFF).to(gl.int16), (pair >> 16).to(gl.int16)
    return gl.join(low.to(gl.float16, bitcast=True), high.to(gl.float16, bitcast=True))


@jit
def _both_halves(pair):
    """A pair of 16-bit numbers -> the low one twice, the high one twice."""
    return gl.inline_asm_elementwise(
        "prmt.b32 $0, $2, $2, 0x1010; prmt.b32 $1, $2, $2, 0x3232;",
        "=&r,=&r,r", [pair], dtype=(gl.int32, gl.int32), is_pure=True, pack=1,
    )  # fmt: skip


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
