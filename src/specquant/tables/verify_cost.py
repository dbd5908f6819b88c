"""Passes by draft size, scheme by scheme: the table that `measure.verify_cost` writes, and what it says."""

from pathlib import Path

import pandas as pd

from specquant.paths import resolve
from specquant.study.results import read_results
from specquant.tables.intervals import in_each_process, over_processes, ratios
from specquant.tables.table import VERIFY_COST

KEYS = ["model", "scheme", "weights", "context_length", "draft_size"]


def pass_times(rows: pd.DataFrame, protocol: str = "blocks") -> pd.DataFrame:
    """The time of each pass in milliseconds: median, low and high over processes, by `KEYS`."""
    return over_processes(in_each_process(rows[rows.protocol == protocol], KEYS))


def pass_growth(rows: pd.DataFrame, protocol: str = "blocks") -> pd.DataFrame:
    """The time of each pass over that of one token in the same process: median, low and high over processes, by `KEYS`.

    What has no pass of one token to compare with is left out.
    """
    return over_processes(ratios(in_each_process(rows[rows.protocol == protocol], KEYS), "draft_size", 1))


def one_row_each(rows: pd.DataFrame, protocol: str = "blocks") -> pd.DataFrame:
    """A row for each pass (`Table.one_row_each`)."""
    return VERIFY_COST.one_row_each(rows[rows.protocol == protocol])


def read_passes(folder: str | Path, context_length: int | None = None) -> pd.DataFrame:
    """`one_row_each` of the verify_cost.csv in a folder, behind one context if it is given."""
    rows = one_row_each(read_results(resolve(folder) / "verify_cost.csv"))
    return rows if context_length is None else rows[rows.context_length == context_length]
