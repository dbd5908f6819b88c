"""What one step of speculative decoding did."""

from dataclasses import dataclass, field, replace

import torch

from specquant.decoding.tree import DraftTree


@dataclass(frozen=True)
class Step:
    """One step of a level: what it added to its confirmed tokens, and where the time went.

    tokens: the accepted drafts and the token that the model added: their number is the accepted length. tree: what was
    verified, and path: its accepted rows. inner_accepted_lengths: one for each step (round) of the level below.
    draft_ms: until the draft is there; verify_ms: until the host knows what is accepted; other_ms: the rest.
    q: None under greedy decoding, else [len(tokens), vocab_size], the distribution that each token follows.
    rounds: the steps of the level below.
    """

    tokens: list[int]
    tree: DraftTree = field(repr=False)
    path: list[int]
    inner_accepted_lengths: list[int]
    draft_ms: float
    verify_ms: float
    other_ms: float
    q: torch.Tensor | None = field(default=None, repr=False)
    rounds: tuple["Step", ...] = field(default=(), repr=False)

    @property
    def accepted_length(self) -> int:
        return len(self.tokens)

    def without_distributions(self) -> "Step":
        """They serve the level above; over a long text they would fill the memory."""
        rounds = tuple(step.without_distributions() for step in self.rounds)
        return replace(self, q=None, tree=replace(self.tree, q=None), rounds=rounds)
