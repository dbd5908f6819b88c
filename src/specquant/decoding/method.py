"""What a method is: a name, a drafter for the target, and all that commands, planner and figures ask of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd

from specquant.decoding.drafter import Drafter
from specquant.errors import SpecquantError
from specquant.models.graphs import GraphedLlama
from specquant.models.llama import Llama
from specquant.models.options import ADAPTIVE as ADAPTIVE
from specquant.models.options import DraftSettings as DraftSettings
from specquant.tables.marks import Mark


@dataclass(frozen=True)
class Plan:
    """A method and how it drafts.

    draft_size, iterations: of EAGLE-2's tree, on the intermediate model in a hierarchy; `ADAPTIVE` where each tree gets
    as many nodes as pay, and up to these iterations. min_draft_length: tokens that an intermediate model hands up at
    least; `ADAPTIVE` where it hands up as many as pay.
    """

    method: str
    draft_size: int = 0
    iterations: int = 0
    min_draft_length: int = 0

    def __str__(self) -> str:
        nodes = "adaptive trees" if self.draft_size == ADAPTIVE else f"{self.draft_size} nodes"
        tree = [nodes, f"{self.iterations} iterations"] if self.draft_size else []
        least = f"{self.min_draft_length} tokens or more" if self.min_draft_length else ""
        least = "as many tokens as pay" if self.min_draft_length == ADAPTIVE else least
        drafts = [*tree, *([least] if least else [])]
        return f"{self.method} ({', '.join(drafts)})" if drafts else self.method

    @property
    def tree(self) -> tuple[int, int]:
        """Its nodes and iterations."""
        return self.draft_size, self.iterations


PLAN_FIELDS = tuple(field.name for field in fields(Plan))
# The plans of the paper, on 70B: sections 3 and 5, and its Spec-Bench runs.
PAPER_PLANS = (
    Plan("autoregressive"),
    Plan("vanilla", min_draft_length=6),
    Plan("eagle2", 24, 3),
    Plan("eagle2", 48, 6),
    Plan("eagle2", 60, 6),
    Plan("hierarchical", 30, 3, 6),
)


def plans_in(table: pd.DataFrame) -> list[Plan]:
    """The plan of each row, which has a column for each of its fields."""
    return [Plan(*values) for values in table[list(PLAN_FIELDS)].itertuples(index=False, name=None)]


def require_tree(draft_size: int, iterations: int, top_k: int) -> None:
    """Raises SpecquantError where EAGLE-2 grows no tree of so many nodes."""
    if min(draft_size, iterations, top_k) < 1:
        raise SpecquantError(
            "an EAGLE-2 tree needs a draft size, iterations and top-k of at least 1, not "
            f"{draft_size}, {iterations} and {top_k}"
        )
    largest = 1 + top_k + (iterations - 1) * top_k**2
    if draft_size > largest:
        raise SpecquantError(
            f"a draft size of {draft_size} does not exist: {iterations} iterations with top-k {top_k} grow a tree "
            f"of at most {largest} nodes (with its root); ask for fewer nodes or more iterations"
        )


class TwoModels(Protocol):
    """A target and the intermediate model, which is made when it is first asked for.

    share_cache: whether the latter, in fewer bits the same, reads the target's keys and values.
    """

    @property
    def target(self) -> Llama | GraphedLlama: ...

    @property
    def intermediate(self) -> Llama | GraphedLlama: ...

    share_cache: bool


class Costs(Protocol):
    """What a step of one model costs, in milliseconds."""

    @property
    def verify_ms(self) -> pd.Series: ...

    @property
    def draft_ms(self) -> pd.Series: ...

    @property
    def other_ms(self) -> float: ...

    def verify(self, draft_size: float) -> float: ...

    def draft(self, iterations: int) -> float: ...


class ModelCosts(Protocol):
    """The costs of a target and, where there is one, of an intermediate model."""

    @property
    def target(self) -> Costs: ...

    @property
    def intermediate(self) -> Costs | None: ...


@dataclass(frozen=True)
class InnerSteps:
    """What an intermediate model does in a step of the target.

    lengths: the probabilities that it hands up 0, 1, 2, ... tokens. rounds: how many of its rounds have a draft.
    catch_ups: how often it first runs the last token of a draft of which everything was accepted, with the new one and
    without a draft. accepted_length: the target's.
    """

    lengths: np.ndarray
    rounds: float
    catch_ups: float
    accepted_length: float


class Statistics(Protocol):
    """How often drafts are accepted: of trees (nodes and iterations), and of an intermediate model's tokens."""

    @property
    def trees(self) -> Mapping[tuple[int, int], np.ndarray]: ...

    @property
    def inner_trees(self) -> Mapping[tuple[int, int], np.ndarray]: ...

    @property
    def agreement(self) -> Sequence[float]: ...

    def tree_length(self, plan: Plan) -> float: ...

    def inner_steps(self, plan: Plan) -> InnerSteps: ...

    @property
    def knows_confidence(self) -> bool: ...

    @property
    def measured(self) -> Mapping[Plan, "Prediction"]: ...

    def adaptive(self, plan: Plan, costs: Costs) -> "Prediction": ...


