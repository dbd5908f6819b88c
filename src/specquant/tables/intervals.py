"""What fresh processes say of one quantity: the median of all, and the lowest and highest of each process's own.

The interval from the lowest to the highest of n processes holds the median of all processes that might have been with
the probability 1 - 2 ** (1 - n), whatever the distribution: 75% for 3 processes, 94% for 5.
"""

from collections.abc import Sequence

import pandas as pd

from specquant.errors import SpecquantError

PROCESS = "process"
SAMPLE = "sample"  # what a table of medians calls the `sample` that they are of


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


def in_words(row: pd.Series, decimals: int = 2) -> str:
    """A median with its interval: "1.31 (1.30 to 1.32)". row: of `over_processes`."""
    return f"{row['median']:.{decimals}f} ({row['low']:.{decimals}f} to {row['high']:.{decimals}f})"


def rule_of_three(trials: int) -> float:
    """How often something may happen, at most, of which not one of so many trials saw anything: 3 / trials.

    It is the upper end of the 95% interval, since (1 - 3 / n) ** n is about 5%: Hanley and Lippman-Hand, "If Nothing
    Goes Wrong, Is Everything All Right?", JAMA 249 (1983), 1743-1745. It holds for trials that do not depend on each
    other; the tokens of one text do to some extent.

    Args:
        trials: how many there were, at least 1.

    Returns:
        A probability; 1 where there were so few trials that nothing can be said.

    Raises:
        SpecquantError: There was no trial.
    """
    if trials < 1:
        raise SpecquantError(f"{trials} trials say nothing of how often something happens: make at least 1")
    return min(3 / trials, 1.0)


def sample(frame: pd.DataFrame) -> str:
    """How many processes, prompts, tokens or repeats a table's numbers are of; "" where it does not say.

    Of medians the table that they are of says it: `read_medians` keeps it.
    """
    if SAMPLE in frame.attrs:
        return frame.attrs[SAMPLE]
    for column, total in (("process", "nunique"), ("prompts", "sum"), ("tokens", "sum"), ("repeats", "max")):
        if column in frame.columns and frame[column].notna().any():
            keys = [key for key in ("model", "scheme", "method") if key in frame.columns]
            counts = frame.groupby(keys)[column].agg(total) if keys else pd.Series([frame[column].agg(total)])
            least, most = (f"{int(count):,}" for count in (counts.min(), counts.max()))
            name = {"process": "processes", "repeats": "repeats in one process"}.get(column, column)
            if least == most == "1":
                name = {"processes": "process", "repeats in one process": "repeat"}.get(name, name.removesuffix("s"))
            return f"{most} {name}" if least == most else f"{least} to {most} {name}"
    return ""
