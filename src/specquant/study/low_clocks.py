"""Does a low clock make products alone take longer? The same products in several processes, by the clock that they had.

Of `peers.csv`, recorded without rests (`--rest-over-run 0`): launches behind launches draw more power than a card may.
Of ours and cuBLAS's: what torch chooses for its other products differs from process to process for other reasons.
"""

import pandas as pd
from matplotlib.figure import Figure

from specquant.measure.peers import CUBLAS, OURS
from specquant.tables.intervals import PROCESS
from specquant.tables.results import read_results
from specquant.tables.style import legend_above, new_figure

RECORDED = "data/recorded/h200/peers.csv"
PRODUCT = ["model", "layer", "scheme", "implementation", "draft_size"]
FULL_MHZ, LOW_MHZ = 1900, 1700  # of an H200, whose highest is 1980
WIDE = 30  # tokens from which products are bound by arithmetic, if any are


def spreads(recorded: str = RECORDED) -> pd.DataFrame:
    """How far apart processes are: a row for each product (PRODUCT) whose clock was read in every process.

    Returns `more_percent`, by which the slowest process takes longer than the fastest, and `lowest_mhz`, the lowest of
    the processes' clocks. One process alone is not apart from others: then there is no row.
    """
    rows = read_results(recorded)
    rows = rows[rows.implementation.isin([OURS, CUBLAS])]
    blocks = rows.groupby([*PRODUCT, PROCESS])[["time_us", "clock_mhz"]].median().unstack(PROCESS)
    times_us, clocks_mhz = blocks["time_us"], blocks["clock_mhz"]
    more = 100 * (times_us.max(axis=1) / times_us.min(axis=1) - 1)
    told = pd.DataFrame({"more_percent": more, "lowest_mhz": clocks_mhz.min(axis=1)})
    return told[blocks.notna().all(axis=1) & (times_us.shape[1] > 1)]


def by_clock(of_products: pd.DataFrame) -> pd.DataFrame:
    """`spreads` where no process's clock was below FULL_MHZ ("full"), and where one's was below LOW_MHZ ("low"): how
    many products, and the median and the most of `more_percent`."""
    clocks = of_products.lowest_mhz
    kinds = {"full": of_products[clocks >= FULL_MHZ], "low": of_products[clocks < LOW_MHZ]}
    told = {
        kind: {"products": len(of), "median": of.more_percent.median(), "most": of.more_percent.max()}
        for kind, of in kinds.items()
    }
    return pd.DataFrame(told).T


def numbers() -> dict[str, float]:
    """ "products apart at a low clock, median %": by how much the slowest process takes longer than the fastest."""
    told = by_clock(spreads())
    known: dict[str, float] = {}
    for kind, row in told.iterrows():
        known |= {f"products apart at a {kind} clock, {what} %": row[what] for what in ("median", "most")}
        known[f"products at a {kind} clock"] = row["products"]
    return known


def draw_spreads(of_products: pd.DataFrame) -> Figure:
    """By how much the slowest process takes longer than the fastest, over the lowest of their clocks."""
    figure, (axis,) = new_figure(1, 1, height_in=2.6)
    sizes = of_products.index.get_level_values("draft_size")
    for wide, label, color, marker in (
        (False, f"below {WIDE} tokens", "#0173b2", "o"),
        (True, f"{WIDE} tokens and more", "#de8f05", "s"),
    ):
        of = of_products[(sizes >= WIDE) == wide]
        axis.plot(of.lowest_mhz, of.more_percent, color=color, marker=marker, linestyle="", label=label)
    axis.set(xlabel="lowest clock of three processes (MHz)", ylabel="slowest process\nover fastest, more (%)")
    axis.set_ylim(bottom=0)
    legend_above(figure, axis, columns=2)
    return figure
