"""The likeliest tokens after each row: log-softmax and top-k over the vocabulary, in one launch."""

from __future__ import annotations

import torch

from specquant.kernels.activations import compute_dtype
from specquant.kernels.launch import arrival_counters, jit, on_gpu, tl, triton

BLOCK = 4096  # tokens in a part of the vocabulary


def log_softmax_top_k(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k highest log-probabilities of each row of logits [rows, vocab_size], and their tokens.

    Returns float32 [rows, k] (float64 for float64 inputs), descending, and int64 [rows, k]. The order of equal ones is
    unspecified, but the kernel always takes the lowest tokens first. A row does not depend on the other rows.
    """
    return (log_softmax_top_k_triton if on_gpu(logits) else log_softmax_top_k_reference)(logits, k)


def log_softmax_top_k_reference(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What `log_softmax_top_k` computes, by torch."""
    log_p, tokens = logits.to(compute_dtype(logits)).log_softmax(dim=-1).topk(k, dim=-1)
    return log_p, tokens


def log_softmax_top_k_triton(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`log_softmax_top_k` by one launch: every part of a row finds its own top k, and the last one theirs."""
    logits = logits.contiguous()
    rows, size = logits.shape
    parts = triton.cdiv(size, BLOCK)
    log_p = torch.empty(rows, k, dtype=torch.float32, device=logits.device)
    tokens = torch.empty(rows, k, dtype=torch.int64, device=logits.device)
    candidates = torch.empty(rows, parts, k, dtype=torch.int64, device=logits.device)
    statistics = torch.empty(2, rows, parts, dtype=torch.float32, device=logits.device)
    _log_softmax_top_k_kernel[(rows, parts)](
        logits,
        log_p,
        tokens,
        candidates,
        statistics[0],
        statistics[1],
        arrival_counters(logits.device),
        size,
        K=k,
        PARTS=parts,
        PADDED_PARTS=triton.next_power_of_2(parts),
        PADDED_CANDIDATES=triton.next_power_of_2(parts * k),
        BLOCK=BLOCK,
        num_warps=8,
    )
    return log_p, tokens


@jit
def sort_keys(values, index):
    """Keys that sort as values do and, of equal values, put the lower index (int32) higher.

    int64 for float32; int32, which is several times as fast, for 16-bit floats with indices below 2**16.
    """
    if values.dtype.primitive_bitwidth == 16:
        bits = (values + 0.0).to(tl.int16, bitcast=True)  # -0 becomes 0
        return ((bits ^ ((bits >> 15) & 0x7FFF)).to(tl.int32) << 16) | (0xFFFF - index)
    else:
        bits = (values + 0.0).to(tl.int32, bitcast=True)
        return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@jit
def key_value(key, dtype: tl.constexpr):
    """The value, float32, in a key that was made of a `dtype`."""
    if dtype.primitive_bitwidth == 16:
        ordered = (key >> 16).to(tl.int16)
        return (ordered ^ ((ordered >> 15) & 0x7FFF)).to(dtype, bitcast=True).to(tl.float32)
    else:
        ordered = (key >> 32).to(tl.int32)
        return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@jit
def key_index(key, dtype: tl.constexpr):
    """The index in a key that was made of a `dtype`."""
    if dtype.primitive_bitwidth == 16:
        return 0xFFFF - (key & 0xFFFF)
    else:
        return 0x7FFFFFFF - (key & 0x7FFFFFFF)


@jit
def lowest_key(dtype: tl.constexpr):
    """A key below those of all values of a `dtype` but NaN."""
    if dtype.primitive_bitwidth == 16:
        return tl.full((), -(2**31), tl.int32)
    else:
        return tl.full((), -(2**63), tl.int64)


@jit
def _log_softmax_top_k_kernel(
    logits,
    log_p,
    tokens,
    candidates,  # [rows, PARTS, K]
    peaks,  # [rows, PARTS]
    totals,
    arrived,
    size,
    K: tl.constexpr,
    PARTS: tl.constexpr,
    PADDED_PARTS: tl.constexpr,
    PADDED_CANDIDATES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, part = tl.program_id(0), tl.program_id(1)
    dtype: tl.constexpr = logits.dtype.element_ty
    local = tl.arange(0, BLOCK)
    inside = part * BLOCK + local < size
    at = row.to(tl.int64) * size + part * BLOCK + local
    values = tl.load(logits + at, mask=inside, other=float("-inf"))
    wide = values.to(tl.float32)
    peak = tl.max(wide, 0)
    tl.store(peaks + row * PARTS + part, peak)
    tl.store(totals + row * PARTS + part, tl.sum(tl.exp(wide - tl.maximum(peak, -1e30)), 0))
    least = lowest_key(dtype)
    keys = tl.where(inside, sort_keys(values, local), least)
    for i in range(K):
        best = tl.max(keys, 0)
        keys = tl.where(keys == best, least, keys)
        token = part * BLOCK + key_index(best, dtype).to(tl.int32)
        candidate = tl.where(best == least, lowest_key(tl.float32), sort_keys(key_value(best, dtype), token))
        tl.store(candidates + (row * PARTS + part) * K + i, candidate)
    tl.debug_barrier()  # all of this part's stores, before its arrival is seen
    if tl.atomic_add(arrived + row, 1, sem="acq_rel") < PARTS - 1:
        return
    tl.store(arrived + row, 0)
    each = tl.arange(0, PADDED_PARTS)
    part_peaks = tl.load(peaks + row * PARTS + each, mask=each < PARTS, other=float("-inf"))
    peak = tl.max(part_peaks, 0)
    part_totals = tl.load(totals + row * PARTS + each, mask=each < PARTS, other=0.0)
    log_total = tl.log(tl.sum(part_totals * tl.exp(part_peaks - peak), 0))
    every = tl.arange(0, PADDED_CANDIDATES)
    least = lowest_key(tl.float32)
    keys = tl.load(candidates + row * PARTS * K + every, mask=every < PARTS * K, other=-(2**63))
    for i in range(K):
        best = tl.max(keys, 0)
        keys = tl.where(keys == best, least, keys)
        tl.store(log_p + row * K + i, (key_value(best, tl.float32) - peak) - log_total)
        tl.store(tokens + row * K + i, key_index(best, tl.float32))
