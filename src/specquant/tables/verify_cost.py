"""Passes by draft size, scheme by scheme: the table that `measure.verify_cost` writes, and what it says."""

import pandas as pd

from specquant.tables.intervals import in_each_process, over_processes, ratios

KEYS = ["model", "scheme", "weights", "context_length", "draft_size"]


def pass_times(rows: pd.DataFrame, protocol: str = "blocks") -> pd.DataFrame:
    """The time of each pass in milliseconds: median, low and high over processes, by `KEYS`."""
    return over_processes(in_each_process(rows[rows.protocol == protocol], KEYS))


def pass_growth(rows: pd.DataFrame, protocol: str = "blocks") -> pd.DataFrame:
    """The time of each pass over that of one token in the same process: median, low and high over processes, by `KEYS`.

    What has no pass of one token to compare with is left out.
    """
    return over_processes(ratios(in_each_process(rows[rows.protocol == protocol], KEYS), "draft_size", 1))


def behind_first_context(rows: pd.DataFrame) -> pd.DataFrame:
    """Of rows that were measured behind several contexts those behind the shortest one."""
    return rows[rows.context_length == rows.context_length.min()] if "context_length" in rows else rows
