"""What each method gains, predicted: from the costs of passes and drafts, and from how often drafts are accepted."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict

import numpy as np
import pandas as pd

from specquant.decoding.drafters import METHODS, get_method
from specquant.decoding.method import PLAN_FIELDS, Plan
from specquant.planning.acceptance import AcceptanceStatistics
from specquant.planning.costs import LevelCosts
from specquant.tables.speed import speed

MIN_DRAFT_LENGTHS = (2, 3, 4, 5, 6, 8, 10, 12)
LEAST_GAIN = 1.01  # of other heads, to be told


class Planner:
    """Predicts plans for a target and an optional intermediate model, from what their steps cost."""

    def __init__(self, target: LevelCosts, intermediate: LevelCosts | None = None):
        self.target, self.intermediate = target, intermediate

    def plans(
        self, statistics: AcceptanceStatistics, min_draft_lengths: Iterable[int] = MIN_DRAFT_LENGTHS
    ) -> list[Plan]:
        """Every plan that can be predicted: all trees of known acceptance, where all passes were measured."""
        lengths = list(min_draft_lengths)
        return [plan for method in METHODS.values() for plan in method.plans(self, statistics, lengths)]

    def best(self, statistics: AcceptanceStatistics, plans: Iterable[Plan] | None = None) -> Plan:
        """The plan with the most tokens per second, of `plans` or of all that can be predicted."""
        return max(plans or self.plans(statistics), key=lambda plan: self.predict(plan, statistics)["tokens_per_s"])

    def table(self, statistics: AcceptanceStatistics, plans: Iterable[Plan] | None = None) -> pd.DataFrame:
        """The predictions, a row for each plan, the fastest first; speedup is that over autoregressive decoding."""
        rows = pd.DataFrame(asdict(plan) | self.predict(plan, statistics) for plan in plans or self.plans(statistics))
        plain = self.predict(Plan("autoregressive"), statistics)["tokens_per_s"]
        return rows.assign(speedup=rows.tokens_per_s / plain).sort_values("tokens_per_s", ascending=False)

    def predict(self, plan: Plan, statistics: AcceptanceStatistics) -> dict[str, float]:
        """What one plan would reach.

        Args:
            plan: the method, and how it drafts.
            statistics: how often its drafts are accepted.

        Returns:
            Columns of throughput.csv: means over the target's steps, in tokens and in milliseconds, and tokens_per_s.

        Raises:
            SpecquantError: if the method is unknown, its model or tree was not given, or a size was not measured.
        """
        predicted = get_method(plan.method).predict(plan, self, statistics)
        step_ms = predicted.draft_ms + predicted.verify_ms + self.target.other_ms
        return {
            "accepted_length": predicted.accepted_length,
            "mean_draft_size": predicted.draft_size,
            "inner_rounds": predicted.inner_rounds,
            "draft_ms": predicted.draft_ms,
            "verify_ms": predicted.verify_ms,
            "other_ms": self.target.other_ms,
            "tokens_per_s": speed(predicted.accepted_length, step_ms),
        }


def fastest(table: pd.DataFrame, rows: int) -> pd.DataFrame:
    """Of `Planner.table`: the first rows, and the fastest plan of each method that is not among them."""
    return table[(np.arange(len(table)) < rows) | ~table["method"].duplicated()]


def faster_heads(tables: Mapping[str, pd.DataFrame]) -> tuple[str, float, float] | None:
    """The scheme of heads with which the fastest plan would be fastest, its tokens per second, and these over those
    with the first scheme's heads; None where nothing is gained.

    tables: `Planner.table` by the scheme of heads. Of the others' plans only those count that the first has, too.
    """
    speeds = {heads: table.set_index([*PLAN_FIELDS]).tokens_per_s for heads, table in tables.items()}
    first, *_ = speeds.values()
    best = {heads: float(of_heads[of_heads.index.isin(first.index)].max()) for heads, of_heads in speeds.items()}
    heads = max(best, key=lambda each: best[each])
    gain = best[heads] / first.max()
    return (heads, best[heads], gain) if gain >= LEAST_GAIN else None
