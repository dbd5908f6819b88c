"""What a drafter is: anything that follows a model's confirmed tokens and proposes what comes next."""

from typing import Protocol

import torch

from specquant.decoding.acceptance import AcceptanceRule
from specquant.decoding.tree import DraftTree


class Drafter(Protocol):
    """Proposes drafts for an enclosing model and follows what that model confirms.

    A drafter's state is positional: how many confirmed positions it has run. `commit` truncates that to the tokens
    which stay and queues the new ones, so the first step, a rejection, full acceptance (the last draft and the added
    token are both new) and a rollback across several rounds are one rule.
    """

    vocab_size: int
    context_length: int

    def start(self, tokens: list[int], features: torch.Tensor, rule: AcceptanceRule) -> None:
        """Forget everything and follow `tokens`: the prompt and the first token behind it.

        features: [len(tokens) - 1, hidden], the enclosing model's at the prompt's positions; a drafter that does not
        need them ignores them. rule: how the outermost level chooses tokens (greedy, or its random state).
        """
        ...

    def propose(self, limit: int) -> DraftTree:
        """A draft at most `limit` tokens deep, under the last confirmed token; just the root where there is none."""
        ...

    def commit(self, length: int, tokens: list[int], features: torch.Tensor) -> None:
        """The first `length` confirmed tokens stay, whatever came after them is `tokens` now.

        features: [n, hidden], the enclosing model's at the n positions that follow those already known; the last of
        `tokens` has none yet.
        """
        ...
