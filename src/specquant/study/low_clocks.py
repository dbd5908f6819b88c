"""How far do processes differ in products alone, and what clock did the card have then?

Of `peers.csv`, recorded without rests (`--rest-over-run 0`). Of ours and cuBLAS's: a few of torch's int4 and fp8
products differ by more than any of these at a full clock. Why was not looked for.
"""

import pandas as pd
from matplotlib.figure import Figure

from specquant.measure.peers import CUBLAS, OURS
from specquant.study.claims import RECORDED
from specquant.tables.intervals import PROCESS
from specquant.tables.results import read_results
from specquant.tables.style import legend_above, new_figure

TABLE = f"{RECORDED}/peers.csv"
PRODUCT = ["model", "layer", "scheme", "implementation", "draft_size"]
FULL_MHZ, LOW_MHZ = 1900, 1700  # of an H200, whose highest is 1980
WIDE = 30  # tokens from which a mark has another colour


def every_product(table: str = TABLE) -> pd.DataFrame:
    """`time_us` and `clock_mhz` of each product (PRODUCT) of ours and cuBLAS's, with a column for each process."""
    rows = read_results(table)
    rows = rows[rows.implementation.isin([OURS, CUBLAS])]
    return rows.groupby([*PRODUCT, PROCESS])[["time_us", "clock_mhz"]].median().unstack(PROCESS)


def spreads(table: str = TABLE) -> pd.DataFrame:
    """How far apart processes are: a row for each of `every_product` whose clock was read in every process.

    Returns `more_percent`, by which the slowest process takes longer than the fastest, `lowest_mhz`, the lowest of the
    processes' clocks, and `slowest_is_lowest`: whether the slowest process had that clock.
    """
    known = every_product(table).dropna()
    if known["time_us"].shape[1] == 1:
        known = known.iloc[:0]  # one process alone is not apart from others
    times_us, clocks_mhz = known["time_us"], known["clock_mhz"]
    slowest, lowest = times_us.max(axis=1), clocks_mhz.min(axis=1)
    both = times_us.eq(slowest, axis=0) & clocks_mhz.eq(lowest, axis=0)
    more = 100 * (slowest / times_us.min(axis=1) - 1)
    return pd.DataFrame({"more_percent": more, "lowest_mhz": lowest, "slowest_is_lowest": both.any(axis=1)})


def by_clock(of_products: pd.DataFrame) -> pd.DataFrame:
    """`spreads` where no process's clock was below FULL_MHZ ("full"), and where one's was below LOW_MHZ ("low"): how
    many products, the median and the most of `more_percent`, and of how many the slowest process had that clock."""
    clocks = of_products.lowest_mhz
    kinds = {"full": of_products[clocks >= FULL_MHZ], "low": of_products[clocks < LOW_MHZ]}
    told = {
        kind: [len(of), of.more_percent.median(), of.more_percent.max(), of.slowest_is_lowest.sum()]
        for kind, of in kinds.items()
    }
    return pd.DataFrame.from_dict(told, "index", columns=["products", "median", "most", "slowest is lowest"])


def numbers() -> dict[str, float]:
    """ "products apart at a low clock, median %": by how much the slowest process takes longer than the fastest.
    "products at a low clock, slowest is lowest": of how many of these the slowest process had the lowest clock."""
    of_products = spreads()
    known: dict[str, float] = {"products of three processes": len(every_product())}
    known["products of three processes, with a clock"] = len(of_products)
    for kind, row in by_clock(of_products).iterrows():
        known |= {f"products apart at a {kind} clock, {what} %": row[what] for what in ("median", "most")}
        known |= {f"products at a {kind} clock": row["products"]}
        known |= {f"products at a {kind} clock, slowest is lowest": row["slowest is lowest"]}
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
    axis.set(xlabel="lowest clock of three processes (MHz)", ylabel="slowest process takes\nlonger than fastest by (%)")
    axis.set_ylim(bottom=0)
    legend_above(figure, axis, columns=2)
    return figure
