"""Planners from recorded tables: of one GPU's, of the paper's own code, of data sheets; and `specquant plan`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from specquant.decoding.drafters import PAPER_METHODS, get_method
from specquant.decoding.method import Plan, Prediction
from specquant.errors import SpecquantError
from specquant.models.synthetic import synthetic_config
from specquant.planning.acceptance import FITTED_AT, Shapes
from specquant.planning.cards import PassWork, read_cards
from specquant.planning.costs import LevelCosts, bookkeeping_ms, measured_costs, recorded_tables
from specquant.planning.planner import Planner
from specquant.planning.traced_speedups import traced_prediction
from specquant.planning.traces import Traces
from specquant.planning.trees import RECORDED_TREES
from specquant.progress import tell
from specquant.tables.results import read_medians, read_results

CARD_SCHEMES = {"W4A16": "w4a16-g128", "W8A8": "w8a8", "W4A8-QQQ": "w4a8-qqq"}  # ours in `planners_by_card`
EAGLE3_TOKENS = 32768  # that were timed, beside the 32,000 that published EAGLE-3 heads of Llama-3 draft


@dataclass(frozen=True)
class RecordedCosts:
    """What one GPU's tables say about costs: verify_cost.csv, drafting.csv, rounds.csv and replayed.csv.

    The last two say how long bookkeeping takes. Of replayed.csv only the paper's plans count: the planner's own were
    chosen by these costs, and would move them.
    """

    TABLES: ClassVar[tuple[str, ...]] = ("verify_cost", "drafting", "rounds", "replayed")

    passes: pd.DataFrame
    drafting: pd.DataFrame
    rounds: pd.DataFrame
    replayed: pd.DataFrame

    @classmethod
    def read(cls, recorded: str | Path) -> "RecordedCosts":
        """The medians of a folder's tables. Raises SpecquantError where one is missing or broken."""
        return cls(*(read_medians(f"{recorded}/{table}.csv") for table in cls.TABLES))

    def planner(
        self, target: str, intermediate: str, scheme: str, head_scheme: str, head_vocabulary: int | None = None
    ) -> Planner:
        """Target and intermediate model in the same scheme, with heads in head_scheme that know so many tokens, all of
        them by default.

        Raises SpecquantError where one of these was not recorded.
        """
        outer_ms = bookkeeping_ms(self.replayed, model=target, head_scheme=head_scheme, chances="fitted")
        whole = self.rounds[self.rounds.head_vocabulary == self.rounds.head_vocabulary.max()]
        inner_ms = bookkeeping_ms(whole, head_scheme=head_scheme)
        levels = ((target, outer_ms), (intermediate, inner_ms))
        tables = self.passes, self.drafting
        return Planner(
            *(measured_costs(*tables, name, scheme, head_scheme, head_vocabulary, other_ms=ms) for name, ms in levels)
        )

    def by_head(self, target: str, intermediate: str, scheme: str, head_scheme: str) -> dict[str, Planner]:
        """For heads of EAGLE-2 and, under "eagle3", of EAGLE-3, of which none was timed: they are taken to draft as
        fast as EAGLE-2's of `EAGLE3_TOKENS` tokens: at these shapes a draft reads as many bytes, within 2%.

        Raises SpecquantError as `planner`.
        """
        models = target, intermediate, scheme, head_scheme
        return {"eagle": self.planner(*models), "eagle3": self.planner(*models, EAGLE3_TOKENS)}


def specmquant_planner(passes: pd.DataFrame, steps: pd.DataFrame, gpu: str = "H200") -> Planner:
    """The costs of the paper's own code on a card: Llama-3-70B and 8B in W4A16, with heads in fp16.

    passes, steps: data/published/specmquant_verify_cost.csv and specmquant_steps.csv. Drafts count in every scheme of
    the target, for they do not depend on it: on the H200 those of 70B were timed beside W8A8. What steps take beyond
    draft and pass is bookkeeping. Raises SpecquantError where a table has no rows of the card.
    """
    if not {gpu} <= {*passes.gpu} & {*steps.gpu}:
        raise SpecquantError(
            f"data/published/specmquant_verify_cost.csv and specmquant_steps.csv do not both have rows of {gpu}: name "
            "a card that they have, or take them from the repository"
        )
    passes, steps = passes[passes.gpu == gpu], steps[steps.gpu == gpu]
    drafts = steps[steps.what == "draft"].assign(
        head_scheme="fp16", head_vocabulary=synthetic_config("llama-3-8b").vocab_size
    )
    return Planner(
        *(
            measured_costs(passes, drafts, model, "w4a16-g128", other_ms=_beyond_draft_and_pass(passes, steps, model))
            for model in ("llama-3-70b", "llama-3-8b")
        )
    )


def _beyond_draft_and_pass(passes: pd.DataFrame, steps: pd.DataFrame, model: str) -> float:
    """Milliseconds that a model's whole steps of EAGLE-2 take beyond draft and pass, the median."""
    kind = ["scheme", "draft_size", "iterations"]
    of_model = steps[(steps.model == model) & (steps.method == "eagle2")]
    whole, draft = (of_model[of_model.what == what].set_index(kind).time_ms for what in ("step", "draft"))
    same_pass = pd.MultiIndex.from_frame(whole.reset_index()[kind[:2]])
    verify = passes[passes.model == model].set_index(kind[:2]).time_ms.reindex(same_pass).to_numpy()
    return max(0.0, float((whole - draft.reindex(whole.index) - verify).median()))


