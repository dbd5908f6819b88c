"""What each method gains, predicted: from the costs of passes and drafts, and from how often drafts are accepted.

Nothing is drawn by chance: a prediction is the mean over all that can happen, in the steady state.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from specquant.decoding.replay import ShapedTree
from specquant.errors import SpecquantError
from specquant.experiments.trees import tree_shapes


@dataclass(frozen=True)
class Plan:
    """A method and how it drafts. draft_size, iterations: of EAGLE-2's tree, on the intermediate model in a hierarchy;
    min_draft_length: tokens that an intermediate model hands up at least."""

    method: str
    draft_size: int = 0
    iterations: int = 0
    min_draft_length: int = 0


# The fixed choices of the paper, on 70B: sections 3 and 5, and its Spec-Bench runs.
PAPER_PLANS = (
    Plan("autoregressive"),
    Plan("vanilla", min_draft_length=6),
    Plan("eagle2", 24, 3),
    Plan("eagle2", 48, 6),
    Plan("eagle2", 60, 6),
    Plan("hierarchical", 30, 3, 6),
)


@dataclass(frozen=True)
class Chances:
    """Probabilities that a draft's token is accepted once those before it are.

    head, inner_head: on the longest path of the target's and of the intermediate model's EAGLE-2 tree, by depth; the
    last one also serves all deeper tokens. agreement: of the target with the intermediate model, for each token.
    """

    head: Sequence[float]
    inner_head: Sequence[float]
    agreement: float


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


def fitted_chances(
    trees: pd.DataFrame,
    tree: tuple[int, int] = (24, 3),
    accepted_length: float = 3.0,
    inner_head: float = 0.8,
    hierarchical_length: float = 5.1,
) -> Chances:
    """Chances at which EAGLE-2 on the target, with a tree of these nodes and iterations, and the paper's hierarchy have
    these accepted lengths. They are fitted to numbers of others, not measured.

    The defaults are for Llama-3-70B and 8B.
    """
    free = LevelCosts(pd.Series({1: 0.0, 64: 0.0}), pd.Series({1: 0.0}), 1.0)  # accepted lengths depend on no cost
    planner = Planner(trees, free, free)
    chances = Chances([planner.head_of(*tree, accepted_length)], [inner_head], 0.0)
    hierarchy = next(plan for plan in PAPER_PLANS if plan.method == "hierarchical")
    return replace(chances, agreement=planner.agreement_of(hierarchy, chances, hierarchical_length))


class Planner:
    """Predicts plans for a target, an optional intermediate model, and trees of recorded shapes (`drafted_trees`)."""

    def __init__(self, trees: pd.DataFrame, target: LevelCosts, intermediate: LevelCosts | None = None):
        self.trees, self.target, self.intermediate = trees, target, intermediate
        self._longest: dict[tuple[int, int], np.ndarray] = {}

    def plans(self, min_draft_lengths: Iterable[int] = (2, 3, 4, 5, 6, 8, 10, 12)) -> list[Plan]:
        """Every plan that can be predicted: all recorded trees whose passes were measured, on both models."""
        sizes = self.trees[["draft_size", "iterations"]].drop_duplicates().itertuples(index=False, name=None)
        plans, sizes = [Plan("autoregressive")], sorted(sizes)
        if len(self.target.draft_ms):
            plans += [Plan("eagle2", *size) for size in sizes if size[0] <= self.target.verify_ms.index.max()]
        if self.intermediate is None:
            return plans
        plans += [Plan("vanilla", min_draft_length=length) for length in min_draft_lengths]
        if len(self.intermediate.draft_ms):
            inner = [size for size in sizes if size[0] <= self.intermediate.verify_ms.index.max()]
            plans += [Plan("hierarchical", *size, length) for size in inner for length in min_draft_lengths]
        return plans

    def best(self, chances: Chances, plans: Iterable[Plan] | None = None) -> Plan:
        """The plan with the most tokens per second, of `plans` or of all that can be predicted."""
        return max(plans or self.plans(), key=lambda plan: self.predict(plan, chances)["tokens_per_s"])

    def table(self, chances: Chances, plans: Iterable[Plan] | None = None) -> pd.DataFrame:
        """The predictions, a row for each plan, the fastest first; speedup is that over autoregressive decoding."""
        rows = pd.DataFrame(asdict(plan) | self.predict(plan, chances) for plan in plans or self.plans())
        plain = self.predict(Plan("autoregressive"), chances)["tokens_per_s"]
        return rows.assign(speedup=rows.tokens_per_s / plain).sort_values("tokens_per_s", ascending=False)

    def table_by_size(
        self, chances: Chances, chance_by_size: pd.Series, fitted_at: tuple[int, int] = (24, 30)
    ) -> pd.DataFrame:
        """`table` of all plans, with chances that belong to a tree on the target and one on the intermediate model of
        `fitted_at` nodes, and are scaled for trees of other sizes as `chance_by_size` (`chances_by_size`) says."""

        def scaled(head: Sequence[float], size: int, fitted: int) -> list[float]:
            at_size, at_fitted = np.interp([size, fitted], chance_by_size.index, chance_by_size)
            return [min(chance * at_size / at_fitted, 1.0) for chance in head]

        tables = []
        for size, plans in groupby(
            sorted(self.plans(), key=lambda plan: plan.draft_size), lambda plan: plan.draft_size
        ):
            heads = [
                scaled(head, size, fitted)
                for head, fitted in zip((chances.head, chances.inner_head), fitted_at, strict=True)
            ]
            tables.append(self.table(Chances(*heads, chances.agreement), list(plans)))
        return pd.concat(tables).sort_values("tokens_per_s", ascending=False)

    def predict(self, plan: Plan, chances: Chances) -> dict[str, float]:
        """The columns of throughput.csv for one plan: means over steps, times in milliseconds a step.

        Raises SpecquantError for an unknown method, a model or tree that was not given, and a size that was not
        measured.
        """
        if plan.method == "autoregressive":
            return _row(1.0, 1.0, 0.0, 0.0, self.target.verify(1), self.target.other_ms)
        if plan.method == "eagle2":
            accepted = self.accepted_length(plan.draft_size, plan.iterations, chances.head)
            draft_ms, verify_ms = self.target.draft(plan.iterations), self.target.verify(plan.draft_size)
            return _row(accepted, plan.draft_size, 0.0, draft_ms, verify_ms, self.target.other_ms)
        if plan.method not in ("vanilla", "hierarchical"):
            raise SpecquantError(f"unknown method {plan.method!r}")
        if self.intermediate is None:
            raise SpecquantError(f"{plan.method} needs the costs of an intermediate model")
        return self._with_intermediate(plan, chances)

    def accepted_length(self, draft_size: int, iterations: int, head: Sequence[float]) -> float:
        """The mean accepted length of EAGLE-2's trees, the token that the model adds included."""
        accepted = self._accepted(draft_size, iterations, head)
        return 1 + float(accepted @ np.arange(len(accepted)))

    def head_of(self, draft_size: int, iterations: int, accepted_length: float) -> float:
        """The probability, the same at all depths, at which these trees have this accepted length."""
        return _solve(lambda p: self.accepted_length(draft_size, iterations, [p]) - accepted_length, accepted_length)

    def agreement_of(self, plan: Plan, chances: Chances, accepted_length: float) -> float:
        """The agreement at which a plan with an intermediate model has this accepted length."""

        def gap(agreement: float) -> float:
            changed = replace(chances, agreement=agreement)
            return self.predict(plan, changed)["accepted_length"] - accepted_length

        return _solve(gap, accepted_length)

    def _accepted(self, draft_size: int, iterations: int, head: Sequence[float]) -> np.ndarray:
        """The probabilities that 0, 1, 2, ... drafts of a tree are accepted."""
        key = (draft_size, iterations)
        if key not in self._longest:
            shapes = tree_shapes(self.trees, draft_size, iterations)
            self._longest[key] = np.array([len(ShapedTree.of(shape, "cpu").longest) for shape in shapes])
        longest = self._longest[key]
        chances = np.array([head[min(depth, len(head) - 1)] for depth in range(longest.max())])
        reached = np.append(1.0, chances.cumprod())
        there = np.array([(longest >= depth).mean() for depth in range(len(reached))])
        at_least = np.append(reached * there, 0.0)
        return at_least[:-1] - at_least[1:]

    def _with_intermediate(self, plan: Plan, chances: Chances) -> dict[str, float]:
        inner, n = self.intermediate, plan.min_draft_length
        if plan.method == "vanilla":
            accepted = np.ones(1)
            round_draft_ms, round_verify_ms = 0.0, inner.verify(1)
        else:
            accepted = self._accepted(plan.draft_size, plan.iterations, chances.inner_head)
            round_draft_ms, round_verify_ms = inner.draft(plan.iterations), inner.verify(plan.draft_size)
        # Where the step before accepted a whole draft, the small model has not run its last token: the first round runs
        # it with the new one, without a draft.
        starts = [_rounds(accepted, n, 0), _rounds(accepted, n, 1)]
        agreed = chances.agreement ** np.arange(n + len(accepted) + 1)
        whole = [lengths @ agreed[: len(lengths)] for lengths, _ in starts]
        after_whole = whole[0] / (1 + whole[0] - whole[1])  # how often, in the steady state
        weights = np.array([1 - after_whole, after_whole])

        lengths = weights @ np.array([lengths for lengths, _ in starts])
        rounds = weights @ np.array([rounds for _, rounds in starts])  # with a draft
        sizes = np.arange(len(lengths))
        accepted_length = float(lengths @ agreed.cumsum()[: len(lengths)])
        verify_ms = sum(
            weight * self.target.verify(size + 1) for size, weight in zip(sizes, lengths, strict=True) if weight
        )
        round_ms = round_draft_ms + round_verify_ms + inner.other_ms
        draft_ms = rounds * round_ms + after_whole * (inner.verify(2) + inner.other_ms)
        return _row(
            accepted_length,
            1 + float(lengths @ sizes),
            float(rounds + after_whole),
            draft_ms,
            verify_ms,
            self.target.other_ms,
        )


