"""Rotary position embedding (RoFormer, arXiv 2104.09864) of queries and keys, and the write to the key-value cache."""

from __future__ import annotations

import torch

from specquant.kernels.launch import jit, on_gpu, overlapping, tl, triton, wait_for_previous

BLOCK_HEADS = 8


def rotate_and_cache(
    qkv: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    positions: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    first_slot: int | torch.Tensor,
    next_early: bool = False,
) -> torch.Tensor:
    """Rotate the queries and keys of qkv to their positions, and store keys and values from `first_slot` on.

    qkv: [rows, (heads + 2 * kv_heads) * head_dim], the queries first, then keys, then values. cosines, sines:
    [most positions, head_dim]. positions: int64 [rows]. keys, values: [kv_heads, slots, head_dim], a layer's cache,
    contiguous, with room for the rows; first_slot may be a device tensor of one integer. All of one floating dtype, to
    which products and sums are rounded. next_early: as of `overlapping`. Returns the queries [rows, heads, head_dim].
    """
    if on_gpu(qkv):
        return rotate_and_cache_triton(qkv, cosines, sines, positions, keys, values, first_slot, next_early)
    return rotate_and_cache_reference(qkv, cosines, sines, positions, keys, values, first_slot)


def rotate_and_cache_reference(
    qkv: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    positions: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    first_slot: int | torch.Tensor,
) -> torch.Tensor:
    """What `rotate_and_cache` computes, by torch."""
    rows, (kv_heads, _, head_dim) = len(qkv), keys.shape
    qkv = qkv.view(rows, -1, head_dim)
    heads = qkv.shape[1] - 2 * kv_heads
    new = slice(int(first_slot), int(first_slot) + rows)
    keys[:, new] = rotate(qkv[:, heads:-kv_heads], cosines[positions], sines[positions]).transpose(0, 1)
    values[:, new] = qkv[:, -kv_heads:].transpose(0, 1)
    return rotate(qkv[:, :heads], cosines[positions], sines[positions])


def rotate(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotate x [rows, heads, head_dim] by the angles of each row, cosines and sines [rows, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return x * cosines[:, None] + rotated * sines[:, None]


def rotate_and_cache_triton(
    qkv: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    positions: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    first_slot: int | torch.Tensor,
    next_early: bool = False,
) -> torch.Tensor:
    """`rotate_and_cache` by one launch; what would lie behind the cache is not written."""
    if not (keys.is_contiguous() and values.is_contiguous()):
        raise ValueError("the keys and values of a layer must be contiguous")
    rows, (kv_heads, slots, head_dim) = len(qkv), keys.shape
    all_heads = qkv.shape[1] // head_dim
    heads = all_heads - 2 * kv_heads
    query = torch.empty(rows, heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    _rotate_and_cache_kernel[(rows, triton.cdiv(all_heads, BLOCK_HEADS))](
        qkv.contiguous(),
        cosines,
        sines,
        positions,
        query,
        keys,
        values,
        first_slot,
        slots,
        SLOT_ON_DEVICE=isinstance(first_slot, torch.Tensor),
        HEADS=heads,
        KV_HEADS=kv_heads,
        HALF=head_dim // 2,
        BLOCK_HEADS=BLOCK_HEADS,
        num_warps=2,
        enable_fp_fusion=False,  # round as the reference does: each product, then the sum
        **overlapping(qkv.device, next_early),
    )
    return query


@jit(do_not_specialize=["first_slot", "slots"])
def _rotate_and_cache_kernel(
    qkv,
    cosines,
    sines,
    positions,
    query,
    keys,
    values,
    first_slot,
    slots,
    SLOT_ON_DEVICE: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    OVERLAPPING: tl.constexpr,
):
    wait_for_previous(OVERLAPPING, next_at_once=tl.num_programs(0) * tl.num_programs(1) <= 128)
    row = tl.program_id(0)
    slot = row + (tl.load(first_slot).to(tl.int32) if SLOT_ON_DEVICE else first_slot)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    column = tl.arange(0, HALF)[None, :]
    inside = head < HEADS + 2 * KV_HEADS
    at = (row * (HEADS + 2 * KV_HEADS) + head) * (2 * HALF) + column
    first = tl.load(qkv + at, mask=inside, other=0.0)
    second = tl.load(qkv + at + HALF, mask=inside, other=0.0)

    # Both halves have the same angles. Each product is rounded to the dtype of the model, then their sum.
    angle = tl.load(positions + row) * (2 * HALF) + column
    cosine, sine = tl.load(cosines + angle).to(tl.float32), tl.load(sines + angle).to(tl.float32)
    a, b = first.to(tl.float32), second.to(tl.float32)
    dtype: tl.constexpr = first.dtype
    turned_first = ((a * cosine).to(dtype).to(tl.float32) - (b * sine).to(dtype).to(tl.float32)).to(dtype)
    turned_second = ((b * cosine).to(dtype).to(tl.float32) + (a * sine).to(dtype).to(tl.float32)).to(dtype)

    to_query = (row * HEADS + head) * (2 * HALF) + column
    tl.store(query + to_query, turned_first, mask=head < HEADS)
    tl.store(query + to_query + HALF, turned_second, mask=head < HEADS)
    is_key = (head >= HEADS) & (head < HEADS + KV_HEADS) & (slot < slots)
    to_key = ((head - HEADS).to(tl.int64) * slots + slot) * (2 * HALF) + column
    tl.store(keys + to_key, turned_first, mask=is_key)
    tl.store(keys + to_key + HALF, turned_second, mask=is_key)
    is_value = inside & (head >= HEADS + KV_HEADS) & (slot < slots)
    to_value = ((head - HEADS - KV_HEADS).to(tl.int64) * slots + slot) * (2 * HALF) + column
    tl.store(values + to_value, first, mask=is_value)
    tl.store(values + to_value + HALF, second, mask=is_value)
