"""Passes by draft size, scheme by scheme: the table that `measure.verify_cost` writes, and what it says."""

import pandas as pd

from specquant.tables.intervals import PROCESS, in_each_process, over_processes, ratios

KEYS = ["model", "scheme", "weights", "context_length", "draft_size"]


def pass_times(rows: pd.DataFrame, protocol: str = "blocks") -> pd.DataFrame:
    """The time of each pass in milliseconds: median, low and high over processes, by `KEYS`."""
    return over_processes(in_each_process(rows[rows.protocol == protocol], KEYS))


def pass_growth(rows: pd.DataFrame, protocol: str = "blocks") -> pd.DataFrame:
    """The time of each pass over that of one token in the same process: median, low and high over processes, by `KEYS`.

    What has no pass of one token to compare with is left out.
    """
    return over_processes(ratios(in_each_process(rows[rows.protocol == protocol], KEYS), "draft_size", 1))


def process_offsets(rows: pd.DataFrame) -> pd.DataFrame:
    """By how many milliseconds a process's passes take longer than the first process's: the median over schemes, by
    model and process, with a column for each draft size."""
    times_ms = in_each_process(rows, KEYS).unstack(PROCESS).sort_index(axis=1)
    longer_ms = times_ms.sub(times_ms.iloc[:, 0], axis=0).iloc[:, 1:].stack()
    return longer_ms.groupby(["model", PROCESS, "draft_size"]).median().unstack("draft_size")


def behind_first_context(rows: pd.DataFrame) -> pd.DataFrame:
    """Of rows that were measured behind several contexts those behind the shortest one."""
    return rows[rows.context_length == rows.context_length.min()] if "context_length" in rows else rows
