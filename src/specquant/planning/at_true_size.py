"""What follows from passes and drafts measured at true size: EAGLE-2's speedups, picks, and how much draft is free."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product

import numpy as np
import pandas as pd

from specquant.decoding.drafters import PAPER_METHODS
from specquant.decoding.method import PAPER_PLANS, PLAN_FIELDS, Plan
from specquant.errors import SpecquantError
from specquant.models.synthetic import synthetic_config
from specquant.planning.acceptance import Chances, Shapes, TreeShapes
from specquant.planning.cards import PassWork, read_cards
from specquant.planning.planner import Planner, against_fixed, measured_costs, phases

# Trees (nodes, iterations) and the accepted lengths to which chances are fitted. 8B: EAGLE-2 on Vicuna-7B, Spec-Bench's
# leaderboard (data/published/accepted_lengths.csv). 70B: assumed.
ACCEPTED_LENGTHS = {"llama-3-8b": ((60, 6), 4.34), "llama-3-70b": ((24, 3), 3.0)}

# The paper's name for each model, and the nodes and iterations of its EAGLE-2 trees there.
PAPER_TREES = {"llama-3-8b": ("Llama-3-8B", (60, 6)), "llama-3-70b": ("Llama-3-70B", (48, 6))}


# What the bars of the paper's figure 1 say of EAGLE-2 (data/published/speedups.csv).
OVER_THE_SAME_SCHEME = "speedup over the same scheme without drafts"


def eagle2_speedups(
    passes: pd.DataFrame,
    drafting: pd.DataFrame,
    trees: pd.DataFrame,
    accepted_lengths: Mapping[str, tuple[tuple[int, int], float]] = ACCEPTED_LENGTHS,
    other_ms: float = 0.1,
) -> pd.DataFrame:
    """EAGLE-2's predicted speedup over the same scheme without drafts, for every recorded tree.

    passes, drafting: verify_cost.csv behind one context, and drafting.csv. trees: `drafted_trees` of one model, which
    also say how chances depend on a tree's size. accepted_lengths: for each model a tree and its accepted length.
    other_ms: a step's bookkeeping. Returns the rows of `Planner.table`, with model and scheme.
    """
    shapes, tables = TreeShapes(trees), []
    for model, of_model in passes.groupby("model", sort=False):
        tree, accepted_length = accepted_lengths[model]
        head = [shapes.head_of(tree, accepted_length)]
        statistics = Shapes(shapes, shapes).statistics(Chances(head, head, 0.0), (tree[0], tree[0]))
        for scheme in of_model.scheme.unique():
            table = Planner(measured_costs(passes, drafting, model, scheme, other_ms=other_ms)).table(statistics)
            tables.append(table[table.method == "eagle2"].assign(model=model, scheme=scheme))
    return pd.concat(tables)


def beside_published(speedups: pd.DataFrame, published: pd.DataFrame, gpu: str) -> dict[str, pd.Series]:
    """The speedups of the paper's trees, ours beside the paper's: a series over schemes for each model and card.

    speedups: of `eagle2_speedups` on `gpu`. published: data/published/speedups.csv.
    """
    published, lines = published[published.quantity == OVER_THE_SAME_SCHEME], {}
    for name, (title, _) in PAPER_TREES.items():
        for card, theirs in published[published.model == title].groupby("gpu"):
            lines[f"{title}, {card}, paper"] = theirs.set_index("scheme").value
        lines[f"{title}, {gpu}, ours"] = of_paper_trees(speedups, [name]).set_index("scheme").speedup
    return lines


def of_paper_trees(speedups: pd.DataFrame, models: Iterable[str] = ACCEPTED_LENGTHS) -> pd.DataFrame:
    """Of the rows of `eagle2_speedups`, those of the tree that the paper takes for each model."""
    trees = [
        (speedups.model == name) & (speedups.draft_size == size) & (speedups.iterations == iterations)
        for name, (_, (size, iterations)) in PAPER_TREES.items()
        if name in models
    ]
    return speedups[np.logical_or.reduce(trees)]


def over_accepted_lengths(speedups: pd.DataFrame, lengths: Iterable[float] = (2, 3, 4, 5)) -> pd.DataFrame:
    """What one tree's speedup would be at other accepted lengths, to which it is proportional: schemes by lengths.

    speedups: rows of `eagle2_speedups`, one for each model and scheme. break_even: the accepted length at which a step
    with a draft is as fast as decoding one by one.
    """
    each = speedups.set_index(["model", "scheme"])
    per_token = each.speedup / each.accepted_length
    columns = {f"at {length:g}": per_token * length for length in lengths}
    return pd.DataFrame({"break_even": 1 / per_token} | columns)


def largest_free_measured(times: pd.DataFrame, tolerance: float = 0.1) -> pd.Series:
    """The largest draft size up to which no pass takes longer than one of one token by more than `tolerance`.

    times: a row for each model and scheme, a column for each draft size in order.
    """
    slower = times.gt(times[1] * (1 + tolerance), axis=0)
    return (~slower.cummax(axis=1)).apply(lambda free: free.index[free].max(), axis=1)


@dataclass(frozen=True)
class RecordedCosts:
    """What one GPU's tables say about costs: verify_cost.csv, drafting.csv, rounds.csv and replayed.csv.

    The last two say how long bookkeeping takes.
    """

    passes: pd.DataFrame
    drafting: pd.DataFrame
    rounds: pd.DataFrame
    replayed: pd.DataFrame

    def planner(self, target: str, intermediate: str, scheme: str, head_scheme: str) -> Planner:
        """Target and intermediate model in the same scheme, with heads in head_scheme.

        Raises SpecquantError where one of these was not recorded.
        """
        outer_ms = _bookkeeping(self.replayed, "model", target).median()
        inner_ms = _bookkeeping(self.rounds, "head_scheme", head_scheme).iloc[0]
        return Planner(
            measured_costs(self.passes, self.drafting, target, scheme, head_scheme, other_ms=outer_ms),
            measured_costs(self.passes, self.drafting, intermediate, scheme, head_scheme, other_ms=inner_ms),
        )


def _bookkeeping(table: pd.DataFrame, column: str, value: str) -> pd.Series:
    """How long bookkeeping took in the rows with this value. Raises SpecquantError where there are none."""
    rows = table[table[column] == value]
    if rows.empty:
        recorded = ", ".join(table[column].unique())
        raise SpecquantError(f"nothing was recorded with {column} {value}, only with {recorded}: choose of these")
    return rows.other_ms


def specmquant_planner(passes: pd.DataFrame, steps: pd.DataFrame, gpu: str = "H200") -> Planner:
    """The costs of the paper's own code on a card: Llama-3-70B and 8B in W4A16, with heads in fp16.

    passes, steps: data/published/specmquant_verify_cost.csv and specmquant_steps.csv. Drafts count in every scheme of
    the target, for they do not depend on it: on the H200 those of 70B were timed beside W8A8. What steps take beyond
    draft and pass is bookkeeping.
    """
    passes, steps = passes[passes.gpu == gpu], steps[steps.gpu == gpu]
    drafts = steps[steps.what == "draft"].assign(head_scheme="fp16", head_vocabulary=0)
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
    beside = pd.MultiIndex.from_frame(whole.reset_index()[kind[:2]])
    verify = passes[passes.model == model].set_index(kind[:2]).time_ms.reindex(beside).to_numpy()
    return max(0.0, float((whole - draft.reindex(whole.index) - verify).median()))


def planners_beside(
    costs: RecordedCosts, target: str, intermediate: str, head_scheme: str, gpu: str, theirs: Planner
) -> dict[str, Planner]:
    """Ours in three schemes, SpecMQuant's on the same card (`specmquant_planner`), and the least that two cards' data
    sheets allow."""
    schemes = {"W4A16": "w4a16-g128", "W8A8": "w8a8", "W4A8-QQQ": "w4a8-qqq"}
    planners = {
        f"{label}, ours, {gpu}": costs.planner(target, intermediate, scheme, head_scheme)
        for label, scheme in schemes.items()
    }
    planners[f"W4A16, SpecMQuant, {gpu}"] = theirs
    works = [PassWork(synthetic_config(model), "w4a16-g128") for model in (target, intermediate)]
    sizes = sorted(costs.passes.draft_size.unique())
    for card in ("A100", "B200"):
        planners[f"W4A16, {card}, predicted"] = Planner(*(work.costs(read_cards()[card], sizes) for work in works))
    return planners


def phase_grids(planners: Mapping[str, Planner], shapes: Shapes) -> dict[str, pd.DataFrame]:
    """For each planner the fastest of the paper's methods (`phases`), over chances and agreements from 0.3 to 0.98."""
    chances = list(np.linspace(0.3, 0.98, 18))
    return {name: phases(planner, shapes, chances, chances, PAPER_PLANS) for name, planner in planners.items()}


