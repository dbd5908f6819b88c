"""What a drafter is: anything that follows a model's confirmed tokens and proposes what comes next."""

from collections.abc import Sequence
from typing import Protocol

import torch

from specquant.decoding.acceptance import AcceptanceRule
from specquant.decoding.step import Step
from specquant.decoding.tree import DraftTree
from specquant.models.cache import KVCache


class Drafter(Protocol):
    """Proposes drafts for an enclosing model and follows what that model confirms.

    A drafter's state is positional: how many confirmed positions it has run. `commit` truncates that to the tokens
    which stay and queues the new ones, so the first step, a rejection, full acceptance (the last draft and the added
    token are both new) and a rollback across several rounds are one rule.

    The defaults are those of a drafter that proposes sequences and runs no model.

    vocab_size: of the tokens that it takes and gives. context_length: positions that it can follow.
    draft_size: the nodes of its largest tree, the root counted, for which the enclosing model keeps room behind its
    context; 0 where it proposes sequences, which end within the context.
    needs_features: whether it reads the enclosing model's features; to others None is handed.
    feature_layers: which features these are: the residual stream where these layers begin, side by side, as
    `Llama.run` counts them; where none is named, what the final norm makes.
    rounds: the steps of its own model in the latest `propose`, where it has one.
    """

    vocab_size: int
    context_length: int
    draft_size: int = 0
    needs_features: bool = False
    feature_layers: tuple[int, ...] = ()
    rounds: Sequence[Step] = ()

    def read_cache(self, cache: KVCache) -> None:
        """Told once of the enclosing model's cache, for those that read it as their own."""
        return

    def start(self, tokens: list[int], features: torch.Tensor | None, rule: AcceptanceRule) -> None:
        """Forget everything and follow `tokens`: the prompt and the first token behind it.

        features: [len(tokens) - 1, width], the enclosing model's at the prompt's positions, if it needs them. rule:
        how the outermost level chooses tokens (greedy, or its random state).
        """
        ...

    def propose(self, limit: int) -> DraftTree:
        """A draft at most `limit` tokens deep, under the last confirmed token; just the root where there is none."""
        ...

    def commit(self, length: int, tokens: list[int], features: torch.Tensor | None) -> None:
        """The first `length` confirmed tokens stay, whatever came after them is `tokens` now.

        features: [n, width], the enclosing model's at the n positions that follow those already known, if it needs
        them; the last of `tokens` has none yet.
        """
        ...


class Around(Drafter):
    """A drafter around another one, `drafter`: it follows the text as that does. What is drafted, it says itself."""

    def __init__(self, drafter: Drafter):
        self.drafter = drafter
        self.vocab_size, self.context_length = drafter.vocab_size, drafter.context_length
        self.draft_size, self.needs_features = drafter.draft_size, drafter.needs_features
        self.feature_layers = drafter.feature_layers

    def read_cache(self, cache: KVCache) -> None:
        self.drafter.read_cache(cache)

    def start(self, tokens: list[int], features: torch.Tensor | None, rule: AcceptanceRule) -> None:
        self.drafter.start(tokens, features, rule)

    def commit(self, length: int, tokens: list[int], features: torch.Tensor | None) -> None:
        self.drafter.commit(length, tokens, features)
