"""The intermediate model as a drafter: a `Speculator`, alone (vanilla) or drafted for by a head (the hierarchy)."""

from collections.abc import Callable

import numpy as np

from specquant.decoding.drafter import Drafter
from specquant.decoding.method import (
    Costs,
    DraftSettings,
    Method,
    ModelCosts,
    Plan,
    Prediction,
    Statistics,
    TwoModels,
    known_trees,
)
from specquant.decoding.speculator import Speculator
from specquant.errors import SpecquantError
from specquant.tables.marks import Mark


class Vanilla(Method):
    """The intermediate model decodes token by token, and hands up what it decoded."""

    name = "vanilla"
    mark = Mark("vanilla", "#de8f05", "s")
    place = 1
    companions: tuple[str, ...] = ("intermediate",)
    may_share_cache = True
    probes = tuple(Plan("vanilla", min_draft_length=length) for length in (2, 12))

    def plan(self, settings: DraftSettings) -> Plan:
        return Plan(self.name, min_draft_length=settings.least)

    def drafter(
        self, plan: Plan, models: TwoModels, trees: Callable[[str], Drafter], settings: DraftSettings
    ) -> Speculator:
        below = trees("intermediate") if self.head else None
        vocab_size, shares = models.target.config.vocab_size, models.share_cache and self.may_share_cache
        return Speculator(models.intermediate, below, plan.min_draft_length, vocab_size, shares)

    def plans(self, costs: ModelCosts, statistics: Statistics, min_draft_lengths: list[int]) -> list[Plan]:
        if costs.intermediate is None or not statistics.agreement:
            return []
        return self._plans(costs, statistics, min_draft_lengths, costs.target.verify_ms.index.max() - 1)

    def _plans(
        self, costs: ModelCosts, statistics: Statistics, min_draft_lengths: list[int], longest: int
    ) -> list[Plan]:
        """Those that hand up at most `longest` tokens."""
        return [Plan(self.name, min_draft_length=length) for length in min_draft_lengths if length <= longest]

    def accepted_length(self, plan: Plan, statistics: Statistics) -> float:
        return statistics.inner_steps(plan).accepted_length

    def predict(self, plan: Plan, costs: ModelCosts, statistics: Statistics) -> Prediction:
        target, inner = costs.target, self._inner(costs)
        steps = statistics.inner_steps(plan)
        sizes = np.arange(len(steps.lengths)) + 1
        verify_ms = sum(
            chance * target.verify(float(size)) for size, chance in zip(sizes, steps.lengths, strict=True) if chance
        )
        draft_ms = steps.rounds * (self._round_ms(plan, costs) + inner.other_ms)
        draft_ms += steps.catch_ups * (inner.verify(2) + inner.other_ms)
        rounds = steps.rounds + steps.catch_ups
        return Prediction(steps.accepted_length, float(steps.lengths @ sizes), rounds, draft_ms, verify_ms)

    def _round_ms(self, plan: Plan, costs: ModelCosts) -> float:
        return self._inner(costs).verify(1)

    def _inner(self, costs: ModelCosts) -> Costs:
        if costs.intermediate is None:
            raise SpecquantError(f"{self.name} needs the costs of an intermediate model")
        return costs.intermediate


class Hierarchical(Vanilla):
    """The intermediate model verifies EAGLE-2's trees, and hands up the sequence that it accepted."""

    name = "hierarchical"
    mark = Mark("hierarchical", "#029e73", "D")
    place = 3
    companions = ("intermediate", "eagle_intermediate")
    trees_of = "intermediate"
    head = "eagle"
    may_share_cache = False
    probes = tuple(Plan("hierarchical", *tree, 6) for tree in ((8, 2), (8, 3), (16, 3), (30, 3)))

    def plan(self, settings: DraftSettings) -> Plan:
        return Plan(self.name, *settings.inner_tree, settings.least)

    def _plans(
        self, costs: ModelCosts, statistics: Statistics, min_draft_lengths: list[int], longest: int
    ) -> list[Plan]:
        return [
            Plan(self.name, *tree, length)
            for tree in known_trees(statistics.inner_trees, self._inner(costs))
            for length in min_draft_lengths
            if length - 1 + len(statistics.inner_trees[tree]) <= longest  # tokens that a round adds at most
        ]

    def _round_ms(self, plan: Plan, costs: ModelCosts) -> float:
        inner = self._inner(costs)
        return inner.draft(plan.iterations) + inner.verify(plan.draft_size)
