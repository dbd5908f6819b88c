"""How much faster is EAGLE-2 than decoding one by one? Predicted from passes and drafts measured at true size."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from specquant.planning.acceptance import Chances, Shapes, TreeShapes
from specquant.planning.costs import measured_costs
from specquant.planning.planner import Planner
from specquant.tables.style import SCHEMES, in_order, label_ends, mark, model_label, new_figure, row_for_each

# Trees (nodes, iterations) and the accepted lengths to which chances are fitted. 8B: EAGLE-2 on Vicuna-7B, Spec-Bench's
# leaderboard (data/published/accepted_lengths.csv). 70B: assumed.
ACCEPTED_LENGTHS = {"llama-3-8b": ((60, 6), 4.34), "llama-3-70b": ((24, 3), 3.0)}

# The nodes and iterations of EAGLE-2's trees in the paper.
PAPER_TREES = {"llama-3-8b": (60, 6), "llama-3-70b": (48, 6)}

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


def with_published(speedups: pd.DataFrame, published: pd.DataFrame, gpu: str) -> dict[str, pd.Series]:
    """The speedups of the paper's trees, ours beside the paper's: a series over schemes for each model and card.

    speedups: of `eagle2_speedups` on `gpu`. published: data/published/speedups.csv.
    """
    published, lines = published[published.quantity == OVER_THE_SAME_SCHEME], {}
    for name in PAPER_TREES:
        title = model_label(name)
        for card, theirs in published[published.model == title].groupby("gpu"):
            lines[f"{title}, {card}, paper"] = theirs.set_index("scheme").value
        lines[f"{title}, {gpu}, ours"] = of_paper_trees(speedups, [name]).set_index("scheme").speedup
    return lines


def of_paper_trees(speedups: pd.DataFrame, models: Iterable[str] = ACCEPTED_LENGTHS) -> pd.DataFrame:
    """Of the rows of `eagle2_speedups`, those of the tree that the paper takes for each model."""
    trees = [
        (speedups.model == name) & (speedups.draft_size == size) & (speedups.iterations == iterations)
        for name, (size, iterations) in PAPER_TREES.items()
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


def draw_speedups(lines: Mapping[str, pd.Series], xlabel: str) -> Figure:
    """A speedup for each scheme, its index, in several settings: a kind of mark for each, its key in the legend."""
    schemes = in_order(pd.Series([scheme for line in lines.values() for scheme in line.index]), SCHEMES)
    figure, (axis,) = new_figure(height_in=1.0 + 0.2 * len(schemes))
    looks = (("#0173b2", "o"), ("#029e73", "s"), ("#d55e00", "D"), ("#cc78bc", "^"), ("#000000", "v"))
    for (label, line), (color, marker) in zip(lines.items(), looks, strict=False):
        axis.plot(line.to_numpy(), [schemes.index(scheme) for scheme in line.index], marker, color=color, label=label)
    axis.axvline(1, color="0.4", linewidth=0.6)
    row_for_each(figure, axis, [mark(scheme, SCHEMES).label for scheme in schemes], xlabel, columns=1)
    return figure


def draw_over_draft_size(table: pd.DataFrame) -> Figure:
    """Speedup against the size of EAGLE-2's tree, each with the best number of iterations.

    `table`: scheme, draft_size and speedup.
    """
    figure, (axis,) = new_figure(height_in=2.6)
    ends = []
    for scheme in in_order(table["scheme"], SCHEMES):
        best = table[table["scheme"] == scheme].groupby("draft_size")["speedup"].max()
        look = mark(scheme, SCHEMES)
        axis.plot(best.index, best, color=look.color, marker=look.marker, label=look.label)
        ends.append((best.index[-1], best.iloc[-1], look.label, look.color))
    axis.set(xlabel="draft size (nodes of the tree)", ylabel="speedup over the same scheme\nwithout drafts")
    axis.set_xlim(right=1.45 * table["draft_size"].max())
    label_ends(axis, ends)
    return figure
