"""Which method is fastest, and how fast, over the range of what is assumed about acceptance?"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from scipy.optimize import brentq

from specquant.decoding.drafters import MARKS
from specquant.decoding.method import PAPER_PLANS, PLAN_FIELDS, Plan, Prediction
from specquant.errors import SpecquantError
from specquant.planning.acceptance import AcceptanceStatistics, Chances, Shapes
from specquant.planning.planner import Planner
from specquant.tables.style import mark, new_figure

GAINS = (0.6, 0.8, 1.0, 1.2, 1.5, 2.0)  # of the hierarchy over EAGLE-2, at which contours are drawn
CHANCES = list(np.linspace(0.3, 0.98, 18))  # over which all grids are, of heads and of agreement
LOOKUP, LOOKUP_SIZE = Plan("suffix"), 11  # a lookup, and the tokens of a pass over its draft, at most


def phases(
    planner: Planner,
    shapes: Shapes,
    head_chances: Sequence[float],
    agreements: Sequence[float],
    plans: Sequence[Plan] | None = None,
    measured: Mapping[Plan, Prediction] | None = None,
) -> pd.DataFrame:
    """The fastest plan's method for each agreement (rows) and each chance of both EAGLE heads (columns).

    measured: what plans reach that depend on neither.
    """
    heads = {chance: shapes.statistics(Chances([chance], [chance], 0.0)) for chance in head_chances}

    def fastest(agreement: float, chance: float) -> str:
        statistics = replace(heads[chance], agreement=[agreement], measured=measured or {})
        return planner.best(statistics, plans).method

    return pd.DataFrame(
        [[fastest(agreement, chance) for chance in head_chances] for agreement in agreements],
        index=list(agreements),
        columns=list(head_chances),
    )


def phase_grids(planners: Mapping[str, Planner], shapes: Shapes) -> dict[str, pd.DataFrame]:
    """For each planner the fastest of the paper's methods (`phases`), over `CHANCES` and as many agreements."""
    return {name: phases(planner, shapes, CHANCES, CHANCES, PAPER_PLANS) for name, planner in planners.items()}


def lookup_grids(planner: Planner, shapes: Shapes, lengths: Sequence[float]) -> dict[str, pd.DataFrame]:
    """As `phase_grids`, where a lookup competes with the paper's methods: a grid for each of its accepted lengths."""
    verify_ms = planner.target.verify(LOOKUP_SIZE)
    grids = {}
    for length in lengths:
        measured = {LOOKUP: Prediction(length, LOOKUP_SIZE, 0.0, 0.0, verify_ms)}
        plans = (*PAPER_PLANS, LOOKUP)
        grids[f"suffix: {length:g} tokens a pass"] = phases(planner, shapes, CHANCES, CHANCES, plans, measured)
    return grids


def least_agreement(planner: Planner, shapes: Shapes, chance: float) -> float:
    """The intermediate model's agreement from which on the paper's hierarchy is faster than its best tree on the
    target, where each token of both heads has this chance; NaN where it never is."""
    heads = shapes.statistics(Chances([chance], [chance], 0.0))
    trees = _speed_of("eagle2", planner, heads)

    def gain(agreement: float) -> float:
        return _speed_of("hierarchical", planner, replace(heads, agreement=[agreement])) - trees

    if gain(1.0) <= 0:
        return float("nan")
    return float(brentq(gain, 0.0, 1.0, xtol=1e-4)) if gain(0.0) < 0 else 0.0


def _speed_of(method: str, planner: Planner, statistics: AcceptanceStatistics) -> float:
    """Of the fastest of the paper's plans of a method."""
    plans = (plan for plan in PAPER_PLANS if plan.method == method)
    return max(planner.predict(plan, statistics)["tokens_per_s"] for plan in plans)


def gain_grids(planners: Mapping[str, Planner], shapes: Shapes) -> dict[str, pd.DataFrame]:
    """For each planner the speed of the hierarchy over that of EAGLE-2, each with the best of the paper's trees, over
    the same chances and agreements as `phase_grids`."""
    heads = {chance: shapes.statistics(Chances([chance], [chance], 0.0)) for chance in CHANCES}

    def gains(planner: Planner) -> pd.DataFrame:
        trees = pd.Series({chance: _speed_of("eagle2", planner, heads[chance]) for chance in CHANCES})
        rows = [
            [_speed_of("hierarchical", planner, replace(heads[chance], agreement=[agreement])) for chance in CHANCES]
            for agreement in CHANCES
        ]
        return pd.DataFrame(rows, index=CHANCES, columns=CHANCES).div(trees, axis=1)

    return {name: gains(planner) for name, planner in planners.items()}


