"""How much of each draft is accepted: counted in decoding, or assumed for trees of recorded shapes.

What that costs is the planner's. Nothing is drawn by chance: these are means over all that can happen, in the steady
state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from specquant.decoding.drafters import get_method
from specquant.decoding.method import PAPER_PLANS, Costs, InnerSteps, Plan, Prediction
from specquant.decoding.replay import ShapedTree
from specquant.errors import SpecquantError
from specquant.planning.confidences import ConfidenceTrace, fit_confidence_map, prices_of, simulate
from specquant.planning.trees import tree_shapes, trees_of

Tree = tuple[int, int]  # nodes and iterations
FEWEST_JUDGED = 10  # tokens of which a chance is taken
FITTED_AT = (24, 30)  # nodes of the trees on the target and on the intermediate model to which given chances belong


@dataclass(frozen=True)
class AcceptanceStatistics:
    """How often drafts are accepted.

    trees, inner_trees: for trees of the target and of the intermediate model, the probabilities that 0, 1, 2, ... of
    their drafts are accepted. agreement: by its place in the draft, the probability that the target accepts a token of
    the intermediate model once it has accepted those before; the last one also serves all later tokens. traces: trees
    of the target with their confidence, text by text, for adaptive draft sizes. measured: the means of plans that were
    decoded by, for those that nothing else predicts.
    """

    trees: Mapping[Tree, np.ndarray]
    inner_trees: Mapping[Tree, np.ndarray]
    agreement: Sequence[float]
    traces: Sequence[Sequence[ConfidenceTrace]] = ()
    measured: Mapping[Plan, Prediction] = field(default_factory=dict)

    @property
    def knows_confidence(self) -> bool:
        """Whether adaptive draft sizes can be predicted."""
        return any(self.traces)

    def adaptive(self, plan: Plan, costs: Costs) -> Prediction:
        """What a plan's adaptive trees reach where steps cost so much, on the recorded trees."""
        prices = prices_of(costs, fit_confidence_map(self.traces), plan.iterations)
        told = simulate(self.traces, prices)
        return Prediction(told.accepted_length, told.draft_size, 0.0, told.draft_ms, told.verify_ms)

    def of_tree(self, plan: Plan) -> np.ndarray:
        """The probabilities of 0, 1, 2, ... accepted drafts of a plan's trees. Raises SpecquantError where they are not
        known."""
        trees = self.trees if get_method(plan.method).trees_of == "target" else self.inner_trees
        if plan.tree not in trees:
            raise SpecquantError(
                f"no trees of {plan.draft_size} nodes and {plan.iterations} iterations were recorded, only of "
                + ", ".join(f"{size} and {depth}" for size, depth in trees)
            )
        return trees[plan.tree]

    def accepted_length(self, plan: Plan) -> float:
        """The mean number of tokens that a step of the target adds. Raises SpecquantError for an unknown method, and
        for one of which that is not known."""
        return get_method(plan.method).accepted_length(plan, self)

    def tree_length(self, plan: Plan) -> float:
        """The mean number of tokens that a pass over one of a plan's trees adds."""
        return _accepted_length(self.of_tree(plan))

    def inner_steps(self, plan: Plan) -> InnerSteps:
        """Of a plan whose drafts are an intermediate model's."""
        accepted = self.of_tree(plan) if get_method(plan.method).trees_of else np.ones(1)
        starts = [_rounds(accepted, plan.min_draft_length, drafted) for drafted in (0, 1)]
        by_place = _by_depth(self.agreement, plan.min_draft_length + len(accepted))
        agreed = np.append(1.0, by_place.cumprod())
        whole = [lengths @ agreed for lengths, _ in starts]
        after_whole = whole[0] / (1 + whole[0] - whole[1])  # how often, in the steady state
        weights = np.array([1 - after_whole, after_whole])
        lengths = weights @ np.array([lengths for lengths, _ in starts])
        rounds = weights @ np.array([rounds for _, rounds in starts])
        return InnerSteps(lengths, float(rounds), float(after_whole), float(lengths @ agreed.cumsum()))


@dataclass(frozen=True)
class Chances:
    """Probabilities that a draft's token is accepted once those before it are.

    head, inner_head: on the longest path of the target's and of the intermediate model's EAGLE-2 tree, by depth; the
    last one also serves all deeper tokens. agreement: of the target with the intermediate model, for each token.
    """

    head: Sequence[float]
    inner_head: Sequence[float]
    agreement: float


