"""What one step of speculative decoding did."""

from dataclasses import dataclass, field

import torch

from specquant.decoding.tree import DraftTree


@dataclass(frozen=True)
class Step:
    """One step of a level: what it added to its confirmed tokens, and where the time went.

    tokens: the accepted drafts and the token that the model added: their number is the accepted length. tree: what was
    verified, and path: its accepted rows. inner_accepted_lengths: one for each step (round) of the level below.
    draft_ms: until the draft is there; verify_ms: until the host knows what is accepted; other_ms: the rest.
    q: None under greedy decoding, else [len(tokens), vocab_size], the distribution that each token follows.
    """

    tokens: list[int]
    tree: DraftTree = field(repr=False)
    path: list[int]
    inner_accepted_lengths: list[int]
    draft_ms: float
    verify_ms: float
    other_ms: float
    q: torch.Tensor | None = field(default=None, repr=False)

    @property
    def accepted_length(self) -> int:
        return len(self.tokens)
