"""Greedy acceptance along a tree (speculative decoding at temperature 0, arXiv 2211.17192), in one launch."""

from __future__ import annotations

import torch

from specquant.kernels.launch import arrival_counters, jit, on_gpu, tl, triton
from specquant.kernels.top_k import key_index, key_value, lowest_key, sort_keys

BLOCK = 4096  # tokens of one step
PART = 4 * BLOCK  # tokens in a part of the vocabulary


def accept_greedily(
    tokens: torch.Tensor, parents: torch.Tensor, ancestors: torch.Tensor, logits: torch.Tensor
) -> torch.Tensor:
    """The longest path whose every token is the likeliest after its parent, and the likeliest token after each of it.

    tokens, parents: int64 [n], the root first; ancestors: bool [n, n], of itself true; logits: [n, vocab_size]. Of
    equal logits the lowest token is the likeliest, of equally long paths the one that ends first is taken. Returns
    int64 [2, n] on the same device, both filled up with -1: the rows of the path from the root on, and the likeliest
    token after each of them: those that the path's other rows hold, and the one behind it.
    """
    run = accept_greedily_triton if on_gpu(logits) else accept_greedily_reference
    return run(tokens, parents, ancestors, logits)


def accept_greedily_reference(
    tokens: torch.Tensor, parents: torch.Tensor, ancestors: torch.Tensor, logits: torch.Tensor
) -> torch.Tensor:
    """What `accept_greedily` computes, by torch."""
    choices = logits.argmax(dim=-1)
    wrong = tokens != choices[parents]
    wrong[0] = False
    accepted = ~(ancestors & wrong).any(dim=1)
    last = torch.where(accepted, ancestors.sum(dim=1), 0).argmax()
    rows = torch.arange(len(tokens), device=tokens.device)
    path = torch.where(ancestors[last], rows, len(tokens)).sort().values
    beyond = path == len(tokens)
    return torch.stack((path, choices[path.masked_fill(beyond, 0)])).masked_fill(beyond, -1)


def accept_greedily_triton(
    tokens: torch.Tensor, parents: torch.Tensor, ancestors: torch.Tensor, logits: torch.Tensor
) -> torch.Tensor:
    """`accept_greedily` by one launch: the block that comes last has all choices and walks the tree."""
    n, size = logits.shape
    parts = triton.cdiv(size, PART)
    verdict = torch.empty(2, n, dtype=torch.int64, device=logits.device)
    best = torch.empty(n, parts, dtype=torch.int64, device=logits.device)
    _accept_greedily_kernel[(n, parts)](
        tokens.contiguous(),
        parents.contiguous(),
        ancestors.contiguous(),
        logits.contiguous(),
        verdict,
        best,
        arrival_counters(logits.device),
        n,
        size,
        ROWS=triton.next_power_of_2(n),
        PARTS=parts,
        PADDED_PARTS=triton.next_power_of_2(parts),
        PART=PART,
        BLOCK=BLOCK,
        num_warps=8,
    )
    return verdict


@jit(do_not_specialize=["n"])
def _accept_greedily_kernel(
    tokens,
    parents,
    ancestors,
    logits,
    verdict,  # [2, n]
    best,  # [n, PARTS]
    arrived,
    n,
    size,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    PADDED_PARTS: tl.constexpr,
    PART: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, part = tl.program_id(0), tl.program_id(1)
    dtype: tl.constexpr = logits.dtype.element_ty
    least = lowest_key(dtype)
    logits += row.to(tl.int64) * size + part * PART
    keys = tl.zeros((BLOCK,), least.dtype) + least
    for start in tl.static_range(0, PART, BLOCK):
        local = start + tl.arange(0, BLOCK)
        inside = part * PART + local < size
        values = tl.load(logits + local, mask=inside, other=0.0)
        keys = tl.maximum(keys, tl.where(inside, sort_keys(values, local), least))
    key = tl.max(keys, 0)
    token = part * PART + key_index(key, dtype).to(tl.int32)
    tl.store(best + row * PARTS + part, sort_keys(key_value(key, dtype), token))
    tl.debug_barrier()  # this part's store, before its arrival is seen
    if tl.atomic_add(arrived, 1, sem="acq_rel") < n * PARTS - 1:
        return
    tl.store(arrived, 0)
    node = tl.arange(0, ROWS)
    each = tl.arange(0, PADDED_PARTS)[None, :]
    real = node < n
    keys = tl.load(best + node[:, None] * PARTS + each, mask=real[:, None] & (each < PARTS), other=-(2**63))
    choice = key_index(tl.max(keys, 1), tl.float32)  # of each row
    parent = tl.load(parents + node, mask=real, other=-1)
    wanted = tl.sum(tl.where(parent[:, None] == node[None, :], choice[None, :], 0), 1)  # the parent's choice
    token = tl.load(tokens + node, mask=real, other=-1)
    wrong = (token != wanted) & (node > 0)
    seen = tl.load(ancestors + node[:, None] * n + node[None, :], mask=real[:, None] & real[None, :], other=0).to(
        tl.int32
    )
    mistakes = tl.sum(seen * wrong[None, :].to(tl.int32), 1)
    length = tl.where(real & (mistakes == 0), tl.sum(seen, 1), 0)
    longest = tl.max(length, 0)
    last = tl.min(tl.where(length == longest, node, ROWS), 0)
    on_path = tl.sum(tl.where((node == last)[:, None], seen, 0), 0)
    place = tl.cumsum(on_path, 0) - 1
    nothing = tl.full((ROWS,), -1, tl.int64)
    tl.store(verdict + node, nothing, mask=real & (node >= longest))
    tl.store(verdict + n + node, nothing, mask=real & (node >= longest))
    tl.store(verdict + place, node.to(tl.int64), mask=on_path > 0)
    tl.store(verdict + n + place, choice.to(tl.int64), mask=on_path > 0)