def speeds_over_chances(planner: Planner, shapes: Shapes, chances: Chances) -> pd.DataFrame:
    """Predicted tokens per second of the paper's plans, over what decides about each, the rest as in `chances`.

    EAGLE-2's over the chance of the target's head, the others' over the agreement of the intermediate model. The
    columns are those that `study.true_size.speeds_over_acceptance` draws.
    """
    rows = []
    for chance in np.linspace(0.4, 0.95, 12).round(2):
        of_head, of_agreement = replace(chances, head=[chance]), replace(chances, agreement=chance)
        for plan in PAPER_PLANS:
            head, agreement = (chance, 0.0) if plan.method == "eagle2" else (chances.inner_head[0], chance)
            moved = of_head if plan.method == "eagle2" else of_agreement
            told = planner.predict(plan, shapes.statistics(moved))
            rows.append(asdict(plan) | told | {"head_chance": head, "agreement": agreement})
    return pd.DataFrame(rows)


def replayed_against_fixed(
    passes: pd.DataFrame, drafting: pd.DataFrame, rounds: pd.DataFrame, shapes: Shapes, replayed: pd.DataFrame
) -> pd.DataFrame:
    """The planner's picks among the rows of replayed.csv (`against_fixed`), under each acceptance that was replayed.

    passes, drafting, rounds: verify_cost.csv, drafting.csv and rounds.csv of the same GPU; bookkeeping is taken from
    rounds.csv and replayed.csv. expected_ratio: as ratio, from measured times of a step and expected accepted lengths;
    those of a replay are of a few hundred chance events.
    """
    kind, rows = ["model", "scheme", "intermediate", "intermediate_scheme", "head_scheme", "head_vocabulary"], []
    for (model, scheme, small, small_scheme, head_scheme, vocabulary), grid in replayed.groupby(kind, sort=False):
        head = {"head_scheme": head_scheme, "head_vocabulary": vocabulary or None}
        outer = measured_costs(passes, drafting, model, scheme, **head, other_ms=grid.other_ms.median())
        inner = None
        if small != "none":
            inner_ms = _bookkeeping(rounds, "head_scheme", head_scheme).median()
            inner = measured_costs(passes, drafting, small, small_scheme, **head, other_ms=inner_ms)
        for chances, measured in _worlds(grid):
            about = {"model": model, "scheme": scheme, "head_scheme": head_scheme, "head_vocabulary": vocabulary}
            about |= {"head": chances.head[0], "inner_head": chances.inner_head[0], "agreement": chances.agreement}
            planner, statistics = Planner(outer, inner), shapes.statistics(chances)
            plans = [Plan(*plan) for plan in measured[list(PLAN_FIELDS)].itertuples(index=False, name=None)]
            predicted = pd.DataFrame([planner.predict(plan, statistics) for plan in plans], measured.index)
            both = measured.assign(predicted_tokens_per_s=predicted.tokens_per_s)
            step_ms = measured.draft_ms + measured.verify_ms + measured.other_ms
            expected = both.assign(tokens_per_s=1e3 * predicted.accepted_length / step_ms)
            rows.append(about | against_fixed(both) | {"expected_ratio": against_fixed(expected)["ratio"]})
    return pd.DataFrame(rows)


