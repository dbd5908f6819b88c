"""What fresh processes say of one quantity: the median of all, and the lowest and highest of each process's own.

The interval from the lowest to the highest of n processes holds the median of all processes that might have been with
the probability 1 - 2 ** (1 - n), whatever the distribution: 75% for 3 processes, 94% for 5.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from specquant.errors import SpecquantError

PROCESS = "process"
RESAMPLES = 2000  # of questions, for an interval over them
# Columns that say of how much a table's numbers are, the first that it has, with how they add up and are called.
SAMPLES = {
    PROCESS: ("nunique", "processes"),
    "processes": ("max", "processes"),  # of medians, which have lost the processes
    "prompts": ("sum", "prompts"),
    "tokens": ("sum", "tokens"),
    "repeats": ("max", "repeats in one process"),
}


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


def apart_percent(told: pd.DataFrame) -> pd.Series:
    """By how much the highest process is above the lowest, of what has several. told: of `over_processes`."""
    several = told[told["processes"] > 1]
    return 100 * (several["high"] / several["low"] - 1)


def in_words(row: pd.Series, decimals: int = 2) -> str:
    """A median with its interval, "1.31 (1.30 to 1.32)". One process has none. row: of `over_processes`."""
    if row["processes"] == 1:
        return f"{row['median']:.{decimals}f}"
    return f"{row['median']:.{decimals}f} ({row['low']:.{decimals}f} to {row['high']:.{decimals}f})"


def interval(name: str) -> tuple[str, str, str]:
    """The columns of a number and of its interval."""
    return name, f"{name}_low", f"{name}_high"


def ends(name: str, values: pd.Series, unit: str = "") -> dict[str, float]:
    """The least and the most of several numbers, by the names that they have in prose."""
    return {f"{name}, least{unit}": values.min(), f"{name}, most{unit}": values.max()}


def told_with_interval(row: pd.Series, name: str, decimals: int = 2, factor: float = 1, unit: str = "") -> str:
    """A number with its interval, from a row that has the columns `interval(name)`: "65.5% (64.4 to 66.6)"."""
    value, low, high = (f"{factor * row[each]:.{decimals}f}" for each in interval(name))
    return f"{value}{unit} ({low} to {high})"


def over_questions_with(name: str, above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """A ratio of sums over questions with its 95% bootstrap interval over them (percentiles, seeded).

    Args:
        name: Of the number; its ends are called NAME_low and NAME_high.
        above: What is added up above, for each question.
        below: Likewise below. Where it adds up to nothing there is no number.
    """
    tops, bottoms = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    if not bottoms.sum() > 0:
        return dict.fromkeys(interval(name), float("nan"))
    draws = np.random.default_rng(0).integers(len(tops), size=(RESAMPLES, len(tops)))
    drawn = bottoms[draws].sum(axis=1)
    ratios = tops[draws].sum(axis=1)[drawn > 0] / drawn[drawn > 0]
    ends = (float(tops.sum() / bottoms.sum()), *np.quantile(ratios, [0.025, 0.975]).tolist())
    return dict(zip(interval(name), ends, strict=True))


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


def sample(*frames: pd.DataFrame) -> str:
    """How many processes, prompts, tokens or repeats the numbers of tables are of; "" where they do not say.

    Each model, scheme, method and context has a number of its own: the least and the most are told. The first table
    decides what is counted, and those that count something else are left out.
    """
    name, counts = "", []
    for frame in frames:
        kind, found = _counts(frame)
        if found and kind == (name := name or kind):
            counts += found
    if not counts:
        return ""
    least, most = (f"{int(count):,}" for count in (min(counts), max(counts)))
    if least == most == "1":
        name = {"processes": "process", "repeats in one process": "repeat"}.get(name, name.removesuffix("s"))
    return f"{most} {name}" if least == most else f"{least} to {most} {name}"


def _counts(frame: pd.DataFrame) -> tuple[str, list[float]]:
    """What a table counts, and how many there are of each model, scheme, method and context, if it does."""
    for column, (total, name) in SAMPLES.items():
        if column in frame.columns and frame[column].notna().any():
            keys = [key for key in ("model", "scheme", "method", "context_length") if key in frame.columns]
            each = frame.groupby(keys)[column].agg(total) if keys else pd.Series([frame[column].agg(total)])
            return name, each.tolist()
    return "", []