def chances_by_size(trees: pd.DataFrame) -> pd.Series:
    """The chance, by draft size, at which trees have the accepted lengths that were recorded with them; the mean over
    iterations. A smaller tree has fewer of the likely tokens, so its chance is lower.

    trees: of one model, from `drafted_trees`.
    """
    planner = Planner(trees, LevelCosts(pd.Series({1: 0.0}), pd.Series({1: 0.0})))
    lengths = trees.groupby(["draft_size", "iterations"]).accepted_length.mean()
    chances = pd.Series({tree: planner.head_of(*tree, length) for tree, length in lengths.items()})
    return chances.groupby(level=0).mean()


def phases(
    planner: Planner, head_chances: Sequence[float], agreements: Sequence[float], plans: Sequence[Plan] | None = None
) -> pd.DataFrame:
    """The fastest plan's method for each agreement (rows) and each chance of both EAGLE heads (columns)."""
    plans = plans or planner.plans()

    def fastest(chance: float, agreement: float) -> str:
        return planner.best(Chances([chance], [chance], agreement), plans).method

    return pd.DataFrame(
        [[fastest(chance, agreement) for chance in head_chances] for agreement in agreements],
        index=list(agreements),
        columns=list(head_chances),
    )


def against_measured(planner: Planner, replayed: pd.DataFrame) -> pd.DataFrame:
    """Rows of replayed.csv with what is predicted for them: predicted_step_ms and predicted_tokens_per_s.

    Adds step_ms, and step_error and error: by how much predictions exceed the time of a step and the tokens per second.
    The accepted length of a replay is that of a few hundred chance events; the time of a step hardly depends on it.
    """
    rows = []
    for _, row in replayed.iterrows():
        plan = Plan(row.method, int(row.draft_size), int(row.iterations), int(row.min_draft_length))
        row_planned = planner.predict(plan, Chances([row.head_chance], [row.head_chance], row.agreement))
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