def _worlds(replayed: pd.DataFrame) -> Iterator[tuple[Chances, pd.DataFrame]]:
    """Chances under which a target was decoded by several plans, with the rows of these; 0 where no plan needs one."""
    of = {method: replayed[replayed.method == method] for method in PAPER_METHODS}
    heads = of["eagle2"].head_chance.unique() if len(of["eagle2"]) else [0.0]
    inner = of["hierarchical"][["head_chance", "agreement"]].drop_duplicates().itertuples(index=False, name=None)
    pairs = list(inner) or [(0.0, agreement) for agreement in of["vanilla"].agreement.unique()] or [(0.0, 0.0)]
    for head, (inner_head, agreement) in product(heads, pairs):
        same = [
            of["autoregressive"],
            of["eagle2"].query("head_chance == @head"),
            of["vanilla"].query("agreement == @agreement"),
            of["hierarchical"].query("head_chance == @inner_head and agreement == @agreement"),
        ]
        yield Chances([head], [inner_head], agreement), pd.concat(same, ignore_index=True)


def shares_reached(ceilings: pd.DataFrame, card: str) -> tuple[float, dict[str, float]]:
    """What was measured of a card (ceilings.csv) as shares of its data sheet: of the bandwidth, and of the rates.

    FP8 was not measured: its share is int8's.
    """
    best, sheet = ceilings.set_index("what").value, read_cards()[card]
    int8 = best["int8 product (cuBLASLt)"] / sheet.rates["int8"]
    rates = {"fp16": best["fp16 product (cuBLAS)"] / sheet.rates["fp16"], "int8": int8, "fp8": int8}
    return best["read-only stream"] / sheet.bandwidth_tb_s, rates


def free_drafts(model: str, schemes: Iterable[str], bandwidth: float, rates: Mapping[str, float]) -> pd.DataFrame:
    """The draft size up to which reading a model's weights takes longer than multiplying: cards by schemes.

    bandwidth, rates: shares of the data sheets that every card is taken to reach (`shares_reached`). NaN where a card
    cannot multiply what a scheme needs.
    """
    works = {scheme: PassWork(synthetic_config(model), scheme) for scheme in schemes}
    return pd.DataFrame(
        {
            scheme: {
                name: work.largest_free_draft(card.reached(bandwidth, rates)) if card.can(work.scheme) else np.nan
                for name, card in read_cards().items()
            }
            for scheme, work in works.items()
        }
    )
