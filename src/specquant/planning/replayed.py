"""What replayed.csv says: speedups where acceptance is assumed, and where the time of a token goes."""

import pandas as pd
from matplotlib.figure import Figure

from specquant.decoding.drafters import by_plan
from specquant.decoding.method import PLAN_FIELDS, plans_in
from specquant.errors import SpecquantError
from specquant.planning.acceptance import Chances, Shapes
from specquant.tables.intervals import over_processes
from specquant.tables.speed import speed, speedups, whole_step_ms
from specquant.tables.style import new_figure, row_for_each

ONE_RUN = ["model", "scheme", "head_scheme", "head_vocabulary", "intermediate", "intermediate_scheme"]


def at_fitted_chances(replayed: pd.DataFrame, shapes: Shapes) -> pd.DataFrame:
    """The first row of each plan, where chances are not yet swept, with its speedup over decoding one by one.

    replayed: replayed.csv. Compares within a target, a scheme, a kind of head and an intermediate model, so within one
    run. expected_length, expected_speedup: the same times of a step with the accepted length that the chances have in
    the mean; that of a replay is of about a hundred steps.
    """
    rows = replayed.groupby([*ONE_RUN, *PLAN_FIELDS], sort=False).head(1)
    rows = rows.assign(
        step_ms=whole_step_ms(rows),
        expected_length=[
            shapes.statistics(Chances([chance], [chance], agreement)).accepted_length(plan)
            for chance, agreement, plan in zip(rows.head_chance, rows.agreement, plans_in(rows), strict=True)
        ],
    )
    by_method = rows.set_index([*ONE_RUN, "method"])
    measured, expected = (
        speedups(speed(by_method[length], by_method.step_ms)).to_numpy()
        for length in ("accepted_length", "expected_length")
    )
    return rows.assign(speedup=measured, expected_speedup=expected)


def fitted_in_each_process(replayed: pd.DataFrame, shapes: Shapes, chances: str = "fitted") -> pd.DataFrame:
    """`at_fitted_chances` of each process. Raises SpecquantError where nothing was replayed so. chances: as in
    `fitted_speedups`."""
    of_processes = replayed[replayed.chances == chances].groupby("process")
    if not len(of_processes):
        which, how = ("plan of the planner's", " --planned FOLDER") if chances == "planned" else ("such plan", "")
        raise SpecquantError(f"no {which} was replayed at fitted chances: measure some (specquant bench replay{how})")
    return pd.concat(at_fitted_chances(of_process, shapes) for _, of_process in of_processes)


def fitted_speedups(
    rows: pd.DataFrame, shapes: Shapes, over: str = "autoregressive", chances: str = "fitted"
) -> pd.DataFrame:
    """Each plan's speedup at the fitted chances: median, low and high over processes.

    rows: replayed.csv. shapes: that the chances were fitted with. over: "autoregressive", decoding one by one, or
    "eagle2": of the paper's plans that of 24 nodes, of the planner's its only one. chances: "fitted", of the paper's
    plans, or "planned", of the planner's. Times of a step are measured; the accepted length is the one that the chances
    have in the mean.
    """
    told = fitted_in_each_process(rows, shapes, chances)
    speeds = told.set_index([*ONE_RUN, *PLAN_FIELDS, "process"]).expected_speedup
    if over == "eagle2":
        of_tree = told[(told.method == "eagle2") & ((told.draft_size == 24) | (chances == "planned"))]
        base = of_tree.set_index([*ONE_RUN, "process"]).expected_speedup
        speeds = speeds / base.reindex(speeds.index.droplevel(list(PLAN_FIELDS))).to_numpy()
    return over_processes(speeds.dropna()).droplevel(["intermediate", "intermediate_scheme"])


def step_factors(rows: pd.DataFrame, assumptions: pd.DataFrame) -> pd.DataFrame:
    """The two factors of the hierarchy's gain over EAGLE-2 with 24 nodes, at the assumed lengths and at their ends.

    rows: of replayed.csv, of one target, in one scheme and with one kind of head. assumptions: assumptions.csv. Returns
    "as assumed", "least" and "most": accepted lengths, which are assumed, times of a step, medians over processes, and
    their product.
    """
    step_ms = rows.assign(step_ms=whole_step_ms(rows)).set_index("process")
    tree = step_ms[(step_ms.method == "eagle2") & (step_ms.draft_size == 24)].step_ms
    times = tree / step_ms[step_ms.method == "hierarchical"].step_ms
    known = assumptions.set_index("name")
    longer, shorter = known.loc["hierarchical_length"], known.loc["eagle2_length_70b"]
    lengths = [longer.value / shorter.value, longer.low / shorter.high, longer.high / shorter.low]
    factors = pd.DataFrame({"accepted lengths (assumed)": lengths, "step times (measured)": times.median()})
    factors.index = pd.Index(["as assumed", "least", "most"], name="accepted lengths")
    return factors.assign(**{"their product": factors.prod(axis=1)})


def draw_time_per_token(rows: pd.DataFrame, shapes: Shapes) -> Figure:
    """Where the time of a token goes: draft, pass and the rest of a step, over its accepted length.

    The fastest plan first. Medians over processes. Behind each bar stands the speedup over decoding one by one,
    with the lowest and highest process's where they differ.

    Args:
        rows: Rows of replayed.csv of one target, in one scheme and with one kind of head.
        shapes: That the chances were fitted with; they give the accepted length, as in `fitted_speedups`.
    """
    told = fitted_in_each_process(rows, shapes)
    parts = {"draft_ms": ("draft", "#0173b2"), "verify_ms": ("verify", "#de8f05"), "other_ms": ("other", "#949494")}
    each = told.assign(**{part: told[part] / told.expected_length for part in parts})
    plans = each.groupby([*PLAN_FIELDS])
    gains = plans.expected_speedup.agg(["median", "min", "max"])
    per_token = by_plan(plans[list(parts)].median().join(gains)).sort_values("median", ascending=False)
    figure, (axis,) = new_figure(height_in=0.8 + 0.24 * len(per_token))
    left = pd.Series(0.0, per_token.index)
    for part, (label, color) in parts.items():
        axis.barh(range(len(per_token)), per_token[part], left=left, color=color, label=label, height=0.65)
        left += per_token[part]
    for place, (end, gain) in enumerate(zip(left, per_token.itertuples(), strict=True)):
        low, high = f"{gain.min:.2f}", f"{gain.max:.2f}"
        interval = f" ({low}\u2013{high})" if low != high else ""
        axis.text(end, place, rf" {gain.median:.2f}$\times${interval}", va="center", fontsize=6.5)
    axis.set_xlim(0, 1.8 * left.max())  # with room for what stands behind the longest
    axis.grid(visible=False, axis="y")
    row_for_each(figure, axis, list(per_token.index), "time per token (ms)", columns=3)
    return figure
