"""What one step of speculative decoding did."""

from dataclasses import dataclass, field, replace
from time import perf_counter

import torch

from specquant.decoding.tree import DraftTree


@dataclass(frozen=True)
class Step:
    """One step of a level: what it added to its confirmed tokens, and where the time went.

    tokens: the accepted drafts and the token that the model added: their number is the accepted length. tree: what was
    verified, and path: its accepted rows. inner_accepted_lengths: one for each step (round) of the level below.
    draft_ms: until the draft is there, 0 where nothing drafts; verify_ms: until the host knows what is accepted;
    other_ms: the rest. q: None under greedy decoding, else [len(tokens), vocab_size], the distribution that each token
    follows. rounds: the steps of the level below.
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


Moment = torch.cuda.Event | float


def moment(device: torch.device) -> Moment:
    """This moment, of the device: a GPU notes it when it gets there."""
    if device.type != "cuda":
        return perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def milliseconds(start: Moment, end: Moment) -> float:
    """Between two moments that the device has passed."""
    if isinstance(start, float) and isinstance(end, float):
        return 1e3 * (end - start)
    if isinstance(start, float) or isinstance(end, float):
        raise TypeError("moments of two devices have no time between them")
    return start.elapsed_time(end)
