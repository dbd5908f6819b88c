import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from specquant.decoding import DraftTree


@st.composite
def parent_lists(draw):
    size = draw(st.integers(1, 70))
    return [-1] + [draw(st.integers(0, row - 1)) for row in range(1, size)]


@given(parent_lists())
def test_depths_and_ancestors_follow_from_the_parents(parents):
    tree = DraftTree.from_parents(torch.arange(len(parents)), torch.tensor(parents))
    for row in range(len(parents)):
        line, node = set(), row
        while node >= 0:
            line.add(node)
            node = parents[node]
        assert set(tree.ancestors[row].nonzero().flatten().tolist()) == line
        assert int(tree.depths[row]) == len(line) - 1


@given(parent_lists(), st.lists(st.integers(0, 9), max_size=3))
@example([-1], [4, 2])
@example([-1, 0, 0], [4])
def test_a_tree_behind_a_chain_is_the_tree_grown_from_that_chain(parents, chain):
    tree = DraftTree.from_parents(torch.arange(len(parents)), torch.tensor(parents))
    n = len(chain)
    grown = DraftTree.from_parents(
        torch.tensor(chain + list(range(len(parents)))),
        torch.tensor([*range(-1, n - 1), *(n - 1 if p < 0 else p + n for p in parents)]),
    )
    behind = tree.after(chain)
    for field in ("tokens", "parents", "depths", "ancestors"):
        assert torch.equal(getattr(behind, field), getattr(grown, field)), field


@given(st.integers(1, 70))
def test_a_sequence_is_a_tree_with_one_branch(size):
    tokens = torch.arange(size)
    sequence, tree = DraftTree.sequence(tokens), DraftTree.from_parents(tokens, tokens - 1)
    for field in ("parents", "depths", "ancestors"):
        assert torch.equal(getattr(sequence, field), getattr(tree, field)), field


@pytest.mark.parametrize("parents", [[-1, 1], [-1, 2, 0], [0, 0]])
def test_a_parent_behind_its_child_is_refused(parents):
    with pytest.raises(ValueError, match="parent"):
        DraftTree.from_parents(torch.zeros(len(parents), dtype=torch.long), torch.tensor(parents))
