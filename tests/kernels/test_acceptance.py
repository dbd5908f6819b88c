import pytest
import torch

from specquant.kernels.acceptance import PART, accept_greedily_reference, accept_greedily_triton
from specquant.kernels.tree import ancestors_of


def problem(n, vocab_size, right, seed=0):
    """A random tree of which each node is right with a probability, logits that say so, and the parents."""
    generator = torch.Generator().manual_seed(seed)
    parents = torch.tensor([-1] + [int(torch.randint(0, i, (1,), generator=generator)) for i in range(1, n)])
    logits = torch.randn(n, vocab_size, generator=generator).half()
    tokens = torch.randint(vocab_size, (n,), generator=generator)
    is_right = torch.rand(n, generator=generator) < right
    tokens = torch.where(is_right, logits.argmax(dim=1)[parents], tokens)
    return tokens, parents, ancestors_of(parents), logits


@pytest.mark.parametrize(
    ("n", "vocab_size", "right"),
    [(1, 100, 1.0), (2, 5000, 1.0), (2, 100, 0.0), (7, 300, 1.0), (7, PART + 50, 0.6), (13, 100, 0.7), (60, 50, 0.5)],
)
def test_the_longest_right_path(n, vocab_size, right, device):
    for seed in range(3):
        arguments = [x.to(device) for x in problem(n, vocab_size, right, seed)]
        assert torch.equal(accept_greedily_triton(*arguments), accept_greedily_reference(*arguments))


def test_a_chain_by_hand(device):
    # Row 1 follows the root's choice, 4; row 2 does not follow row 1's, of which 2 and 5 are equal: the lowest counts.
    logits = torch.zeros(3, 6)
    logits[0, 4] = logits[1, 2] = logits[1, 5] = logits[2, 0] = 1
    parents = torch.tensor([-1, 0, 1])
    arguments = (torch.tensor([3, 4, 5]), parents, ancestors_of(parents), logits)
    assert accept_greedily_triton(*(x.to(device) for x in arguments)).tolist() == [[0, 1, -1], [4, 2, -1]]


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 13, 60, 64])
def test_llama_3s_vocabulary(n):
    for seed in range(3):
        arguments = [x.cuda() for x in problem(n, 128256, 0.8, seed)]
        assert torch.equal(accept_greedily_triton(*arguments), accept_greedily_reference(*arguments))