def advantages(planners: Mapping[str, Planner], statistics: AcceptanceStatistics) -> pd.Series:
    """The speed of the hierarchy over that of EAGLE-2, each with the best of the paper's trees, by planner."""

    def advantage(planner: Planner) -> float:
        return _speed_of("hierarchical", planner, statistics) / _speed_of("eagle2", planner, statistics)

    return pd.Series({name: advantage(planner) for name, planner in planners.items()})


def draw_phases(
    grids: Mapping[str, pd.DataFrame],
    marked: Sequence[float] | None = None,
    gains: Mapping[str, pd.DataFrame] | None = None,
    points: Sequence[tuple[float, float]] = (),
) -> Figure:
    """Which method is fastest, over the head's chances (columns) and the intermediate model's agreement (rows).

    Args:
        grids: Tables of method names, a panel for each.
        marked: A point (chance, agreement) to show.
        gains: For each panel the speed of the hierarchy over that of EAGLE-2 (`gain_grids`), drawn as contours.
        points: Further points to show, such as those of tasks.
    """
    methods = list(MARKS)
    colors = ListedColormap([MARKS[method].color for method in methods])
    columns = 3 if len(grids) > 4 else 2
    rows = -(-len(grids) // columns)
    height_in = 0.7 + 1.1 * rows
    figure, axes = new_figure(rows, columns, height_in=height_in, wide=columns > 2, sharex=True, sharey=True)
    for axis, (title, grid) in zip(axes, grids.items(), strict=False):
        codes = grid.map(methods.index).to_numpy()
        norm = BoundaryNorm(np.arange(len(methods) + 1) - 0.5, len(methods))
        axis.pcolormesh(grid.columns, grid.index, codes, cmap=colors, norm=norm, shading="nearest", rasterized=True)
        if gains is not None:
            gain = gains[title]
            lines = axis.contour(gain.columns, gain.index, gain, GAINS, colors="black", linewidths=0.6)
            axis.clabel(lines, fontsize=5.5, fmt=lambda level: f"{level:g}")
        if marked is not None:
            axis.plot(*marked, "+", color="black", markersize=6)
        for point in points:
            axis.plot(*point, "o", color="white", markeredgecolor="black", markersize=3)
        axis.set_title(title)
        axis.grid(False)
    for axis in axes[len(grids) :]:
        axis.set_axis_off()
    present = {name for grid in grids.values() for name in np.unique(grid)}
    handles = [
        axes[0].plot([], [], "s", color=MARKS[method].color, label=MARKS[method].label)[0]
        for method in methods
        if method in present
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4 if columns > 2 else 2)
    figure.supxlabel("chance that a token of the EAGLE head is accepted", fontsize=7)
    figure.supylabel("agreement of the intermediate model", fontsize=7)
    return figure


def speeds_over_chances(planner: Planner, shapes: Shapes, chances: Chances) -> pd.DataFrame:
    """Predicted tokens per second of the paper's plans, over what decides about each, the rest as in `chances`.

    EAGLE-2's over the chance of the target's head, the others' over the agreement of the intermediate model.
    `draw_speeds` draws them.
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


def draw_speeds(table: pd.DataFrame) -> Figure:
    """Tokens per second against the chances that decide about each method; dashed: decoding one by one.

    `table`: of `speeds_over_chances`, or rows of replayed.csv of one target, in one scheme and
    with one kind of head. Left EAGLE-2 with each of its
    trees; right the methods with an intermediate model, at their most frequent head_chance.
    """
    one_by_one = table[table["method"] == "autoregressive"]["tokens_per_s"]
    if one_by_one.empty:
        raise SpecquantError("the replayed table has no autoregressive row to compare with: measure it again")
    figure, axes = new_figure(1, 2, height_in=2.6, sharey=True)
    panels = {
        "head_chance": (["eagle2"], "chance of each token of\nthe target's EAGLE head"),
        "agreement": (["vanilla", "hierarchical"], "agreement of the\nintermediate model"),
    }
    for axis, (column, (methods, xlabel)) in zip(axes, panels.items(), strict=True):
        rows = table[table["method"].isin(methods)]
        for (method, draft_size, _, length), line in rows.groupby([*PLAN_FIELDS], sort=False):
            if column == "agreement":
                line = line[line["head_chance"] == line["head_chance"].mode()[0]]
            if len(line) < 2:
                continue
            line, look = line.sort_values(column), mark(method, MARKS)
            label = f"{look.label}, at least {length}" if length else f"{look.label}, {draft_size} nodes"
            drawn = sum(other.get_color() == look.color for other in axis.lines)
            style = ("-", "--", ":")[drawn % 3]
            axis.plot(line[column], line["tokens_per_s"], style, color=look.color, marker=look.marker, label=label)
        axis.axhline(one_by_one.iloc[0], color="0.4", linestyle="--")
        axis.set_xlabel(xlabel)
    axes[0].set_ylabel("tokens per second")
    axes[0].set_ylim(bottom=0)
    handles = [handle for axis in axes for handle in axis.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure
