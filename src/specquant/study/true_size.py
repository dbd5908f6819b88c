"""The figures on models of true size: passes and speedups beside those of others, and what is predicted from them."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from specquant.decoding.drafters import MARKS
from specquant.decoding.method import PLAN_FIELDS
from specquant.errors import SpecquantError
from specquant.tables.intervals import PROCESS, in_each_process, over_processes, ratios
from specquant.tables.style import SCHEMES, in_house_order, legend_above, mark, new_figure


def verify_costs_beside(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Time of a pass over that of one token, against draft size; a panel for each table, with its key as title.

    Each table has the columns of verify_cost.csv and holds one model behind one context. Where it has processes, lines
    are medians over them, and bars span the lowest to the highest.
    """
    figure, axes = new_figure(1, len(tables), height_in=2.6, sharey=True)
    for axis, (title, table) in zip(axes, tables.items(), strict=True):
        if PROCESS not in table:
            table = table.assign(process=0)
        grown = ratios(in_each_process(table, ["scheme", "draft_size"]), "draft_size", table["draft_size"].min())
        for scheme in in_house_order(table["scheme"], SCHEMES):
            line = over_processes(grown).xs(scheme, level="scheme").sort_index()
            look, bars = mark(scheme, SCHEMES), (line["median"] - line["low"], line["high"] - line["median"])
            about = {"color": look.color, "marker": look.marker, "label": look.label}
            axis.plot(line.index, line["median"], **about)
            if (line["processes"] > 1).any():
                axis.errorbar(line.index, line["median"], yerr=bars, fmt="none", ecolor=look.color, elinewidth=0.5)
        axis.set(title=title, xlabel="draft size")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    axes[0].set_ylabel("time of a pass\nover that of one token")
    axes[0].set_ylim(bottom=0.9)  # of all panels, whose highest line is known now
    longest = max(axes, key=lambda axis: len(axis.lines))
    legend_above(figure, longest, columns=3)
    return figure


def speedups_beside(lines: Mapping[str, pd.Series], xlabel: str) -> Figure:
    """A speedup for each scheme, its index, in several settings: a kind of mark for each, its key in the legend."""
    schemes = in_house_order(pd.Series([scheme for line in lines.values() for scheme in line.index]), SCHEMES)
    figure, (axis,) = new_figure(height_in=1.0 + 0.2 * len(schemes))
    looks = (("#0173b2", "o"), ("#029e73", "s"), ("#d55e00", "D"), ("#cc78bc", "^"), ("#000000", "v"))
    for (label, line), (color, marker) in zip(lines.items(), looks, strict=False):
        axis.plot(line.to_numpy(), [schemes.index(scheme) for scheme in line.index], marker, color=color, label=label)
    axis.axvline(1, color="0.4", linewidth=0.6)
    axis.set_yticks(range(len(schemes)), [mark(scheme, SCHEMES).label for scheme in schemes])
    axis.invert_yaxis()
    axis.set_xlabel(xlabel)
    legend_above(figure, axis, columns=1)
    return figure


def speedup_over_draft_size(table: pd.DataFrame) -> Figure:
    """Speedup against the size of EAGLE-2's tree, each with the best number of iterations.

    `table`: scheme, draft_size and speedup.
    """
    figure, (axis,) = new_figure(height_in=2.6)
    for scheme in in_house_order(table["scheme"], SCHEMES):
        best = table[table["scheme"] == scheme].groupby("draft_size")["speedup"].max()
        look = mark(scheme, SCHEMES)
        axis.plot(best.index, best, color=look.color, marker=look.marker, label=look.label)
    axis.set(xlabel="draft size (nodes of the tree)", ylabel="speedup over the same scheme\nwithout drafts")
    legend_above(figure, axis, columns=3)
    return figure


def free_drafts(table: pd.DataFrame) -> Figure:
    """The draft size up to which computing takes no longer than reading. `table`: schemes by cards; NaN where none."""
    figure, (axis,) = new_figure(height_in=0.9 + 0.22 * len(table))
    for scheme in in_house_order(pd.Series(table.columns), SCHEMES):
        look = mark(scheme, SCHEMES)
        axis.plot(table[scheme], range(len(table)), look.marker, color=look.color, label=look.label)
    axis.axvline(60, color="0.4", linewidth=0.6, linestyle=":")
    axis.set_yticks(range(len(table)), table.index)
    axis.invert_yaxis()
    axis.set_xlabel("largest draft that is free")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    legend_above(figure, axis, columns=3)
    return figure


def phase_diagram(grids: Mapping[str, pd.DataFrame], marked: Sequence[float] | None = None) -> Figure:
    """Which method is fastest, over the head's chances (columns) and the intermediate model's agreement (rows).

    grids: tables of method names, a panel for each. marked: a point (chance, agreement) to show.
    """
    methods = list(MARKS)
    colors = ListedColormap([MARKS[method].color for method in methods])
    rows = -(-len(grids) // 2)
    figure, axes = new_figure(rows, 2, height_in=0.8 + 1.45 * rows, sharex=True, sharey=True)
    for axis, (title, grid) in zip(axes, grids.items(), strict=False):
        codes = grid.map(methods.index).to_numpy()
        norm = BoundaryNorm(np.arange(len(methods) + 1) - 0.5, len(methods))
        axis.pcolormesh(grid.columns, grid.index, codes, cmap=colors, norm=norm, shading="nearest", rasterized=True)
        if marked is not None:
            axis.plot(*marked, "+", color="black", markersize=6)
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
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    figure.supxlabel("chance that a token of the EAGLE head is accepted", fontsize=7)
    figure.supylabel("agreement of the intermediate model", fontsize=7)
    return figure


def predicted_against_measured(table: pd.DataFrame) -> Figure:
    """Predicted against measured tokens per second. `table`: method, tokens_per_s and predicted_tokens_per_s."""
    figure, (axis,) = new_figure(height_in=2.8)
    for method in in_house_order(table["method"], MARKS):
        rows = table[table["method"] == method]
        look = mark(method, MARKS)
        axis.plot(rows["tokens_per_s"], rows["predicted_tokens_per_s"], look.marker, color=look.color, label=look.label)
    low, high = table["tokens_per_s"].min() * 0.9, table["tokens_per_s"].max() * 1.1
    axis.plot([low, high], [low, high], color="0.4", linewidth=0.6)
    axis.set(xlabel="measured tokens per second", ylabel="predicted tokens per second")
    legend_above(figure, axis, columns=2)
    return figure


def speeds_over_acceptance(table: pd.DataFrame) -> Figure:
    """Tokens per second against the chances that decide about each method; dashed: decoding one by one.

    `table`: of `experiments.at_true_size.speeds_over_chances`, or rows of replayed.csv of one target, in one scheme and
    with one kind of head. Left EAGLE-2 with each of its
    trees; right the methods with an intermediate model, at their most frequent head_chance.
    """
    one_by_one = table[table["method"] == "autoregressive"]["tokens_per_s"]
    if one_by_one.empty:
        raise SpecquantError("the replayed table has no autoregressive row to compare with: measure it again")
    figure, axes = new_figure(1, 2, height_in=2.6, sharey=True)
    panels = {
        "head_chance": (["eagle2"], "chance of each token of\nthe target's EAGLE head"),
        "agreement": (["vanilla", "hierarchical"], "agreement of the small\nmodel with the target"),
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
