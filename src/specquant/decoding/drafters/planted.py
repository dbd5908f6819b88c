"""Planted drafts: a model's own tokens, known from decoding one by one, with errors at a stated rate.

Random weights agree with nobody, so that no drafter could be of use to them. But what they decode one by one can be
drafted, and the ordinary greedy rule then finds by itself what to keep. So acceptance is measured, and so is whether
every token is the one that decoding one by one gave. This is no method for users: it needs the text that it drafts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from specquant.decoding.acceptance import AcceptanceRule, Greedy, Verdict
from specquant.decoding.drafter import Around, Drafter
from specquant.decoding.speculator import Speculator
from specquant.decoding.step import Step
from specquant.decoding.tree import DraftTree, on_device
from specquant.errors import SpecquantError


class Errors:
    """Makes tokens wrong at a stated rate, the same ones for the same seed."""

    def __init__(self, rate: float, vocab_size: int, seed: int | Sequence[int] = 0):
        """rate: the probability that a token is wrong. Raises SpecquantError where it is none."""
        if not 0 <= rate <= 1:
            raise SpecquantError(f"the error rate is {rate}: give a probability, from 0 to 1")
        self.rate, self.vocab_size = rate, vocab_size
        self.generator = np.random.default_rng(seed)

    def plant(self, tokens: np.ndarray, on_branch: np.ndarray | None = None) -> np.ndarray:
        """Tokens, int64 [n], with errors.

        Args:
            tokens: of which each is right where it stands.
            on_branch: bool [n], those that stay right but for the rate; the others become wrong. None: all.

        Returns:
            int64 [n]. Of fewer than vocab_size tokens that were the same, no two wrong ones are, as siblings need.
        """
        n = len(tokens)
        wrong = self.generator.random(n) < self.rate
        if on_branch is not None:
            wrong |= ~on_branch
        offsets = 1 + (self.generator.integers(self.vocab_size - 1) + np.arange(n)) % (self.vocab_size - 1)
        return np.where(wrong, (tokens + offsets) % self.vocab_size, tokens)


@dataclass(frozen=True)
class PlantedTree(DraftTree):
    """A tree with the text on one of its branches. branch: that branch's rows, without the root."""

    branch: tuple[int, ...] = ()


def judged_and_accepted(step: Step) -> tuple[int, int]:
    """Of the text that a step's draft held: the tokens that verification came to, and those that it kept.

    It goes along the branch to the first token that it rejects, so what stands behind that was never judged.
    """
    on_branch = len(step.tree.branch) if isinstance(step.tree, PlantedTree) else len(step.tree) - 1
    return min(len(step.path) + 1, on_branch), len(step.path)


@dataclass(frozen=True)
class _Shape:
    """A tree whose tokens are still to come. branches: the rows from the root to each leaf, the root left out."""

    tree: DraftTree
    depths: np.ndarray
    branches: list[tuple[int, ...]]

    @classmethod
    def of(cls, parents: Sequence[int], device: torch.device | str) -> "_Shape":
        tree = DraftTree.from_parents(torch.zeros(len(parents), dtype=torch.int64), torch.tensor(parents))
        branches = []
        for leaf in sorted(set(range(1, len(parents))) - set(parents)):
            seen = tree.ancestors[leaf].nonzero()[:, 0].tolist()
            branches.append(tuple(seen[1:]))
        on_it = (part.to(device) for part in (tree.tokens, tree.parents, tree.depths, tree.ancestors))
        return cls(DraftTree(*on_it), tree.depths.numpy(), branches)