def _rounds(accepted: np.ndarray, least: int, drafted: int) -> tuple[np.ndarray, float]:
    """Rounds of drafting, each of which adds what it accepts and a token, until at least `least` tokens are there.

    accepted: the probabilities that a round accepts 0, 1, ... drafts. drafted: tokens there at the beginning. Returns
    the probabilities of ending with 0, 1, ... tokens, and the mean number of rounds.
    """
    there = np.zeros(least + len(accepted) + 1)
    there[drafted] = 1.0
    rounds = 0.0
    for length in range(drafted, least):
        rounds += there[length]
        there[length + 1 : length + 1 + len(accepted)] += there[length] * accepted
        there[length] = 0.0
    return there, rounds


def _row(
    accepted_length: float, draft_size: float, inner_rounds: float, draft_ms: float, verify_ms: float, other_ms: float
) -> dict[str, float]:
    return {
        "accepted_length": accepted_length,
        "mean_draft_size": draft_size,
        "inner_rounds": inner_rounds,
        "draft_ms": draft_ms,
        "verify_ms": verify_ms,
        "other_ms": other_ms,
        "tokens_per_s": 1e3 * accepted_length / (draft_ms + verify_ms + other_ms),
    }


def _solve(gap, accepted_length: float) -> float:
    """The probability at which `gap`, which rises with it, is 0."""
    if gap(0.0) > 0 or gap(1.0) < 0:
        raise SpecquantError(f"no probability gives an accepted length of {accepted_length:g} with these drafts")
    return float(brentq(gap, 0.0, 1.0, xtol=1e-6))
