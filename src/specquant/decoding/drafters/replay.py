"""Recorded trees as drafts, for random weights (`decoding.replay`): a drafter's work in the shapes that others grew."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from specquant.decoding.acceptance import AcceptanceRule
from specquant.decoding.budget import Budget
from specquant.decoding.drafter import Around, Drafter
from specquant.decoding.drafters.eagle2 import EagleDrafter
from specquant.decoding.lookup import FirstDraft, Lookup
from specquant.decoding.replay import ConfidenceTrace, ShapedTree
from specquant.decoding.speculator import Speculator
from specquant.decoding.traces import Trace
from specquant.decoding.tree import DraftTree
from specquant.errors import SpecquantError

TEXT_TOKENS = 1000  # different ones in a text: prose of 2500 words and marks has about 900


class ReplayedTrees(Around):
    """A drafter whose trees take recorded shapes, in turn. It drafts as ever, tokens included."""

    def __init__(self, drafter: Drafter, shapes: Sequence[Sequence[int]] | Sequence[Trace], device: torch.device | str):
        """shapes: the parents of every tree's nodes, as many as `drafter` drafts, or steps with what they accepted."""
        super().__init__(drafter)
        self.shapes = [
            ShapedTree.of(*((shape.parents, device, shape.path) if isinstance(shape, Trace) else (shape, device)))
            for shape in shapes
        ]
        if self.draft_size and {len(shape) for shape in self.shapes} != {self.draft_size}:
            raise SpecquantError(f"a drafter of {self.draft_size} nodes needs recorded trees of that size")
        self.turn = 0

    def start(self, tokens: list[int], features: torch.Tensor | None, rule: AcceptanceRule) -> None:
        self.turn = 0
        super().start(tokens, features, rule)

    def propose(self, limit: int) -> DraftTree:
        """A tree in the next shape; just the root where the draft is smaller or `limit` too low."""
        tree = self.drafter.propose(limit)
        shape = self.shapes[self.turn % len(self.shapes)]
        if len(tree) < len(shape) or limit < len(shape.longest):
            return DraftTree.sequence(tree.tokens[:1])
        self.turn += 1
        return replace(shape, tokens=tree.tokens)


class ReplayedLookup(ReplayedTrees):
    """A lookup whose drafts take recorded shapes, in turn. It searches as ever, but in a text that repeats itself.

    Text repeats its tokens. What a random model writes does not, and a search in it takes another time. So of each
    token only the remainder by `TEXT_TOKENS` is looked at; then searches of 500 to 2500 tokens find as much as in prose
    and take as long, within a tenth. A draft that is shorter than the recorded one begins anew.
    """

    def start(self, tokens: list[int], features: torch.Tensor | None, rule: AcceptanceRule) -> None:
        super().start([token % TEXT_TOKENS for token in tokens], features, rule)

    def commit(self, length: int, tokens: list[int], features: torch.Tensor | None) -> None:
        super().commit(length, [token % TEXT_TOKENS for token in tokens], features)

    def propose(self, limit: int) -> DraftTree:
        """A draft in the next shape; just the root where `limit` is too low."""
        found, shape = self.drafter.propose(limit), self.shapes[self.turn % len(self.shapes)]
        if limit < len(shape.longest):
            return DraftTree.sequence(found.tokens[:1])
        self.turn += 1
        return replace(shape, tokens=found.tokens.repeat(-(-len(shape) // len(found)))[: len(shape)])


def with_replayed_lookups(drafter: Drafter, steps: Sequence[Trace]) -> Drafter:
    """The drafter, changed in place, in which a lookup drafts what was recorded, wherever it stands.

    steps: what the lookup is to draft, in turn; just a root where it finds nothing.
    """
    if isinstance(drafter, Lookup):
        return ReplayedLookup(drafter, steps, drafter.device)
    if isinstance(drafter, FirstDraft):
        drafter.drafters = tuple(with_replayed_lookups(each, steps) for each in drafter.drafters)
    elif isinstance(drafter, Speculator) and drafter.drafter is not None:
        drafter.drafter = with_replayed_lookups(drafter.drafter, steps)
    return drafter


class TracedBudget(Budget):
    """Learns of a recorded tree, as if the head had said that, and takes as long as by the head."""

    trace: ConfidenceTrace

    def learn(self, accepted: int, confidence: np.ndarray | None = None, depths: np.ndarray | None = None) -> None:
        recorded = () if confidence is None else (self.trace.confidence, self.trace.depths)
        super().learn(accepted, *recorded)


class TracedTrees(Around):
    """A drafter whose trees are recorded ones, one a step, in turn. It drafts as ever, tokens included.

    It has as many nodes and iterations as its budget, a `TracedBudget`, chooses; without one, as many as its own. A
    step without a draft takes its turn, too: the text goes on.
    """

    drafter: EagleDrafter

    def __init__(self, drafter: EagleDrafter, traces: Sequence[ConfidenceTrace]):
        super().__init__(drafter)
        self.traces = traces
        self.shapes: dict[tuple[int, int, int], ShapedTree] = {}
        self.turn = 0

    def start(self, tokens: list[int], features: torch.Tensor | None, rule: AcceptanceRule) -> None:
        self.turn = 0
        super().start(tokens, features, rule)

    def propose(self, limit: int) -> DraftTree:
        turn = self.turn % len(self.traces)
        if isinstance(self.drafter.budget, TracedBudget):
            self.drafter.budget.trace = self.traces[turn]
        tree = self.drafter.propose(limit)
        self.turn += 1
        if len(tree) == 1:
            return tree
        key = turn, self.drafter.latest_iterations, len(tree)
        if key not in self.shapes:
            self.shapes[key] = self.traces[turn].within(key[1]).shape(len(tree), tree.tokens.device)
        return replace(self.shapes[key], tokens=tree.tokens)
