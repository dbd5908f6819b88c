"""What predictions are worth: beside measured speeds, and their pick beside the paper's plans."""

from collections.abc import Iterator
from itertools import product

import pandas as pd
from matplotlib.figure import Figure

from specquant.decoding.drafters import MARKS, PAPER_METHODS
from specquant.decoding.method import PAPER_PLANS, PLAN_FIELDS, plans_in
from specquant.planning.acceptance import Chances, Shapes
from specquant.planning.costs import bookkeeping_ms, measured_costs
from specquant.planning.planner import Planner
from specquant.tables.speed import over_equal_texts, speed, whole_step_ms
from specquant.tables.style import in_order, legend_above, mark, new_figure


def against_measured(planner: Planner, shapes: Shapes, replayed: pd.DataFrame) -> pd.DataFrame:
    """Rows of replayed.csv with what is predicted for them: predicted_step_ms and predicted_tokens_per_s.

    Adds step_ms, and step_error and error: by how much predictions exceed the time of a step and the tokens per second.
    The accepted length of a replay is that of a few hundred chance events; the time of a step hardly depends on it.
    """
    replayed = replayed.reset_index(drop=True)
    chances = (Chances([row.head_chance], [row.head_chance], row.agreement) for row in replayed.itertuples())
    predicted = pd.DataFrame(
        planner.predict(plan, shapes.statistics(each)) for plan, each in zip(plans_in(replayed), chances, strict=True)
    )
    step_ms, predicted_ms = whole_step_ms(replayed), whole_step_ms(predicted)
    return replayed.assign(
        step_ms=step_ms,
        predicted_step_ms=predicted_ms,
        step_error=predicted_ms / step_ms - 1,
        predicted_tokens_per_s=predicted.tokens_per_s,
        error=predicted.tokens_per_s / replayed.tokens_per_s - 1,
    )


def draw_predictions(table: pd.DataFrame) -> Figure:
    """Predicted against measured tokens per second. `table`: method, tokens_per_s and predicted_tokens_per_s."""
    figure, (axis,) = new_figure(height_in=2.8)
    for method in in_order(table["method"], MARKS):
        rows = table[table["method"] == method]
        look = mark(method, MARKS)
        axis.plot(rows["tokens_per_s"], rows["predicted_tokens_per_s"], look.marker, color=look.color, label=look.label)
    low, high = table["tokens_per_s"].min() * 0.9, table["tokens_per_s"].max() * 1.1
    axis.plot([low, high], [low, high], color="0.4", linewidth=0.6)
    axis.set(xlabel="measured tokens per second", ylabel="predicted tokens per second")
    legend_above(figure, axis, columns=2)
    return figure


def against_fixed(plans: pd.DataFrame) -> dict:
    """The plan with the fastest prediction beside the best of the paper's plans, among plans that all decoded the same.

    plans: a row for each, with tokens_per_s, what was measured, and predicted_tokens_per_s, NaN where there is none.
    Of a plan that has several, as one of the paper's that the planner found, too, the median counts.
    Returns what is picked, the fastest of the paper's plans, what was measured of both, and the ratio: the pick's speed
    over the other's.
    """
    speeds = plans.set_axis(map(str, plans_in(plans)))[["tokens_per_s", "predicted_tokens_per_s"]]
    speeds = speeds.groupby(level=0, sort=False).median()
    fixed = speeds[speeds.index.isin([str(plan) for plan in PAPER_PLANS])].tokens_per_s
    picked = speeds.predicted_tokens_per_s.idxmax()
    return {
        "picked": picked,
        "tokens_per_s": speeds.tokens_per_s[picked],
        "fixed": fixed.idxmax(),
        "fixed_tokens_per_s": fixed.max(),
        "ratio": speeds.tokens_per_s[picked] / fixed.max(),
    }


def replayed_against_fixed(
    passes: pd.DataFrame, drafting: pd.DataFrame, rounds: pd.DataFrame, shapes: Shapes, replayed: pd.DataFrame
) -> pd.DataFrame:
    """The planner's picks among the rows of replayed.csv (`against_fixed`), under each acceptance that was replayed.

    passes, drafting, rounds: verify_cost.csv, drafting.csv and rounds.csv of the same GPU; bookkeeping is taken from
    rounds.csv, and from the paper's plans in replayed.csv. expected_ratio: as ratio, from measured times of a step and
    expected accepted lengths; those of a replay are of a few hundred chance events.
    """
    kind, rows = ["model", "scheme", "intermediate", "intermediate_scheme", "head_scheme", "head_vocabulary"], []
    for (model, scheme, small, small_scheme, head_scheme, vocabulary), grid in replayed.groupby(kind, sort=False):
        head = {"head_scheme": head_scheme, "head_vocabulary": vocabulary}
        outer = measured_costs(passes, drafting, model, scheme, **head, other_ms=bookkeeping_ms(grid, chances="fitted"))
        inner = None
        if small != "none":
            inner_ms = bookkeeping_ms(rounds, head_scheme=head_scheme)
            inner = measured_costs(passes, drafting, small, small_scheme, **head, other_ms=inner_ms)
        for chances, measured in _by_acceptance(grid):
            about = {"model": model, "scheme": scheme, "head_scheme": head_scheme, "head_vocabulary": vocabulary}
            about |= {"head": chances.head[0], "inner_head": chances.inner_head[0], "agreement": chances.agreement}
            planner, statistics = Planner(outer, inner), shapes.statistics(chances)
            told = [planner.predict(plan, statistics) for plan in plans_in(measured)]
            predicted = pd.DataFrame(told, measured.index)
            both = measured.assign(predicted_tokens_per_s=predicted.tokens_per_s)
            expected = both.assign(tokens_per_s=speed(predicted.accepted_length, whole_step_ms(measured)))
            rows.append(about | against_fixed(both) | {"expected_ratio": against_fixed(expected)["ratio"]})
    return pd.DataFrame(rows)


def _by_acceptance(replayed: pd.DataFrame) -> Iterator[tuple[Chances, pd.DataFrame]]:
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


def plans_against_fixed(plans: pd.DataFrame) -> pd.DataFrame:
    """What the planner picks for each scheme, over all tasks ("overall") and for each task, beside the paper's fixed
    choices (`against_fixed`), from the table of `record_plans`. A speed over all tasks is for as much text of each."""
    speeds = ["tokens_per_s", "predicted_tokens_per_s"]
    overall = over_equal_texts(plans, ["scheme", *PLAN_FIELDS], speeds).reset_index()
    groups = pd.concat([overall.assign(task="overall"), plans]).groupby(["scheme", "task"], sort=False)
    return pd.DataFrame([{"scheme": scheme, "task": task} | against_fixed(rows) for (scheme, task), rows in groups])
