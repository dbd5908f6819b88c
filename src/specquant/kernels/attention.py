"""Attention of a few query rows to a cached prefix and to their own ancestors in a draft tree.

The kernel splits the sequence over blocks (Flash-Decoding, Dao et al. 2023; within a block, online softmax as in
FlashAttention-2, arXiv 2307.08691). A block takes the query heads that share a key-value head, of several queries, as
the rows of one matrix product. The block that comes last at a counter joins the parts, in the order of the sequence, so
the same inputs give the same bits.

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

from specquant.kernels.launch import arrival_counters, jit, multiprocessors, on_gpu, tl, triton

MOST_ROWS = 128  # more is a prefill, which torch's own attention does well
HEAD_DIMS = (64, 128)
CHUNK = 512  # positions in a part, where rows are invariant
LOWEST = -1e30  # below every score; finite, so that rows that see nothing in a part need no exception


def tree_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    prefix_length: int | torch.Tensor,
    mask: torch.Tensor,
    row_invariant: bool = False,
) -> torch.Tensor:
    """Grouped-query attention: every row sees the whole prefix, and of the slots behind it those that its mask names.

    query: [rows, heads, head_dim]. keys, values: [kv_heads, slots, head_dim], a cache of which the first
    `prefix_length` slots hold the prefix and the next `mask.shape[1]` the draft; a device tensor of one integer keeps
    the host out, so that the launch can be captured in a CUDA graph. mask: [rows, draft slots] bool. Returns [rows,
    heads, head_dim] in the query's dtype.

    row_invariant: no row's bits depend on the other rows (see above). A row must then see its path: its own slot and
    its ancestors', which lie in the order of their positions.
    """
    fits = query.dtype in (torch.float16, torch.bfloat16) and query.shape[2] in HEAD_DIMS and len(query) <= MOST_ROWS
    attend = tree_attention_triton if on_gpu(query) and fits else tree_attention_reference
    return attend(query, keys, values, prefix_length, mask, row_invariant)


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
    """block_rows: rows of a tile, each one head of one query. block_keys: keys of one step. parts: of the sequence."""

    block_rows: int
    block_keys: int
    parts: int
    warps: int
    stages: int


def tiling(rows: int, group: int, kv_heads: int, row_invariant: bool, device: torch.device) -> Tiling:
    """The tiling for `rows` queries of `group` heads per key-value head: the parts fill the GPU once."""
    padded = triton.next_power_of_2(group)
    if row_invariant:
        return Tiling(max(64, padded), 64, 0, 4, 3)
    block_rows = next((size for size in (16, 64) if rows * padded <= size), 128)
    block_rows = max(block_rows, padded)
    tiles = triton.cdiv(rows, block_rows // padded)
    parts = max(1, min(64, multiprocessors(device) // (tiles * kv_heads)))
    return Tiling(block_rows, 64, parts, *((4, 4) if block_rows < 128 else (8, 3)))


def tree_attention_triton(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    prefix_length: int | torch.Tensor,
    mask: torch.Tensor,
    row_invariant: bool = False,
    tiles: Tiling | None = None,
) -> torch.Tensor:
    """`tree_attention` by one launch; fp16 or bf16, head_dim 64 or 128."""
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
    parts = triton.cdiv(slots, CHUNK) + block_queries * tail_parts if row_invariant else tiles.parts
    stored_parts = triton.cdiv(slots, CHUNK) + tail_parts if row_invariant else tiles.parts
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    sums = torch.empty(stored_parts, rows, heads, head_dim, dtype=torch.float32, device=query.device)
    peaks = torch.empty(2, stored_parts, rows, heads, dtype=torch.float32, device=query.device)
    _tree_attention_kernel[(triton.cdiv(rows, block_queries), kv_heads, parts)](
        query.contiguous(),
        keys,
        values,
        mask,
        output,
        sums,
        peaks[0],
        peaks[1],
        arrival_counters(query.device),
        prefix_length,
        rows,
        draft_slots,
        tail_parts,
        slots,
        math.log2(math.e) / math.sqrt(head_dim),
        PREFIX_ON_DEVICE=isinstance(prefix_length, torch.Tensor),
        KV_HEADS=kv_heads,
        GROUP=group,
        PADDED_GROUP=padded,
        HEAD_DIM=head_dim,
        BLOCK_ROWS=tiles.block_rows,
        BLOCK_KEYS=tiles.block_keys,
        BLOCK_DRAFT=triton.next_power_of_2(draft_slots) if row_invariant else 0,
        PARTS=tiles.parts,
        CHUNK=CHUNK,
        LOWEST=LOWEST,
        ROW_INVARIANT=row_invariant,
        JOINED_AT_ONCE=8 if tiles.block_rows <= 16 else 2,
        STAGES=tiles.stages,
        num_warps=tiles.warps,
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


@jit(do_not_specialize=["prefix", "rows", "draft_slots", "tail_parts", "slots"])
def _tree_attention_kernel(
    query,  # [rows, KV_HEADS * GROUP, HEAD_DIM]
    keys,  # [KV_HEADS, slots, HEAD_DIM]
    values,
    mask,  # [rows, draft_slots]
    output,
    part_sums,  # [parts, rows, KV_HEADS * GROUP, HEAD_DIM] float32, relative to 2 ** part_peaks
    part_peaks,  # [parts, rows, KV_HEADS * GROUP] float32
    part_totals,
    arrived,
    prefix,
    rows,
    draft_slots,
    tail_parts,
    slots,
    scale,
    PREFIX_ON_DEVICE: tl.constexpr,
    KV_HEADS: tl.constexpr,
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
    JOINED_AT_ONCE: tl.constexpr,
    STAGES: tl.constexpr,
):
    tile, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    BLOCK_QUERIES: tl.constexpr = BLOCK_ROWS // PADDED_GROUP
    prefix_length = tl.load(prefix).to(tl.int32) if PREFIX_ON_DEVICE else prefix
    row = tl.arange(0, BLOCK_ROWS)
    queries, member = tile * BLOCK_QUERIES + row // PADDED_GROUP, row % PADDED_GROUP
    in_tile = (queries < rows) & (member < GROUP)
    head_rows = queries * (KV_HEADS * GROUP) + kv_head * GROUP + member  # of [rows, heads]

    # Which keys this block attends to, [begin, end), and how many blocks there are for this tile.
    if ROW_INVARIANT:
        shared_parts = prefix_length // CHUNK
        tail = part - shared_parts
        own = tile * BLOCK_QUERIES + tail // tail_parts  # the query whose path this block gathers
        tail_queries = tl.minimum(rows - tile * BLOCK_QUERIES, BLOCK_QUERIES)
        if tail >= tail_queries * tail_parts:
            return
        blocks = shared_parts + tail_queries * tail_parts
        joined_parts = shared_parts + tail_parts
        node = tl.arange(0, BLOCK_DRAFT)
        in_path = tl.load(mask + own * draft_slots + node, mask=(tail >= 0) & (node < draft_slots), other=0).to(
            tl.int32
        )
        place = tl.where(in_path > 0, tl.cumsum(in_path, 0) - 1, -1)  # of a node in its path
        if tail >= 0:
            part = shared_parts + tail % tail_parts
        begin = part * CHUNK
        end = begin + CHUNK
        stored = in_tile
        if tail >= 0:
            end = tl.minimum(end, prefix_length + tl.sum(in_path, 0))
            stored = in_tile & (queries == own)
    else:
        last = prefix_length + draft_slots
        part_length = tl.cdiv(tl.cdiv(last, BLOCK_KEYS), PARTS) * BLOCK_KEYS
        begin = part * part_length
        if begin >= last:
            return
        end = tl.minimum(begin + part_length, last)
        blocks = tl.cdiv(last, part_length)
        joined_parts = blocks
        stored = in_tile

    column = tl.arange(0, HEAD_DIM)
    block = tl.arange(0, BLOCK_KEYS)
    q = tl.load(query + head_rows[:, None] * HEAD_DIM + column[None, :], mask=in_tile[:, None], other=0.0)
    keys += kv_head.to(tl.int64) * slots * HEAD_DIM
    values += kv_head.to(tl.int64) * slots * HEAD_DIM
    peak = tl.full((BLOCK_ROWS,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    sums = tl.zeros((BLOCK_ROWS, HEAD_DIM), tl.float32)

    # Blocks of keys that all rows see whole, then those that reach behind the prefix or this part.
    whole = begin + tl.maximum(tl.minimum(end, prefix_length) - begin, 0) // BLOCK_KEYS * BLOCK_KEYS
    for start in tl.range(begin, whole, BLOCK_KEYS, num_stages=STAGES):
        at = (start + block)[:, None] * HEAD_DIM + column[None, :]
        key, value = tl.load(keys + at), tl.load(values + at)
        peak, total, sums = _attend(q, key, value, (start + block < end)[None, :], peak, total, sums, scale)
    for start in tl.range(whole, end, BLOCK_KEYS, num_stages=1):
        position = start + block
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

    out = output + head_rows[:, None] * HEAD_DIM + column[None, :]
    if blocks == 1:
        tl.store(out, (sums / total[:, None]).to(output.dtype.element_ty), mask=stored[:, None])
        return
    part_rows = rows * (KV_HEADS * GROUP)
    at = part * part_rows + head_rows
    tl.store(part_sums + at.to(tl.int64)[:, None] * HEAD_DIM + column[None, :], sums, mask=stored[:, None])
    tl.store(part_peaks + at, peak, mask=stored)
    tl.store(part_totals + at, total, mask=stored)
    tl.debug_barrier()  # all of this block's stores, before its arrival is seen
    counter = arrived + tile * KV_HEADS + kv_head
    if tl.atomic_add(counter, 1, sem="acq_rel") < blocks - 1:
        return
    tl.store(counter, 0)
    peak = tl.full((BLOCK_ROWS,), LOWEST, tl.float32)
    for first in range(0, joined_parts, JOINED_AT_ONCE):
        for i in tl.static_range(JOINED_AT_ONCE):
            there = in_tile & (first + i < joined_parts)
            peak = tl.maximum(peak, tl.load(part_peaks + (first + i) * part_rows + head_rows, mask=there, other=LOWEST))
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    sums = tl.zeros((BLOCK_ROWS, HEAD_DIM), tl.float32)
    for first in range(0, joined_parts, JOINED_AT_ONCE):
        for i in tl.static_range(JOINED_AT_ONCE):
            there = in_tile & (first + i < joined_parts)
            at = (first + i) * part_rows + head_rows
            weight = tl.exp2(tl.load(part_peaks + at, mask=there, other=LOWEST) - peak)
            total = tl.fma(weight, tl.load(part_totals + at, mask=there, other=0.0), total)
            part_at = part_sums + at.to(tl.int64)[:, None] * HEAD_DIM + column[None, :]
            sums = tl.fma(weight[:, None], tl.load(part_at, mask=there[:, None], other=0.0), sums)
    tl.store(out, (sums / total[:, None]).to(output.dtype.element_ty), mask=in_tile[:, None])