class TreeShapes:
    """How deep the recorded trees of one model go, and how much of them is accepted by chance.

    trees: from `drafted_trees`. depths: for each tree, nodes and iterations, the drafts on the longest path of each
    that was recorded.
    """

    def __init__(self, trees: pd.DataFrame):
        sizes = trees[["draft_size", "iterations"]].drop_duplicates().itertuples(index=False, name=None)
        self.depths: dict[Tree, np.ndarray] = {
            size: np.array([len(ShapedTree.of(shape, "cpu").longest) for shape in tree_shapes(trees, *size)])
            for size in sorted(sizes)
        }
        self._trees = trees
        self._by_size: pd.Series | None = None  # of `chances_by_size`, which is asked for whenever a slider moves

    def accepted(self, tree: Tree, head: Sequence[float]) -> np.ndarray:
        """The probabilities that 0, 1, 2, ... drafts of a tree are accepted, when `head` are a token's by depth."""
        if tree not in self.depths:
            tree_shapes(self._trees, *tree)  # says what there is
        depths = self.depths[tree]
        reached = np.append(1.0, _by_depth(head, depths.max()).cumprod())
        there = np.array([(depths >= depth).mean() for depth in range(len(reached))])
        at_least = np.append(reached * there, 0.0)
        return at_least[:-1] - at_least[1:]

    def all_accepted(self, head: Sequence[float], fitted_at: int | None = None) -> dict[Tree, np.ndarray]:
        """`accepted` of every tree. fitted_at: the nodes of the trees to which `head` belongs; for those of other sizes
        it is scaled as `chances_by_size` says. None: the same for all."""
        by_size = self.chances_by_size() if fitted_at else pd.Series({0: 1.0})

        def scaled(size: int) -> list[float]:
            at_size, at_fitted = np.interp([size, fitted_at or 0], by_size.index, by_size)
            return [min(chance * at_size / at_fitted, 1.0) for chance in head]

        return {tree: self.accepted(tree, scaled(tree[0])) for tree in self.depths}

    def head_of(self, tree: Tree, accepted_length: float) -> float:
        """The probability, the same at all depths, at which a tree has this accepted length."""
        return _solve(lambda chance: _accepted_length(self.accepted(tree, [chance])), accepted_length)

    def chances_by_size(self) -> pd.Series:
        """The chance, by draft size, at which trees have the accepted lengths that were recorded with them; the mean
        over iterations. A smaller tree has fewer of the likely tokens, so its chance is lower."""
        if self._by_size is None:
            lengths = self._trees.groupby(["draft_size", "iterations"]).accepted_length.mean()
            chances = pd.Series({tree: self.head_of(tree, length) for tree, length in lengths.items()})
            self._by_size = chances.groupby(level=0).mean()
        return self._by_size


@dataclass(frozen=True)
class Shapes:
    """Recorded trees of a target and of an intermediate model: what chances become statistics with."""

    target: TreeShapes
    intermediate: TreeShapes

    @classmethod
    def of(cls, trees: pd.DataFrame) -> "Shapes":
        """From a table with the trees of both models."""
        return cls(*(TreeShapes(trees_of(trees, which)) for which in ("target", "intermediate")))

    def statistics(self, chances: Chances, fitted_at: tuple[int, int] | None = None) -> AcceptanceStatistics:
        """What chances mean for all recorded trees.

        fitted_at: nodes of the trees on the target and on the intermediate model to which the chances belong, for those
        of other sizes to be scaled (`TreeShapes.all_accepted`).
        """
        sizes = fitted_at or (None, None)
        return AcceptanceStatistics(
            self.target.all_accepted(chances.head, sizes[0]),
            self.intermediate.all_accepted(chances.inner_head, sizes[1]),
            [chances.agreement],
        )

    def fitted_chances(
        self,
        tree: Tree = (24, 3),
        accepted_length: float = 3.0,
        inner_head: float = 0.8,
        hierarchical_length: float = 5.1,
    ) -> Chances:
        """Chances at which EAGLE-2 on the target, with a tree of these nodes and iterations, and the paper's hierarchy
        have these accepted lengths. They are fitted to numbers of others, not measured.

        The defaults are for Llama-3-70B and 8B.
        """
        chances = Chances([self.target.head_of(tree, accepted_length)], [inner_head], 0.0)
        hierarchy = next(plan for plan in PAPER_PLANS if plan.method == "hierarchical")
        return replace(chances, agreement=self.agreement_of(hierarchy, chances, hierarchical_length))

    def agreement_of(self, plan: Plan, chances: Chances, accepted_length: float) -> float:
        """The agreement at which a plan with an intermediate model has this accepted length."""
        statistics = self.statistics(chances)
        return _solve(
            lambda agreement: replace(statistics, agreement=[agreement]).accepted_length(plan), accepted_length
        )


def _by_depth(chances: Sequence[float], count: int) -> np.ndarray:
    """The first `count` of them; the last one again where there are fewer."""
    return np.array([chances[min(depth, len(chances) - 1)] for depth in range(count)])


def chances_by_place(drafted: Sequence[int] | pd.Series, accepted: Sequence[int] | pd.Series) -> list[float]:
    """By its place in a draft, how often a token was accepted once those before it were.

    Places that fewer than `FEWEST_JUDGED` drafts reached have none of their own: the last one serves all later tokens.
    drafted, accepted: of each draft, how many tokens it had, and how many of them were accepted.
    """
    had, kept = np.array(drafted), np.array(accepted)
    chances: list[float] = []
    while (judged := (had > len(chances)) & (kept >= len(chances))).sum() >= FEWEST_JUDGED:
        chances.append(float((kept > len(chances))[judged].mean()))
    return chances


def _accepted_length(accepted: np.ndarray) -> float:
    """With the token that the model adds."""
    return 1 + float(accepted @ np.arange(len(accepted)))


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


def _solve(length_at, accepted_length: float) -> float:
    """The probability at which `length_at`, which rises with it, is this accepted length."""
    if length_at(0.0) > accepted_length or length_at(1.0) < accepted_length:
        raise SpecquantError(
            f"no probability gives an accepted length of {accepted_length:g} with these drafts: choose a shorter one"
        )
    return float(brentq(lambda chance: length_at(chance) - accepted_length, 0.0, 1.0, xtol=1e-6))