class Prediction(NamedTuple):
    """Means over a plan's steps: tokens that a step adds, tokens in its pass, rounds of the intermediate model, and the
    times of draft and pass in milliseconds."""

    accepted_length: float
    draft_size: float
    inner_rounds: float
    draft_ms: float
    verify_ms: float


class Method:
    """One way to decode. Each stands beside its drafter in `decoding/drafters/`, and says of itself:

    name: what `--method` calls it. mark: how it is drawn. place: among the methods that the paper compares, in its
    order; None for one that it does not have. companions: the models that it needs besides the target, keys of
    `models.companions.COMPANIONS` in the order of loading. trees_of: the model that verifies its EAGLE-2 trees,
    "target" or "intermediate"; None where it has none. head: the kind of head that grows its trees, "eagle" or
    "eagle3"; a companion is called by it and by the model that it drafts for; None where it has none. may_share_cache:
    whether its intermediate model, if it is the target in fewer bits, can read the target's keys and values. probes:
    the plans that a calibration decodes by, so that it can be predicted; without them it is predicted from traces
    alone.

    The planner's questions below are answered by what was measured of the probes themselves; a method whose other plans
    follow from them has answers of its own.
    """

    name: str
    mark: Mark
    place: int | None = None
    companions: tuple[str, ...] = ()
    trees_of: str | None = None
    head: str | None = None
    may_share_cache = False
    probes: tuple[Plan, ...] = ()

    def fits(self, share_cache: bool) -> bool:
        """Whether it can decode where an intermediate model, if it has one, shares the target's cache or does not."""
        return self.may_share_cache or not share_cache or "intermediate" not in self.companions

    def plan(self, settings: DraftSettings) -> Plan:
        """How it drafts under settings."""
        return Plan(self.name)

    def drafter(
        self, plan: Plan, models: TwoModels, trees: Callable[[str], Drafter], settings: DraftSettings
    ) -> Drafter | None:
        """What drafts for the target; None where nothing does.

        Args:
            plan: one of this method.
            models: the target, and the intermediate model if this method needs it.
            trees: gives what drafts the plan's trees for the "target" or for the "intermediate" model.
            settings: how lookups draft; the rest is the plan's.
        """
        raise NotImplementedError

    def plans(self, costs: ModelCosts, statistics: Statistics, min_draft_lengths: list[int]) -> Iterable[Plan]:
        """Every plan whose acceptance is known and whose passes were measured."""
        return tuple(plan for plan in statistics.measured if plan.method == self.name)

    def accepted_length(self, plan: Plan, statistics: Statistics) -> float:
        """The mean number of tokens that a step of the target adds. Raises SpecquantError where it is not known."""
        return self._measured(plan, statistics).accepted_length

    def predict(self, plan: Plan, costs: ModelCosts, statistics: Statistics) -> Prediction:
        """What a step does. Raises SpecquantError where that is not known."""
        return self._measured(plan, statistics)

    def _measured(self, plan: Plan, statistics: Statistics) -> Prediction:
        if plan not in statistics.measured:
            raise self._unpredictable
        return statistics.measured[plan]

    @property
    def _unpredictable(self) -> SpecquantError:
        return SpecquantError(f"the speed of {self.name} cannot be predicted: measure it (specquant bench tasks)")


def known_trees(known: Iterable[tuple[int, int]], costs: Costs) -> list[tuple[int, int]]:
    """Those of EAGLE-2's trees whose draft and pass were measured."""
    return [tree for tree in known if len(costs.draft_ms) and tree[0] <= costs.verify_ms.index.max()]
