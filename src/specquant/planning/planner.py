"""What each method gains, predicted: from the costs of passes and drafts, and from how often drafts are accepted."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from specquant.decoding.drafters import METHODS, get_method
from specquant.decoding.method import PAPER_PLANS, PLAN_FIELDS, Plan
from specquant.errors import SpecquantError
from specquant.planning.acceptance import AcceptanceStatistics, Chances, Shapes

MIN_DRAFT_LENGTHS = (2, 3, 4, 5, 6, 8, 10, 12)


@dataclass(frozen=True)
class LevelCosts:
    """What a step of one model costs in milliseconds.

    verify_ms: a pass, by draft size, interpolated. draft_ms: an EAGLE-2 draft, by iterations; a line through them.
    Empty where the model has no head. other_ms: accepting and keeping the books.
    """

    verify_ms: pd.Series
    draft_ms: pd.Series
    other_ms: float = 0.0

    def verify(self, draft_size: float) -> float:
        sizes = self.verify_ms.index
        if not sizes.min() <= draft_size <= sizes.max():
            raise SpecquantError(
                f"a pass over {draft_size:g} tokens was not measured, only over {sizes.min()} to {sizes.max()}"
            )
        return float(np.interp(draft_size, sizes, self.verify_ms))

    def draft(self, iterations: int) -> float:
        if len(self.draft_ms) == 1:
            return float(self.draft_ms.iloc[0]) * iterations / self.draft_ms.index[0]
        return float(np.polyval(np.polyfit(self.draft_ms.index, self.draft_ms, 1), iterations))


def measured_costs(
    verify_cost: pd.DataFrame,
    drafting: pd.DataFrame,
    model: str,
    scheme: str,
    head_scheme: str = "fp16",
    head_vocabulary: int | None = None,
    context_length: int = 512,
    other_ms: float = 0.0,
) -> LevelCosts:
    """One model's costs from the tables verify_cost.csv and drafting.csv of one GPU; head_vocabulary: None for all.

    Raises SpecquantError where the pass of one token was not measured; a head that was not measured cannot draft.
    """
    passes = verify_cost[(verify_cost.model == model) & (verify_cost.scheme == scheme)]
    passes = passes[passes.context_length == context_length].set_index("draft_size").time_ms.sort_index()
    if 1 not in passes.index:
        raise SpecquantError(f"no pass of {model} in {scheme} behind {context_length} tokens was measured")
    drafts = drafting[(drafting.model == model) & (drafting.head_scheme == head_scheme)]
    known = head_vocabulary or drafts.head_vocabulary.max()
    return LevelCosts(passes, drafts[drafts.head_vocabulary == known].groupby("iterations").time_ms.mean(), other_ms)


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
        """The columns of throughput.csv for one plan: means over steps, times in milliseconds a step.

        Raises SpecquantError for an unknown method, a model or tree that was not given, and a size that was not
        measured.
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
            "tokens_per_s": 1e3 * predicted.accepted_length / step_ms,
        }


def phases(
    planner: Planner,
    shapes: Shapes,
    head_chances: Sequence[float],
    agreements: Sequence[float],
    plans: Sequence[Plan] | None = None,
) -> pd.DataFrame:
    """The fastest plan's method for each agreement (rows) and each chance of both EAGLE heads (columns)."""
    heads = {chance: shapes.statistics(Chances([chance], [chance], 0.0)) for chance in head_chances}

    def fastest(agreement: float, chance: float) -> str:
        return planner.best(replace(heads[chance], agreement=[agreement]), plans).method

    return pd.DataFrame(
        [[fastest(agreement, chance) for chance in head_chances] for agreement in agreements],
        index=list(agreements),
        columns=list(head_chances),
    )


def against_measured(planner: Planner, shapes: Shapes, replayed: pd.DataFrame) -> pd.DataFrame:
    """Rows of replayed.csv with what is predicted for them: predicted_step_ms and predicted_tokens_per_s.

    Adds step_ms, and step_error and error: by how much predictions exceed the time of a step and the tokens per second.
    The accepted length of a replay is that of a few hundred chance events; the time of a step hardly depends on it.
    """
    rows = []
    for _, row in replayed.iterrows():
        plan = Plan(row.method, int(row.draft_size), int(row.iterations), int(row.min_draft_length))
        chances = Chances([row.head_chance], [row.head_chance], row.agreement)
        row_planned = planner.predict(plan, shapes.statistics(chances))
        step_ms = row.draft_ms + row.verify_ms + row.other_ms
        predicted_ms = row_planned["draft_ms"] + row_planned["verify_ms"] + row_planned["other_ms"]
        rows.append(
            {
                "step_ms": step_ms,
                "predicted_step_ms": predicted_ms,
                "step_error": predicted_ms / step_ms - 1,
                "predicted_tokens_per_s": row_planned["tokens_per_s"],
                "error": row_planned["tokens_per_s"] / row.tokens_per_s - 1,
            }
        )
    return replayed.reset_index(drop=True).join(pd.DataFrame(rows))


def against_fixed(plans: pd.DataFrame) -> dict:
    """The plan with the fastest prediction beside the paper's fixed choices, among plans that all decoded the same.

    plans: a row for each, with tokens_per_s, what was measured, and predicted_tokens_per_s, NaN where there is none.
    Returns what is picked, the fastest of the fixed choices, what was measured of both, and the ratio: the pick's speed
    over the other's.
    """
    names = [str(Plan(*plan)) for plan in plans[list(PLAN_FIELDS)].itertuples(index=False, name=None)]
    speeds = plans.set_axis(names)[["tokens_per_s", "predicted_tokens_per_s"]]
    fixed = speeds[speeds.index.isin([str(plan) for plan in PAPER_PLANS])].tokens_per_s
    picked = speeds.predicted_tokens_per_s.idxmax()
    return {
        "picked": picked,
        "tokens_per_s": speeds.tokens_per_s[picked],
        "fixed": fixed.idxmax(),
        "fixed_tokens_per_s": fixed.max(),
        "ratio": speeds.tokens_per_s[picked] / fixed.max(),
    }
