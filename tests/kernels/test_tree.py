import pytest
import torch

from specquant.kernels import tree
from specquant.kernels.tree import Frontier, Proposals, ancestors_of

KERNELS = (tree.expand_triton, tree.rerank_triton)
REFERENCES = (tree.expand_reference, tree.rerank_reference)


def grow(expand, rerank, levels, size, device):
    """Grow a tree from given log-probabilities and tokens, level by level; returns all that was computed."""
    k = levels[0][0].shape[1]
    n = 1 + sum(log_p.numel() for log_p, _ in levels)
    proposals = Proposals.under(torch.tensor([7], device=device), n, torch.float32)
    frontiers, first = [Frontier.root(proposals)], 1
    for log_p, tokens in levels:
        frontiers.append(expand(proposals, first, frontiers[-1], log_p, tokens))
        first += log_p.numel()
    assert frontiers[-1].mask.shape == (k, k * len(levels))
    return [*proposals, *(part for frontier in frontiers for part in frontier), *rerank(proposals, size)]


def random_levels(k, iterations, device):
    generator = torch.Generator().manual_seed(k)
    shapes = [(1, k)] + [(k, k)] * (iterations - 1)
    return [
        (
            torch.randn(shape, generator=generator).abs().neg().sort(dim=1, descending=True).values.to(device),
            torch.randint(1000, shape, generator=generator).to(device),
        )
        for shape in shapes
    ]


@pytest.mark.parametrize(
    ("k", "iterations", "size"), [(1, 1, 1), (1, 3, 4), (2, 1, 3), (3, 3, 8), (10, 3, 24), (10, 2, 111)]
)
def test_expansion_and_reranking(k, iterations, size, device):
    levels = random_levels(k, iterations, device)
    results, expected = grow(*KERNELS, levels, size, device), grow(*REFERENCES, levels, size, device)
    assert len(results) == len(expected)
    for result, wanted in zip(results, expected, strict=True):
        assert torch.equal(result, wanted)


def test_of_equal_scores_the_earlier_node(device):
    # Certain tokens: all scores are 0, and only order decides.
    certain = [
        (torch.zeros(shape, device=device), torch.arange(9, device=device)[: shape[0] * 3].view(shape))
        for shape in ((1, 3), (3, 3), (3, 3))
    ]
    *_, tokens, parents, depths, ancestors, scores = grow(*KERNELS, certain, 6, device)
    assert tokens.tolist() == [7, 0, 1, 2, 0, 1]
    assert parents.tolist() == [-1, 0, 0, 0, 1, 1]
    assert depths.tolist() == [0, 1, 1, 1, 2, 2]
    assert torch.equal(ancestors, ancestors_of(parents))
    assert scores.tolist() == [0] * 6


@pytest.mark.gpu
@pytest.mark.parametrize("size", [24, 48, 60, 64])
def test_the_papers_trees(size):
    test_expansion_and_reranking(10, 6, size, "cuda")
