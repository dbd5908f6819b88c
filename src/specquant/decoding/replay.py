"""Replayed acceptance, for random weights: every pass really runs, and a stated model says how much of a draft counts.

Random weights agree with nobody, and their logits are almost uniform, so that EAGLE-2 would grow flat trees. So drafts
keep their cost, take the shape of trees that a trained head grew, and are accepted by chance.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import cycle

import numpy as np
import torch

from specquant.decoding.acceptance import Acceptance, Verdict, added_to_root, padded_rows
from specquant.decoding.tree import DraftTree
from specquant.errors import SpecquantError
from specquant.kernels.acceptance import accept_greedily

BLOCK = 32  # draws of one depth that together are spread evenly


@dataclass(frozen=True)
class ShapedTree(DraftTree):
    """A tree with a recorded shape. longest: the rows of its longest path, of equals the first, without the root.
    accepted: those that were accepted of it, where that was recorded, too."""

    longest: tuple[int, ...] = ()
    accepted: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls, parents: Sequence[int], device: torch.device | str, accepted: tuple[int, ...] | None = None
    ) -> "ShapedTree":
        """A shape alone, from the parents of its nodes; its tokens are 0."""
        shape = DraftTree.from_parents(torch.zeros(len(parents), dtype=torch.int64), torch.tensor(parents))
        path: list[int] = []
        row = int(shape.depths.argmax())
        while row > 0:
            path.insert(0, row)
            row = parents[row]
        on_it = {name: getattr(shape, name).to(device) for name in ("tokens", "parents", "depths", "ancestors")}
        return cls(**on_it, longest=tuple(path), accepted=accepted)


@dataclass(frozen=True, eq=False)
class ConfidenceTrace:
    """One step's tree, its nodes in the order of confidence, the root first.

    Attributes:
        confidence: Of the path to each.
        parents: Each lower than its own place; the root's is -1.
        accepted: Places of the nodes that were accepted, the root's among them.
    """

    confidence: np.ndarray
    parents: tuple[int, ...]
    accepted: tuple[int, ...]

    @cached_property
    def depths(self) -> np.ndarray:
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return np.array(depths)

    @cache  # noqa: B019  (traces live as long as what is planned with them)
    def within(self, iterations: int) -> "ConfidenceTrace":
        """What fewer iterations would have drafted of it."""
        kept = np.flatnonzero(self.depths <= iterations)
        place = {-1: -1} | {int(row): new for new, row in enumerate(kept)}
        return ConfidenceTrace(
            self.confidence[kept],
            tuple(place[self.parents[row]] for row in kept),
            tuple(place[row] for row in self.accepted if row in place),
        )

    def accepted_length(self, size: int) -> int:
        """Of its first nodes, with the token that the model adds."""
        return sum(row < size for row in self.accepted)

    def shape(self, size: int, device: torch.device | str) -> ShapedTree:
        """The tree of its first nodes. Where it has fewer, the others hang from the root and are never accepted."""
        nodes = [*self.parents[:size], *[0] * (size - len(self.parents))]
        path = tuple(row for row in self.accepted[1:] if row < size)
        return ShapedTree.of(nodes, device, path)


@dataclass
class Replay:
    """Accepts by chance, and takes as long as greedy acceptance does.

    head: of a tree's longest path, the probability that a token is accepted once those before it are, by depth; the
    last one also serves all deeper ones. agreement: the same for each token of a sequence, which comes from a model.
    The added token is the likeliest. Of every BLOCK draws at a depth one falls into each of as many equal parts of
    [0, 1), so that the accepted length of a few hundred tokens is nearer to the mean of very many; deep in a draft,
    where few draws are made, it helps less. sequences: how many tokens of each sequence were accepted where that was
    recorded, None for all; they are taken in turn, and nothing is drawn. Raises SpecquantError for what is no
    probability.
    """

    head: Sequence[float]
    agreement: float
    seed: int = 0
    sequences: Sequence[int | None] = ()
    generator: np.random.Generator = field(init=False, repr=False)
    draws: dict[int, Iterator[float]] = field(init=False, repr=False)  # by depth
    recorded: Iterator[int | None] = field(init=False, repr=False)

    def __post_init__(self):
        if not self.head or not all(0 <= p <= 1 for p in (*self.head, self.agreement)):
            raise SpecquantError(
                f"acceptance is given by probabilities from 0 to 1, not {list(self.head)} and {self.agreement}"
            )
        self.generator = np.random.default_rng(self.seed)
        self.draws = defaultdict(self._evenly)
        self.recorded = cycle(self.sequences)

    def _evenly(self) -> Iterator[float]:
        while True:
            yield from (self.generator.permutation(BLOCK) + self.generator.random(BLOCK)) / BLOCK

    def judge(self, tree: DraftTree, logits: torch.Tensor) -> Verdict:
        greedy = accept_greedily(tree.tokens, tree.parents, tree.ancestors, logits)
        judged = torch.cat((greedy, tree.tokens[None]))
        path = self.path(tree)

        def read() -> Acceptance:
            rows, likeliest, drafted = judged.tolist()
            return Acceptance(path, [*(drafted[row] for row in path), likeliest[sum(row >= 0 for row in rows) - 1]])

        return Verdict(padded_rows(path, len(tree), logits.device), read, added_to_root(greedy))

    def path(self, tree: DraftTree) -> list[int]:
        """The rows that are accepted by chance, or that were, without the root."""
        path = list(range(1, len(tree)))
        if isinstance(tree, ShapedTree) and tree.accepted is not None:
            return list(tree.accepted)
        if path and self.sequences and not isinstance(tree, ShapedTree):
            return path[: next(self.recorded)]
        chances: Sequence[float] = [self.agreement]
        if isinstance(tree, ShapedTree):
            path, chances = list(tree.longest), self.head
        for depth in range(len(path)):
            if next(self.draws[depth]) >= chances[min(depth, len(chances) - 1)]:
                return path[:depth]
        return path
