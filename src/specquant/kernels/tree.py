"""Growing a draft tree on the device (EAGLE-2, arXiv 2406.16858, section 4): expansion and reranking, a launch each."""

from __future__ import annotations

from typing import NamedTuple

import torch

from specquant.kernels.launch import jit, on_gpu, tl, triton
from specquant.kernels.top_k import key_index, key_value, lowest_key, sort_keys


class Proposals(NamedTuple):
    """All nodes that were ever proposed, in order of level, the root first; of most of them the tree makes no use.

    tokens, parents: int64 [n]; the root's parent is -1. scores: [n], the log-probability of the path to each node.
    """

    tokens: torch.Tensor
    parents: torch.Tensor
    scores: torch.Tensor

    @classmethod
    def under(cls, root: torch.Tensor, n: int, dtype: torch.dtype) -> Proposals:
        """Room for n nodes, of which the first is the root, an int64 token [1]."""
        proposals = cls(root.new_empty(n), root.new_full((n,), -1), torch.zeros(n, dtype=dtype, device=root.device))
        proposals.tokens[:1] = root
        return proposals


class Frontier(NamedTuple):
    """The nodes that the next level grows from.

    nodes: int64 [k], their indices among the proposals. tokens: int64 [k]. scores: [k], descending. parents: int64 [k],
    which node of the previous frontier each hangs from. mask: bool [k, slots]: which of all frontiers' nodes, in order,
    each sees: itself and its ancestors.
    """

    nodes: torch.Tensor
    tokens: torch.Tensor
    scores: torch.Tensor
    parents: torch.Tensor
    mask: torch.Tensor

    @classmethod
    def root(cls, proposals: Proposals) -> Frontier:
        zero = torch.zeros_like(proposals.tokens[:1])
        return cls(zero, proposals.tokens[:1], proposals.scores[:1], zero, zero.new_empty(1, 0, dtype=torch.bool))


def expand(proposals: Proposals, first: int, frontier: Frontier, log_p: torch.Tensor, tokens: torch.Tensor) -> Frontier:
    """Propose k children of each of the frontier's n nodes, from `first` on, and make the k best the next frontier.

    log_p, tokens: [n, k], the children's log-probabilities and tokens. Of equal scores, the kernel takes the earlier.
    A score that is no number, of a head that overflowed, becomes -inf, for no NaN has a rank.
    """
    return (expand_triton if on_gpu(log_p) else expand_reference)(proposals, first, frontier, log_p, tokens)


def expand_reference(
    proposals: Proposals, first: int, frontier: Frontier, log_p: torch.Tensor, tokens: torch.Tensor
) -> Frontier:
    """What `expand` computes, by torch."""
    k = log_p.shape[1]
    new = slice(first, first + log_p.numel())
    proposals.tokens[new] = tokens.flatten()
    proposals.parents[new] = frontier.nodes.repeat_interleave(k)
    scores = (frontier.scores[:, None] + log_p).flatten()
    proposals.scores[new] = torch.where(scores.isnan(), -torch.inf, scores)
    scores, chosen = proposals.scores[new].topk(k)
    parents = chosen // k
    mask = torch.cat((frontier.mask[parents], torch.eye(k, dtype=torch.bool, device=tokens.device)), dim=1)
    return Frontier(first + chosen, tokens.flatten()[chosen], scores, parents, mask)


def expand_triton(
    proposals: Proposals, first: int, frontier: Frontier, log_p: torch.Tensor, tokens: torch.Tensor
) -> Frontier:
    """`expand` by one launch of one block."""
    n, k = log_p.shape
    slots = frontier.mask.shape[1]
    nodes, next_tokens, parents = torch.empty(3, k, dtype=torch.int64, device=log_p.device)
    scores = torch.empty(k, dtype=torch.float32, device=log_p.device)
    mask = torch.empty(k, slots + k, dtype=torch.bool, device=log_p.device)
    _expand_kernel[(1,)](
        *proposals,
        first,
        *frontier,
        log_p.contiguous(),
        tokens.contiguous(),
        nodes,
        next_tokens,
        scores,
        parents,
        mask,
        slots,
        N=n,
        K=k,
        CHILDREN=triton.next_power_of_2(n * k),
        SLOTS=triton.next_power_of_2(slots + k),
        num_warps=4,
    )
    return Frontier(nodes, next_tokens, scores, parents, mask)