class PlantedDrafts(Drafter):
    """Drafts the text that it follows: in given shapes, in turn, on a branch drawn anew for each, with errors.

    A sequence is a shape with one branch. Where there is a drafter below, it drafts as ever, and its tokens alone are
    replaced, so that a draft takes its time.
    """

    def __init__(
        self,
        shapes: Sequence[Sequence[int]],
        errors: Errors,
        context_length: int,
        device: torch.device | str,
        drafter: Drafter | None = None,
    ):
        """shapes: the parents of every draft's nodes. Raises SpecquantError where they do not fit `drafter`, or have as
        many nodes as there are tokens."""
        self.shapes = [_Shape.of(parents, device) for parents in shapes]
        self.errors, self.device, self.drafter = errors, device, drafter
        self.vocab_size, self.context_length = errors.vocab_size, context_length
        sizes = {len(shape.tree) for shape in self.shapes}
        self.draft_size = max(sizes)
        if drafter:
            self.context_length, self.needs_features = drafter.context_length, drafter.needs_features
            self.feature_layers = drafter.feature_layers
            if sizes != {drafter.draft_size}:
                raise SpecquantError(f"a drafter of {drafter.draft_size} nodes needs recorded trees of that size")
        if self.draft_size >= self.vocab_size:
            raise SpecquantError(
                f"a draft of {self.draft_size} nodes cannot have different wrong tokens in a vocabulary of "
                f"{self.vocab_size}: take smaller trees"
            )
        self.text = np.empty(0, dtype=np.int64)
        self.turn = self.length = self.last = 0

    def follow(self, text: Sequence[int]) -> None:
        """From now on draft this text: a prompt's tokens and those that are known behind it."""
        self.text = np.asarray(text, dtype=np.int64)

    def start(self, tokens: list[int], features: torch.Tensor | None, rule: AcceptanceRule) -> None:
        self.length, self.last = len(tokens), tokens[-1]
        if self.drafter:
            self.drafter.start(tokens, features, rule)

    def propose(self, limit: int) -> DraftTree:
        """A draft in the next shape; just the root where the draft below has none, `limit` is too low, or the text is
        not known as far as the shape goes."""
        root = self.length - 1
        drafted = self.drafter.propose(limit) if self.drafter else None
        shape = self.shapes[self.turn % len(self.shapes)]
        deepest = int(shape.depths.max())
        smaller = drafted is not None and len(drafted) < len(shape.tree)
        if smaller or limit < deepest or root + deepest >= len(self.text):
            return DraftTree.sequence(on_device([self.last], torch.device(self.device)))
        self.turn += 1
        branch = shape.branches[self.errors.generator.integers(len(shape.branches))]
        on_branch = np.zeros(len(shape.depths), dtype=bool)
        on_branch[list(branch)] = True
        tokens = self.errors.plant(self.text[root + shape.depths], on_branch).tolist()
        planted = on_device([self.last, *tokens[1:]], torch.device(self.device))
        return PlantedTree(planted, shape.tree.parents, shape.tree.depths, shape.tree.ancestors, branch=branch)

    def commit(self, length: int, tokens: list[int], features: torch.Tensor | None) -> None:
        self.length, self.last = length + len(tokens), tokens[-1]
        if self.drafter:
            self.drafter.commit(length, tokens, features)


class PlantedModel(Around):
    """An intermediate model that says the text that it follows, with errors: its disagreement with the model above.

    It runs every pass, and judges what is drafted for it by the ordinary greedy rule. Only its logits are made to say
    the text, since a model with random weights would say anything else.
    """

    drafter: Speculator

    def __init__(self, speculator: Speculator, errors: Errors):
        """speculator: the intermediate model; what drafts for it, if anything does, is a `PlantedDrafts`."""
        super().__init__(speculator)
        self.errors = errors
        self.said = torch.empty(0, dtype=torch.int64)

    def follow(self, text: Sequence[int]) -> None:
        """From now on say this text but for errors, which are drawn here, and have them drafted, too."""
        said = self.errors.plant(np.asarray(text, dtype=np.int64))
        self.said = torch.from_numpy(said).to(self.drafter.model.device)
        if isinstance(self.drafter.drafter, PlantedDrafts):
            self.drafter.drafter.follow(said.tolist())

    def start(self, tokens: list[int], features: torch.Tensor | None, rule: AcceptanceRule) -> None:
        super().start(tokens, features, _Says(self))

    def propose(self, limit: int) -> DraftTree:
        draft = self.drafter.propose(limit)
        self.rounds = self.drafter.rounds
        return draft


class _Says(Greedy):
    """The ordinary greedy rule, by logits that say a planted model's text."""

    def __init__(self, model: PlantedModel):
        self.model = model

    def judge(self, tree: DraftTree, logits: torch.Tensor) -> Verdict:
        following = len(self.model.drafter.tokens) + tree.depths
        # Behind the end of the text any token is as good.
        said = self.model.said[following.clamp(max=len(self.model.said) - 1)]
        return super().judge(tree, logits.scatter_(1, said[:, None], torch.inf))
