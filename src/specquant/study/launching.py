"""How much of what processes differ by in a pass is the host's, which takes longer in one to launch it than in another?

A pass is timed from an idle card on, as decoding meets it, so most of what the host takes to launch it is in its time.
`launch_us` of verify_cost.csv says how long that was; older tables lack it.
"""

import pandas as pd

from specquant.tables.intervals import in_each_process, over_processes
from specquant.tables.verify_cost import KEYS


def without_launching(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that say how long the host took, with that taken off their times. A card begins before the host is done,
    so less than all of it was waited for: what is left only tells processes apart.

    rows: of verify_cost.csv. None is left of a table that lacks the column.
    """
    told = rows.reindex(columns=[*rows.columns.drop("launch_us", errors="ignore"), "launch_us"])
    told = told.dropna(subset="launch_us")
    return told.assign(time_ms=told.time_ms - told.launch_us / 1e3)


def processes_apart(rows: pd.DataFrame) -> pd.DataFrame:
    """How far the slowest process is from the fastest, in milliseconds: the median over schemes, by model and draft
    size. No row where fewer than two processes say how long the host took.

    Returns `apart_ms`, of passes; `launch_apart_ms`, of launching them; `left_ms`, of passes without launching. Where
    `left_ms` is far below `apart_ms`, processes differ by the host.

    rows: of verify_cost.csv, timed in blocks.
    """
    left = without_launching(rows)
    launch_ms = left.launch_us / 1e3
    values = {"apart_ms": left.time_ms + launch_ms, "launch_apart_ms": launch_ms, "left_ms": left.time_ms}
    apart = {name: _apart(left.assign(time_ms=times_ms)) for name, times_ms in values.items()}
    return pd.DataFrame(apart).groupby(["model", "draft_size"]).median()


def _apart(rows: pd.DataFrame) -> pd.Series:
    told = over_processes(in_each_process(rows, KEYS))
    several = told[told["processes"] > 1]
    return several["high"] - several["low"]


def numbers(rows: pd.DataFrame) -> dict[str, float]:
    """ "processes of 8b apart, 1 tokens, ms", "launching": of launching; "without launching": of what is left.

    rows: as for `processes_apart`. Of a table that does not say how long the host took there are none.
    """
    apart, known = processes_apart(rows), {}
    for model, name in (("llama-3-8b", "8b"), ("llama-3-70b", "70b")):
        for size in (1, 60):
            if (model, size) in apart.index:
                of, told = apart.loc[model, size], f"processes of {name} apart, {size} tokens"
                known |= {f"{told}, ms": of.apart_ms, f"{told}, launching, ms": of.launch_apart_ms}
                known[f"{told}, without launching, ms"] = of.left_ms
    return known