@jit(do_not_specialize=["first", "slots"])
def _expand_kernel(
    all_tokens,
    all_parents,
    all_scores,
    first,
    nodes,
    _tokens,
    scores,
    _parents,
    mask,  # [N, slots]
    log_p,  # [N, K]
    tokens,
    next_nodes,
    next_tokens,
    next_scores,
    next_parents,
    next_mask,  # [K, slots + K]
    slots,
    N: tl.constexpr,
    K: tl.constexpr,
    CHILDREN: tl.constexpr,
    SLOTS: tl.constexpr,
):
    child = tl.arange(0, CHILDREN)
    real = child < N * K
    token = tl.load(tokens + child, mask=real, other=0)
    score = tl.load(scores + child // K, mask=real, other=0.0) + tl.load(log_p + child, mask=real, other=0.0)
    score = tl.where(score == score, score, float("-inf"))  # only NaN is not itself
    tl.store(all_tokens + first + child, token, mask=real)
    tl.store(all_parents + first + child, tl.load(nodes + child // K, mask=real, other=0), mask=real)
    tl.store(all_scores + first + child, score, mask=real)
    keys = tl.where(real, sort_keys(score, child), lowest_key(tl.float32))
    slot = tl.arange(0, SLOTS)
    for i in range(K):
        best = tl.max(keys, 0)
        keys = tl.where(keys == best, lowest_key(tl.float32), keys)
        chosen = key_index(best, tl.float32)
        parent = chosen // K
        tl.store(next_nodes + i, first + chosen)
        tl.store(next_tokens + i, tl.load(tokens + chosen))
        tl.store(next_scores + i, key_value(best, tl.float32))
        tl.store(next_parents + i, parent)
        seen = tl.load(mask + parent * slots + slot, mask=slot < slots, other=0).to(tl.int1)
        tl.store(next_mask + i * (slots + K) + slot, seen | (slot == slots + i), mask=slot < slots + K)


class Tree(NamedTuple):
    """tokens, parents, depths: int64 [n]. ancestors: bool [n, n]. As in a draft tree: the root first, its parent -1.
    scores: [n], as of `Proposals`."""

    tokens: torch.Tensor
    parents: torch.Tensor
    depths: torch.Tensor
    ancestors: torch.Tensor
    scores: torch.Tensor


def rerank(proposals: Proposals, size: int) -> Tree:
    """The tree of the `size` nodes (the root is one) with the highest scores, in their order among the proposals.

    A path is never likelier than its beginning, and of equal scores the earlier node is taken: so parents stay.
    """
    return (rerank_triton if on_gpu(proposals.scores) else rerank_reference)(proposals, size)


def rerank_reference(proposals: Proposals, size: int) -> Tree:
    """What `rerank` computes, by torch."""
    kept = proposals.scores.sort(descending=True, stable=True).indices[:size].sort().values
    parents = torch.searchsorted(kept, proposals.parents[kept])
    parents[0] = -1
    ancestors = ancestors_of(parents)
    return Tree(proposals.tokens[kept], parents, ancestors.sum(dim=1) - 1, ancestors, proposals.scores[kept])


def ancestors_of(parents: torch.Tensor) -> torch.Tensor:
    """bool [n, n]: each node of a tree with parents [n], the root first, sees itself and its ancestors."""
    n = len(parents)
    # The closure of "is my parent" by repeated squaring: paths of length 1, 2, 4, ... in a few small products.
    reach = torch.eye(n, device=parents.device)
    reach[torch.arange(1, n, device=parents.device), parents[1:]] = 1
    for _ in range(max(n - 1, 1).bit_length()):
        reach = (reach @ reach).clamp_(max=1)
    return reach > 0


def rerank_triton(proposals: Proposals, size: int) -> Tree:
    """`rerank` by one launch of one block."""
    n, device = len(proposals.tokens), proposals.tokens.device
    size = min(size, n)
    tokens, parents, depths = torch.empty(3, size, dtype=torch.int64, device=device)
    ancestors = torch.empty(size, size, dtype=torch.bool, device=device)
    scores = torch.empty(size, dtype=proposals.scores.dtype, device=device)
    places = torch.empty(n, dtype=torch.int32, device=device)
    _rerank_kernel[(1,)](
        *proposals,
        tokens,
        parents,
        depths,
        ancestors,
        scores,
        places,
        n,
        size,
        ALL=max(32, triton.next_power_of_2(n)),
        SIZE=max(16, triton.next_power_of_2(size)),
        SQUARINGS=max(size - 1, 1).bit_length(),
        num_warps=8,
    )
    return Tree(tokens, parents, depths, ancestors, scores)


@jit(do_not_specialize=["n", "size"])
def _rerank_kernel(
    all_tokens,
    all_parents,
    all_scores,
    tokens,
    parents,
    depths,
    ancestors,
    scores,
    places,
    n,
    size,
    ALL: tl.constexpr,
    SIZE: tl.constexpr,
    SQUARINGS: tl.constexpr,
):
    # A node's rank is how many come before it.
    node = tl.arange(0, ALL)
    score = tl.load(all_scores + node, mask=node < n, other=float("-inf"))
    rank = tl.zeros((ALL,), tl.int32)
    for start in tl.static_range(0, ALL, 32):  # independent loads
        other = start + tl.arange(0, 32)
        other_score = tl.load(all_scores + other, mask=other < n, other=float("-inf"))[None, :]
        earlier = (other_score == score[:, None]) & (other[None, :] < node[:, None])
        rank += tl.sum(((other_score > score[:, None]) | earlier).to(tl.int32), 1)
    kept = (node < n) & (rank < size)
    place = tl.cumsum(kept.to(tl.int32), 0) - 1  # in the tree
    kept &= place < size  # NaN, which `expand` does not make, would have no rank, and be written beyond the tree
    tl.store(places + node, place, mask=node < n)
    tl.debug_barrier()
    parent = tl.load(all_parents + node, mask=kept, other=-1)
    parent = tl.where(node == 0, -1, tl.load(places + parent, mask=kept & (parent >= 0), other=-1))
    tl.store(parents + place, parent.to(tl.int64), mask=kept)
    tl.store(tokens + place, tl.load(all_tokens + node, mask=kept, other=0), mask=kept)
    tl.store(scores + place, score, mask=kept)
    tl.debug_barrier()
    # The closure of "is my parent" by repeated squaring; fp16 holds its zeros and ones.
    row = tl.arange(0, SIZE)
    above = tl.load(parents + row, mask=row < size, other=-1)
    reach = ((above[:, None] == row[None, :]) | (row[:, None] == row[None, :])).to(tl.float16)
    for _ in tl.static_range(SQUARINGS):
        reach = (tl.dot(reach, reach) > 0).to(tl.float16)
    seen = (row[:, None] < size) & (row[None, :] < size)
    tl.store(ancestors + row[:, None] * size + row[None, :], reach > 0, mask=seen)
    tl.store(depths + row, tl.sum(reach.to(tl.int32), 1).to(tl.int64) - 1, mask=row < size)