def planners_by_card(
    costs: RecordedCosts, target: str, intermediate: str, head_scheme: str, gpu: str, theirs: Planner
) -> dict[str, Planner]:
    """Ours in three schemes, SpecMQuant's on the same card (`specmquant_planner`), and the least that two cards' data
    sheets allow."""
    planners = {
        f"{label}, ours, {gpu}": costs.planner(target, intermediate, scheme, head_scheme)
        for label, scheme in CARD_SCHEMES.items()
    }
    planners[f"W4A16, SpecMQuant, {gpu}"] = theirs
    works = [PassWork(synthetic_config(model), "w4a16-g128") for model in (target, intermediate)]
    sizes = sorted(costs.passes.draft_size.unique())
    for card in ("A100", "B200"):
        planners[f"W4A16, {card}, predicted"] = Planner(*(work.costs(read_cards()[card], sizes) for work in works))
    return planners


def plan_tables(
    recorded: str | Path,
    target: str,
    intermediate: str | None = None,
    scheme: str = "w4a16-g128",
    head_scheme: str = "fp16",
    chances: Mapping[str, float] | None = None,
    trees: str | Path = RECORDED_TREES,
    traces: str | Path | None = None,
    traced_scheme: str | None = None,
) -> dict[str, pd.DataFrame]:
    """Every plan for a target and an intermediate model on the GPU whose costs are in `recorded`, the fastest first: a
    table for each scheme of heads that was timed, by its name; that of `head_scheme` comes first.

    chances: "head" in trees of 24 nodes, "inner_head" in trees of 30, "agreement"; missing ones are fitted
    (`Shapes.fitted_chances`). traces: what a real model accepted, a table (`Traces`), in place of chances and shapes;
    only plans that were traced, or with trees that were, are then known. traced_scheme: as for `of_one_target`.
    Bookkeeping between passes is left out. Raises SpecquantError where a chance is no probability, a table is missing,
    a model was not measured in the scheme, or all that was traced needs an intermediate model and there is none.
    """
    given: dict[str, Any] = {}
    for name, chance in (chances or {}).items():
        given[name] = chance if name == "agreement" else [chance]
        if not 0 <= chance <= 1:
            raise SpecquantError(f"{name} is {chance}: it is a probability, from 0 to 1")
    passes, drafting = recorded_tables(recorded, filter(None, (target, intermediate)), scheme, head_scheme)

    def planner_of(heads: str, head_vocabulary: int | None = None) -> Planner:
        def costs(model: str) -> LevelCosts:
            return measured_costs(passes, drafting, model, scheme, heads, head_vocabulary)

        return Planner(costs(target), costs(intermediate) if intermediate else None)

    planners = {heads: planner_of(heads) for heads in dict.fromkeys((head_scheme, *drafting.head_scheme))}
    if not traces:
        shapes = Shapes.of(read_results(trees, table="trees"))
        statistics = shapes.statistics(replace(shapes.fitted_chances(), **given), FITTED_AT)
        return {heads: planner.table(statistics) for heads, planner in planners.items()}
    traced = Traces(read_results(traces, table="traces"), scheme, traced_scheme)
    if intermediate is None:
        _leave_out_hierarchies(traced)
    statistics, tables = traced.statistics(intermediate is not None), {}
    for heads, planner in planners.items():
        by_head = {"eagle": planner, "eagle3": planner_of(heads, EAGLE3_TOKENS)}
        measured = _predictions(traced, by_head, tell if heads == head_scheme else None)
        tables[heads] = planner.table(replace(statistics, measured=measured))
    return tables


def _leave_out_hierarchies(traces: Traces) -> None:
    """Say which of the traced methods need an intermediate model. Raises SpecquantError where all that draft do."""
    traced = dict.fromkeys(plan.method for plan in traces.plans if plan.method != "autoregressive")
    needing = [method for method in traced if "intermediate" in get_method(method).companions]
    if needing and len(needing) == len(traced):
        raise SpecquantError(
            f"the traces hold no other drafts than of {', '.join(needing)}, for which an intermediate model is needed: "
            "name one (--intermediate)"
        )
    if needing:
        tell(f"left out for want of an intermediate model (--intermediate): {', '.join(needing)}")


def _predictions(
    traces: Traces, planners: Mapping[str, Planner], tell: Callable[[str], None] | None
) -> dict[Plan, Prediction]:
    """What traced plans beyond the paper's would reach, by the kind of head that they have.

    tell: takes a line about each that is left out.
    """
    told = {}
    for plan in traces.plans:
        method = get_method(plan.method)
        planner = planners[method.head or "eagle"]
        if plan.method in PAPER_METHODS or ("intermediate" in method.companions and planner.intermediate is None):
            continue
        traces.require(plan)
        try:
            told[plan] = traced_prediction(plan, traces.steps(plan), planner)
        except SpecquantError as error:
            if tell:
                tell(f"{plan} is left out: {error}")
    return told
