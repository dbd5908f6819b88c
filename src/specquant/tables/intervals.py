"""What fresh processes say of one quantity: the median of all, and the lowest and highest of each process's own.

The interval from the lowest to the highest of n processes holds the median of all processes that might have been with
the probability 1 - 2 ** (1 - n), whatever the distribution: 75% for 3 processes, 94% for 5.
"""

from collections.abc import Sequence

import pandas as pd

PROCESS = "process"


def in_each_process(rows: pd.DataFrame, keys: Sequence[str], value: str = "time_ms") -> pd.Series:
    """The median over the blocks of each process, by `keys` and process."""
    return rows.groupby([*keys, PROCESS], sort=False)[value].median()


def over_base(values: pd.Series, level: str, base: object) -> pd.Series:
    """Each value over the one at `base` on an index level and like it on all others; NaN where there is none."""
    bases = values[values.index.get_level_values(level) == base].droplevel(level)
    return values / bases.reindex(values.index.droplevel(level)).to_numpy()


def ratios(values: pd.Series, level: str, base: object) -> pd.Series:
    """Each value over the one at `base` on an index level, of the same process.

    values: of `in_each_process`. What has no such value to compare with is left out.
    """
    return over_base(values, level, base).dropna()


def over_processes(values: pd.Series) -> pd.DataFrame:
    """The median over processes, with `low` and `high`, the lowest and highest process's, and how many `processes`.

    values: of `in_each_process` or `ratios`. One row for each of the other index levels.
    """
    keys = [name for name in values.index.names if name != PROCESS]
    groups = values.groupby(level=keys, sort=False)
    return pd.DataFrame(
        {"median": groups.median(), "low": groups.min(), "high": groups.max(), "processes": groups.size()}
    )
