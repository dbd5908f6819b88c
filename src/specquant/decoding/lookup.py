"""Drafts without weights: what a text itself suggests, alone, below an intermediate model, or before a head.

A lookup costs a search on the host, and no pass. So it says what the passes of other drafters buy.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch

from specquant.decoding.acceptance import AcceptanceRule
from specquant.decoding.drafter import Drafter
from specquant.decoding.method import DraftSettings, Method, Plan, TwoModels
from specquant.decoding.speculator import Speculator
from specquant.decoding.tree import DraftTree
from specquant.errors import SpecquantError
from specquant.models.graphs import GraphedLlama
from specquant.models.llama import Llama


class Lookup(Drafter):
    """Drafts tokens that followed where the last ones stood before.

    Attributes:
        context_length: Positions that it can follow: the enclosing model's.
        device: Where drafts are put.
        draft_tokens: How many tokens are drafted at most.
        branches: 1: drafts are sequences; more: trees, which share those tokens.
        shortest_match: How many of the last tokens must have stood before, or nothing is drafted.

    Raises:
        SpecquantError: If one of the last three is below 1.
    """

    name: str  # what sentences call it

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        device: torch.device | str = "cpu",
        draft_tokens: int = 10,
        branches: int = 1,
        shortest_match: int = 1,
    ):
        self._require(
            {
                "the number of tokens that {} drafts": draft_tokens,
                "the number of branches of {}": branches,
                "the shortest match of {}": shortest_match,
            }
        )
        self.vocab_size, self.context_length, self.device = vocab_size, context_length, torch.device(device)
        self.draft_tokens, self.branches, self.shortest_match = draft_tokens, branches, shortest_match
        self.draft_size = 0 if branches == 1 else 1 + draft_tokens

    def _require(self, numbers: dict[str, int]) -> None:
        """Raises SpecquantError for a number below 1, by what it is."""
        for what, number in numbers.items():
            if number < 1:
                raise SpecquantError(f"{what.format(self.name)} is {number}; it must be at least 1")

    @classmethod
    @abstractmethod
    def below(cls, model: Llama | GraphedLlama, vocab_size: int, settings: DraftSettings, shortest_match: int = 1):
        """One that drafts for a model, tokens of a vocabulary, as settings say."""


class FirstDraft(Drafter):
    """Several drafters as one: the draft is that of the first that has one.

    Args:
        drafters: In the order in which they are asked. Each follows the text all the time.

    Raises:
        SpecquantError: Where their vocabularies differ.
    """

    def __init__(self, *drafters: Drafter):
        sizes = sorted({drafter.vocab_size for drafter in drafters})
        if len(sizes) != 1:
            raise SpecquantError(
                f"drafters with vocabularies of {' and '.join(map(str, sizes))} entries cannot be joined: use drafters "
                "with one tokenizer"
            )
        self.drafters, self.vocab_size = drafters, sizes[0]
        self.context_length = min(drafter.context_length for drafter in drafters)
        self.draft_size = max(drafter.draft_size for drafter in drafters)
        self.needs_features = any(drafter.needs_features for drafter in drafters)
        self.feature_layers = self._layers()

    def _layers(self) -> tuple[int, ...]:
        """Of the features that they read. Raises SpecquantError where not all of them read the same ones."""
        read = {drafter.feature_layers for drafter in self.drafters if drafter.needs_features}
        if len(read) > 1:
            raise SpecquantError("drafters that read features of different layers cannot be joined")
        return read.pop() if read else ()

    def start(self, tokens: list[int], features: torch.Tensor | None, rule: AcceptanceRule) -> None:
        for drafter in self.drafters:
            drafter.start(tokens, features if drafter.needs_features else None, rule)

    def commit(self, length: int, tokens: list[int], features: torch.Tensor | None) -> None:
        for drafter in self.drafters:
            drafter.commit(length, tokens, features if drafter.needs_features else None)

    def propose(self, limit: int) -> DraftTree:
        for drafter in self.drafters:
            tree, self.rounds = drafter.propose(limit), drafter.rounds
            if len(tree) > 1:
                break
        return tree


class LookupMethod(Method):
    """The target verifies what the text itself suggests."""

    lookup: type[Lookup]

    def drafter(
        self, plan: Plan, models: TwoModels, trees: Callable[[str], Drafter], settings: DraftSettings
    ) -> Drafter:
        return self.lookup.below(models.target, models.target.config.vocab_size, settings)


class HierarchicalLookup(LookupMethod):
    """The intermediate model verifies what the text itself suggests, and hands up the sequence that it accepted."""

    companions = ("intermediate",)

    def plan(self, settings: DraftSettings) -> Plan:
        return Plan(self.name, min_draft_length=settings.least)

    def drafter(
        self, plan: Plan, models: TwoModels, trees: Callable[[str], Drafter], settings: DraftSettings
    ) -> Drafter:
        vocab_size = models.target.config.vocab_size
        below = self.lookup.below(models.intermediate, vocab_size, settings)
        return Speculator(models.intermediate, below, plan.min_draft_length, vocab_size)


class LookupOrHead(LookupMethod):
    """The target verifies what the text itself suggests where a long match stood before, else its EAGLE head's tree."""

    companions = ("eagle_target",)
    head = "eagle"

    def plan(self, settings: DraftSettings) -> Plan:
        return Plan(self.name, *settings.tree)

    def drafter(
        self, plan: Plan, models: TwoModels, trees: Callable[[str], Drafter], settings: DraftSettings
    ) -> Drafter:
        long = settings.long_match
        settings = replace(settings, ngram_length=max(long, settings.ngram_length))
        lookup = self.lookup.below(models.target, models.target.config.vocab_size, settings, long)
        return FirstDraft(lookup, trees("target"))
