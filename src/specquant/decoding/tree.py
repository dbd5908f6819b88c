"""A draft: a tree of tokens under the last confirmed token."""

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F

from specquant.kernels.tree import ancestors_of


@dataclass(frozen=True)
class DraftTree:
    """Drafted tokens, to be verified in one pass. A sequence is a tree with one branch.

    tokens: int64 [n]; row 0 is the root, the last confirmed token. parents: int64 [n], each lower than its own index;
    the root's is -1. depths: int64 [n], the root's is 0. ancestors: bool [n, n]: row i sees itself and its ancestors.
    q: None where drafts were chosen deterministically, else [n, vocab_size], the distribution that each token was drawn
    from (the root's row means nothing). scores: None, or [n], the drafter's log-probability of the path to each node.
    """

    tokens: torch.Tensor
    parents: torch.Tensor
    depths: torch.Tensor
    ancestors: torch.Tensor
    q: torch.Tensor | None = None
    scores: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def from_parents(cls, tokens: torch.Tensor, parents: torch.Tensor) -> "DraftTree":
        """A tree from tokens [n] and parents [n]; parents come before their children.

        Raises ValueError where a parent does not: such a tree is a bug of the drafter.
        """
        n = len(tokens)
        if parents[0] != -1 or bool((parents[1:] >= torch.arange(1, n, device=parents.device)).any()):
            raise ValueError("a draft tree has its root first and every parent before its children")
        ancestors = ancestors_of(parents)
        return cls(tokens, parents, ancestors.sum(dim=1) - 1, ancestors)

    @classmethod
    def sequence(cls, tokens: torch.Tensor, q: torch.Tensor | None = None) -> "DraftTree":
        """A tree with one branch: tokens [n], the root first."""
        return cls(tokens, *_chain(len(tokens), tokens.device), q)

    @classmethod
    def from_lists(cls, tokens: list[int], parents: list[int], device: torch.device) -> "DraftTree":
        """A tree that the host made, on a device that goes on with what it does. Raises as `from_parents` does."""
        if parents == list(range(-1, len(parents) - 1)):
            return cls.sequence(on_device(tokens, device))
        tree = cls.from_parents(torch.tensor(tokens), torch.tensor(parents))
        parts = (tree.tokens, tree.parents, tree.depths, tree.ancestors)
        return cls(*(part.to(device, non_blocking=True) for part in parts))

    def after(self, chain: list[int]) -> "DraftTree":
        """This tree behind a chain of confirmed tokens that the model has not run yet, the first of them its root."""
        if not chain:
            return self
        n = len(chain)
        device = self.tokens.device
        tokens = torch.cat((on_device(chain, device), self.tokens))
        if len(self) == 1:
            return DraftTree.sequence(tokens)
        nodes = torch.arange(n, device=device)
        ancestors = F.pad(self.ancestors, (n, 0, n, 0), value=True)
        ancestors[:n] = nodes[:, None] >= torch.arange(n + len(self), device=device)
        return DraftTree(
            tokens,
            torch.cat((nodes - 1, torch.where(self.parents < 0, n - 1, self.parents + n))),
            torch.cat((nodes, self.depths + n)),
            ancestors,
        )


@cache
def _chain(n: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Parents, depths and ancestors of a tree with one branch of n nodes; nobody writes to them."""
    nodes = torch.arange(n, device=device)
    return nodes - 1, nodes, nodes[:, None] >= nodes


def on_device(tokens: list[int], device: torch.device) -> torch.Tensor:
    """int64 [n] on the device, without waiting until that has done what it was asked to before: CUDA takes a few tokens
    into a buffer of its own at once."""
    return torch.tensor(tokens, dtype=torch.int64).to(device, non_blocking=True)
