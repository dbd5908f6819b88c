"""What do rests between runs of a product change? And how far do processes agree with rests, and without?

Of `peers.csv` and `without-rests/peers.csv` (`--rest-over-run 0`), whose processes were recorded in turn on one card.
Of ours and cuBLAS's: torch's own int4 and fp8 products are left out.
"""

import pandas as pd
from matplotlib.figure import Figure

from specquant.measure.peers import CUBLAS, OURS
from specquant.study.claims import RECORDED
from specquant.tables.intervals import PROCESS, apart_percent, over_processes
from specquant.tables.results import read_results
from specquant.tables.style import legend_above, new_figure

TABLE = f"{RECORDED}/peers.csv"
WITHOUT = f"{RECORDED}/without-rests/peers.csv"
PRODUCT = ["model", "layer", "scheme", "implementation", "draft_size"]
FULL_MHZ = 1900  # of an H200, whose highest is 1980
WIDE = 30  # tokens from which a mark has another colour


def every_product(table: str) -> pd.DataFrame:
    """`time_us` and `clock_mhz` of each product (PRODUCT) of ours and cuBLAS's, with a column for each process."""
    rows = read_results(table)
    rows = rows[rows.implementation.isin([OURS, CUBLAS])]
    return rows.groupby([*PRODUCT, PROCESS])[["time_us", "clock_mhz"]].median().unstack(PROCESS)


def compared(table: str = TABLE, without: str = WITHOUT) -> pd.DataFrame:
    """Each product with rests and without, in the processes that both tables have.

    Returns `longer_percent`, by which it takes longer without rests (medians over processes); `apart_percent` and
    `apart_without_percent`, by which the slowest process takes longer than the fastest; and `lowest_mhz` and
    `lowest_without_mhz`, the lowest of the processes' clocks, NaN where it was not read in each. Of one process alone
    nothing is apart: those are NaN.
    """
    rested, unrested = every_product(table), every_product(without)
    both = rested["time_us"].columns.intersection(unrested["time_us"].columns)
    times_us, without_us = (products["time_us"][both].dropna() for products in (rested, unrested))
    columns = {"longer_percent": 100 * (without_us.median(axis=1) / times_us.median(axis=1) - 1)}
    for name, of, products in (("", times_us, rested), ("_without", without_us, unrested)):
        columns[f"apart{name}_percent"] = apart_percent(over_processes(of.stack()))
        columns[f"lowest{name}_mhz"] = products["clock_mhz"][both].min(axis=1, skipna=False)
    return pd.DataFrame(columns).dropna(subset="longer_percent")


def numbers() -> dict[str, float]:
    """ "products apart without rests, median %": by how much the slowest process takes longer than the fastest.
    "products longer with rests at a full clock, median %": than without, where no process without rests was below
    FULL_MHZ. "products longer without rests, most %": than with."""
    products = compared()
    full = products[products.lowest_without_mhz >= FULL_MHZ].longer_percent
    known: dict[str, float] = {
        "products with and without rests": len(products),
        "products with rests, with a clock": products.lowest_mhz.count(),
        "products without rests, with a clock": products.lowest_without_mhz.count(),
        "products with rests, lowest MHz": products.lowest_mhz.min(),
        "products without rests, lowest MHz": products.lowest_without_mhz.min(),
        "products longer with rests at a full clock, median %": 100 * (1 / (1 + full.median() / 100) - 1),
        "products longer without rests, most %": products.longer_percent.max(),
    }
    for name, column in (("with", "apart_percent"), ("without", "apart_without_percent")):
        apart, told = products[column], f"products apart {name} rests"
        known |= {f"{told}, median %": apart.median(), f"{told}, most %": apart.max()}
    return known


def draw_longer(products: pd.DataFrame) -> Figure:
    """By how much a product takes longer without rests, over the lowest clock that a process had without them."""
    figure, (axis,) = new_figure(1, 1, height_in=2.6)
    sizes = products.index.get_level_values("draft_size")
    axis.axhline(0, color="0.5", linewidth=0.8)
    for wide, label, color, marker in (
        (False, f"below {WIDE} tokens", "#0173b2", "o"),
        (True, f"{WIDE} tokens and more", "#de8f05", "s"),
    ):
        of = products[(sizes >= WIDE) == wide]
        axis.plot(of.lowest_without_mhz, of.longer_percent, color=color, marker=marker, linestyle="", label=label)
    axis.set(xlabel="lowest clock without rests (MHz)", ylabel="longer without rests\nthan with (%)")
    legend_above(figure, axis, columns=2)
    return figure
