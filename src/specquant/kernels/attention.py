"""Attention of a few query rows to a cached prefix and to their own ancestors in a draft tree.

The first kernel splits the sequence over blocks (Flash-Decoding, Dao et al. 2023; within a block, online softmax as in
FlashAttention-2, arXiv 2307.08691). A block takes the query heads that share a key-value head, of several queries, as
the rows of one matrix product. The second kernel joins the parts of each row, in the order of the sequence, so the same
inputs give the same bits.

Row invariance. By default the parts are as long as fills the GPU, and a draft's keys come in the order of their slots,
so a row's rounding depends on its surroundings. With `row_invariant` it depends on nothing but the row's own query and
keys: parts are chunks of fixed positions, tiles have one size, and from the chunk on in which the prefix ends, each
query has a block of its own that gathers its path's keys in the order of their positions. A row of a tree then has the
very bits that decoding its path token by token gives.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from specquant.kernels.launch import (
    TensorDescriptor,
    jit,
    multiprocessors,
    on_gpu,
    overlapping,
    prefetch,
    tl,
    triton,
    wait_for_previous,
)

MOST_ROWS = 128  # more is a prefill, which torch's own attention does well
HEAD_DIMS = (64, 128)
CHUNK = 512  # positions in a part, where rows are invariant
MOST_PARTS = 32  # the second kernel loads all at once
# Keys of a block that are brought into the L2 cache while the previous kernel still runs: its first step. More of them
# stand in the way of what the block asks for itself.
PREFETCHED = 64
LOWEST = -1e30  # below every score; finite, so that rows that see nothing in a part need no exception


def tree_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    prefix_length: int | torch.Tensor,
    mask: torch.Tensor,
    row_invariant: bool = False,
    next_early: bool = False,
) -> torch.Tensor:
    """Grouped-query attention: every row sees the whole prefix, and of the slots behind it those that its mask names.

    query: [rows, heads, head_dim]. keys, values: [kv_heads, slots, head_dim], a cache of which the first
    `prefix_length` slots hold the prefix and the next `mask.shape[1]` the draft; a device tensor of one integer keeps
    the host out, so that the launch can be captured in a CUDA graph. mask: [rows, draft slots] bool. Returns [rows,
    heads, head_dim] in the query's dtype.

    row_invariant: no row's bits depend on the other rows (see above). A row must then see its path: its own slot and
    its ancestors', which lie in the order of their positions. next_early: as of `overlapping`.
    """
    fits = query.dtype in (torch.float16, torch.bfloat16) and query.shape[2] in HEAD_DIMS and len(query) <= MOST_ROWS
    if on_gpu(query) and fits:
        return tree_attention_triton(query, keys, values, prefix_length, mask, row_invariant, next_early=next_early)
    return tree_attention_reference(query, keys, values, prefix_length, mask, row_invariant)


def tree_attention_reference(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    prefix_length: int | torch.Tensor,
    mask: torch.Tensor,
    row_invariant: bool = False,
) -> torch.Tensor:
    """What `tree_attention` computes, by torch; of row invariance it knows nothing."""
    rows, draft_slots = mask.shape
    prefix_length = int(prefix_length)
    used = prefix_length + draft_slots
    visible = F.pad(mask, (prefix_length, 0), value=True) if rows > 1 or draft_slots > 1 else None
    output = F.scaled_dot_product_attention(
        query.transpose(0, 1)[None], keys[None, :, :used], values[None, :, :used], attn_mask=visible, enable_gqa=True
    )
    return output[0].transpose(0, 1)


class Tiling(NamedTuple):
    """block_rows: rows of a tile, each one head of one query. block_keys: keys of one step. parts: of the sequence.

    draft_apart: the last part is the draft, with what the prefix has behind its last whole step.
    """

    block_rows: int
    block_keys: int
    parts: int
    warps: int
    stages: int
    draft_apart: bool = False


def tiling(rows: int, group: int, kv_heads: int, row_invariant: bool, device: torch.device) -> Tiling:
    """The tiling for `rows` queries of `group` heads per key-value head, as measured on an H100 and an H200.

    Where rows are not invariant, the parts fill the GPU. Few rows: one block of a long part on each multiprocessor, and
    room for those of the draft beside them. Many rows: two blocks on each, of which one computes while the other waits.
    Hopper's matrix units take 64 rows; where there are at most 16, the softmax of what is missing costs more than that.
    """
    padded = triton.next_power_of_2(group)
    block_rows = 16 if rows * padded <= 16 and not row_invariant else max(64, padded)
    if row_invariant:
        return Tiling(block_rows, 64, 0, 4, 3)
    tiles, available = triton.cdiv(rows, block_rows // padded) * kv_heads, multiprocessors(device)
    if rows * padded > 128:
        return Tiling(block_rows, 64, max(1, min(MOST_PARTS, 2 * available // tiles)), 4, 3)
    return Tiling(block_rows, 64, max(2, min(MOST_PARTS, available // tiles + 1)), 4, 3, draft_apart=True)


def tree_attention_triton(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    prefix_length: int | torch.Tensor,
    mask: torch.Tensor,
    row_invariant: bool = False,
    tiles: Tiling | None = None,
    next_early: bool = False,
) -> torch.Tensor:
    """`tree_attention` by two launches; fp16 or bf16, head_dim 64 or 128."""
    if not (keys.is_contiguous() and values.is_contiguous()):
        raise ValueError("the keys and values of a layer must be contiguous")
    rows, heads, head_dim = query.shape
    kv_heads, slots, _ = keys.shape
    mask = mask.contiguous()
    group, draft_slots = heads // kv_heads, mask.shape[1]
    tiles = tiles or tiling(rows, group, kv_heads, row_invariant, query.device)
    padded = triton.next_power_of_2(group)
    block_queries = tiles.block_rows // padded
    # The chunks that the draft can lie in: it may begin anywhere in the first.
    tail_parts = triton.cdiv(draft_slots + CHUNK - 1, CHUNK)
    parts = triton.cdiv(slots, CHUNK) + tail_parts if row_invariant else tiles.parts
    blocks = triton.cdiv(slots, CHUNK) + block_queries * tail_parts if row_invariant else tiles.parts
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    # Parts are as exact as the output: reading and writing them is what many rows wait for.
    part_dtype = torch.float32 if row_invariant else query.dtype
    part_outputs = torch.empty(parts, rows, heads, head_dim, dtype=part_dtype, device=query.device)
    part_statistics = torch.empty(2, parts, rows, heads, dtype=torch.float32, device=query.device)
    key_steps, value_steps = (
        TensorDescriptor(x, [kv_heads * slots, head_dim], [head_dim, 1], [tiles.block_keys, head_dim])
        for x in (keys, values)
    )
    shared = dict(
        PREFIX_ON_DEVICE=isinstance(prefix_length, torch.Tensor),
        HEADS=heads,
        HEAD_DIM=head_dim,
        PARTS=tiles.parts,
        CHUNK=CHUNK,
        LOWEST=LOWEST,
        ROW_INVARIANT=row_invariant,
        **overlapping(query.device, next_early),
    )
    _attend_kernel[(triton.cdiv(rows, block_queries), kv_heads, blocks)](
        query.contiguous(),
        keys,
        values,
        key_steps,
        value_steps,
        mask,
        part_outputs,
        *part_statistics,
        prefix_length,
        draft_slots,
        tail_parts,
        rows,
        slots,
        math.log2(math.e) / math.sqrt(head_dim),
        GROUP=group,
        PADDED_GROUP=padded,
        BLOCK_ROWS=tiles.block_rows,
        BLOCK_KEYS=tiles.block_keys,
        BLOCK_DRAFT=triton.next_power_of_2(draft_slots) if row_invariant else 0,
        DRAFT_APART=tiles.draft_apart,
        PREFETCHED=PREFETCHED,
        STAGES=tiles.stages,
        num_warps=tiles.warps,
        **shared,
    )
    join_rows = 8 if rows * heads > 128 else 1
    _join_kernel[(triton.cdiv(rows * heads, join_rows),)](
        part_outputs,
        *part_statistics,
        output,
        prefix_length,
        tail_parts,
        rows,
        ROWS=join_rows,
        GROUP=8 if row_invariant else tiles.parts,
        num_warps=4 if join_rows > 1 else 1,
        **shared,
    )
    return output


@jit
def _attend(query, key, value, visible, peak, total, sums, scale):
    """Take one block of keys into the running softmax, in powers of two, of each row.

    Every operation that could be fused in one place and not in another is written out, so that all copies of this
    function round alike.
    """
    scores = tl.where(visible, tl.dot(query, key.T), float("-inf"))
    higher = tl.maximum(peak, tl.max(scores, 1) * scale)
    weights = tl.exp2(tl.fma(scores, scale, -higher[:, None]))
    shrink = tl.exp2(peak - higher)
    total = tl.fma(total, shrink, tl.sum(weights, 1))
    sums = tl.dot(weights.to(value.dtype), value, sums * shrink[:, None])
    return higher, total, sums


@jit
def _part(part, prefix_length, draft_slots, PARTS: tl.constexpr, BLOCK_KEYS: tl.constexpr, DRAFT_APART: tl.constexpr):
    """Begin and end of a part: an equal share of the steps, or the draft and what the last whole step leaves."""
    used = prefix_length + draft_slots
    SHARES: tl.constexpr = PARTS - DRAFT_APART
    steps = prefix_length // BLOCK_KEYS if DRAFT_APART else tl.cdiv(used, BLOCK_KEYS)
    begin = tl.cdiv(part * steps, SHARES) * BLOCK_KEYS  # the later parts have one step less where they must
    end = tl.minimum(tl.cdiv((part + 1) * steps, SHARES) * BLOCK_KEYS, used)
    return begin, tl.where(part == SHARES, used, end)


@jit(do_not_specialize=["prefix", "draft_slots", "tail_parts", "rows", "slots"])
def _attend_kernel(
    query,  # [rows, HEADS, HEAD_DIM]
    keys,  # [kv_heads, slots, HEAD_DIM]
    values,
    key_steps,  # the same, [kv_heads * slots, HEAD_DIM], by blocks of BLOCK_KEYS
    value_steps,
    mask,  # [rows, draft_slots]
    part_outputs,  # [parts, rows, HEADS, HEAD_DIM]
    part_peaks,  # [parts, rows, HEADS]: the highest score, as a power of two
    part_totals,  # and the sum of 2 ** (score - peak)
    prefix,
    draft_slots,
    tail_parts,
    rows,
    slots,
    scale,
    PREFIX_ON_DEVICE: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PADDED_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_DRAFT: tl.constexpr,
    PARTS: tl.constexpr,
    CHUNK: tl.constexpr,
    LOWEST: tl.constexpr,
    ROW_INVARIANT: tl.constexpr,
    OVERLAPPING: tl.constexpr,
    DRAFT_APART: tl.constexpr,
    PREFETCHED: tl.constexpr,
    STAGES: tl.constexpr,
):
    tile, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    BLOCK_QUERIES: tl.constexpr = BLOCK_ROWS // PADDED_GROUP
    first_slot = kv_head * slots  # of all heads' slots
    keys += kv_head.to(tl.int64) * slots * HEAD_DIM
    values += kv_head.to(tl.int64) * slots * HEAD_DIM
    if OVERLAPPING and not ROW_INVARIANT:  # the prefix may be about to change, but where it lies hardly does
        # Not through the L1 cache, where it would be found again later.
        prefix_length = tl.load(prefix, cache_modifier=".cg").to(tl.int32) if PREFIX_ON_DEVICE else prefix
        begin, end = _part(part, prefix_length, draft_slots, PARTS, BLOCK_KEYS, DRAFT_APART)
        count = tl.minimum(tl.minimum(end, slots) - begin, PREFETCHED)
        if (tile == 0) & (begin >= 0) & (count > 0):
            prefetch(keys + begin * HEAD_DIM, count * (HEAD_DIM * 2))
            prefetch(values + begin * HEAD_DIM, count * (HEAD_DIM * 2))
    # Many rows: blocks of the join that wait beside these, two on each multiprocessor, cost more than their start does.
    wait_for_previous(OVERLAPPING, next_at_once=DRAFT_APART or ROW_INVARIANT)
    prefix_length = tl.load(prefix).to(tl.int32) if PREFIX_ON_DEVICE else prefix
    row = tl.arange(0, BLOCK_ROWS)
    queries, member = tile * BLOCK_QUERIES + row // PADDED_GROUP, row % PADDED_GROUP
    in_tile = (queries < rows) & (member < GROUP)
    head_rows = queries * HEADS + kv_head * GROUP + member  # of [rows, HEADS]
    column = tl.arange(0, HEAD_DIM)
    q = tl.load(query + head_rows[:, None] * HEAD_DIM + column[None, :], mask=in_tile[:, None], other=0.0)

    # Which keys this block attends to, [begin, end), and for which rows.
    stored = in_tile
    if ROW_INVARIANT:
        tail = part - prefix_length // CHUNK
        own = tile * BLOCK_QUERIES + tail // tail_parts  # the query whose path this block gathers
        if (own >= rows) | (tail >= BLOCK_QUERIES * tail_parts):
            return
        node = tl.arange(0, BLOCK_DRAFT)
        in_path = tl.load(mask + own * draft_slots + node, mask=(tail >= 0) & (node < draft_slots), other=0)
        in_path = in_path.to(tl.int32)
        place = tl.where(in_path > 0, tl.cumsum(in_path, 0) - 1, -1)  # of a node in its path
        if tail >= 0:
            part = prefix_length // CHUNK + tail % tail_parts
        begin = part * CHUNK
        end = begin + CHUNK
        if tail >= 0:
            end = tl.minimum(end, prefix_length + tl.sum(in_path, 0))
            stored = in_tile & (queries == own)
    else:
        begin, end = _part(part, prefix_length, draft_slots, PARTS, BLOCK_KEYS, DRAFT_APART)

    peak = tl.full((BLOCK_ROWS,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    sums = tl.zeros((BLOCK_ROWS, HEAD_DIM), tl.float32)

    # Blocks of keys that all rows see whole, then those that reach behind the prefix or this part.
    whole = begin + tl.maximum(tl.minimum(end, prefix_length) - begin, 0) // BLOCK_KEYS * BLOCK_KEYS
    for start in tl.range(begin, whole, BLOCK_KEYS, num_stages=STAGES):
        key, value = key_steps.load([first_slot + start, 0]), value_steps.load([first_slot + start, 0])
        peak, total, sums = _attend(q, key, value, True, peak, total, sums, scale)
    LAST_KEYS: tl.constexpr = BLOCK_KEYS if ROW_INVARIANT else 32  # few registers; but rows that take turns keep steps
    for start in tl.range(whole, end, LAST_KEYS, num_stages=STAGES):
        position = start + tl.arange(0, LAST_KEYS)
        inside = position < end
        if ROW_INVARIANT:
            here = place[None, :] == (position - prefix_length)[:, None]
            slot = tl.where(position < prefix_length, position, prefix_length + tl.sum(tl.where(here, node, 0), 1))
            visible = inside[None, :]
        else:
            slot = position
            drafted = (slot >= prefix_length) & inside
            chosen = tl.load(
                mask + queries[:, None] * draft_slots + (slot - prefix_length)[None, :],
                mask=in_tile[:, None] & drafted[None, :],
                other=0,
            ).to(tl.int1)
            visible = (inside & (slot < prefix_length))[None, :] | chosen
        at = slot[:, None] * HEAD_DIM + column[None, :]
        key = tl.load(keys + at, mask=inside[:, None], other=0.0)
        value = tl.load(values + at, mask=inside[:, None], other=0.0)
        peak, total, sums = _attend(q, key, value, visible, peak, total, sums, scale)

    at = part * rows * HEADS + head_rows
    outputs = sums / tl.maximum(total, 1e-30)[:, None]  # rows that see nothing here have no weight
    part_at = part_outputs + at.to(tl.int64)[:, None] * HEAD_DIM + column[None, :]
    tl.store(part_at, outputs.to(part_outputs.dtype.element_ty), mask=stored[:, None])
    tl.store(part_peaks + at, peak, mask=stored)
    tl.store(part_totals + at, total, mask=stored)


@jit(do_not_specialize=["prefix", "tail_parts", "rows"])
def _join_kernel(
    part_outputs,
    part_peaks,
    part_totals,
    output,  # [rows, HEADS, HEAD_DIM]
    prefix,
    tail_parts,
    rows,
    PREFIX_ON_DEVICE: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PARTS: tl.constexpr,
    CHUNK: tl.constexpr,
    LOWEST: tl.constexpr,
    ROW_INVARIANT: tl.constexpr,
    OVERLAPPING: tl.constexpr,
    ROWS: tl.constexpr,  # of a block, of [rows, HEADS]
    GROUP: tl.constexpr,  # parts that are loaded at once
):
    wait_for_previous(OVERLAPPING, next_at_once=rows * HEADS <= 128)
    parts = PARTS
    if ROW_INVARIANT:
        parts = (tl.load(prefix).to(tl.int32) if PREFIX_ON_DEVICE else prefix) // CHUNK + tail_parts
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, HEAD_DIM)
    peak = tl.full((ROWS,), LOWEST, tl.float32)
    for first in range(0, parts, GROUP):
        for part in tl.static_range(GROUP):
            at, there = _part_of(first + part, parts, row, rows * HEADS)
            peak = tl.maximum(peak, tl.load(part_peaks + at, mask=there, other=LOWEST))
    # No sum is taken across threads, so that rows round alike however many a block has.
    total = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, HEAD_DIM), tl.float32)
    for first in range(0, parts, GROUP):
        for part in tl.static_range(GROUP):
            at, there = _part_of(first + part, parts, row, rows * HEADS)
            part_at = part_outputs + at.to(tl.int64)[:, None] * HEAD_DIM + column[None, :]
            outputs = tl.load(part_at, mask=there[:, None], other=0.0).to(tl.float32)
            part_total = tl.load(part_totals + at, mask=there, other=0.0)
            shrink = tl.exp2(tl.load(part_peaks + at, mask=there, other=LOWEST) - peak)
            total = tl.fma(shrink, part_total, total)
            sums = tl.fma(tl.broadcast_to((shrink * part_total)[:, None], (ROWS, HEAD_DIM)), outputs, sums)
    outputs = (sums / total[:, None]).to(output.dtype.element_ty)
    tl.store(output + row[:, None] * HEAD_DIM + column[None, :], outputs, mask=(row < rows * HEADS)[:, None])


@jit
def _part_of(part, parts, row, rows):
    """Where a part has its values of each row, and whether there are any."""
    return part * rows + row, (part < parts) & (row < rows)
