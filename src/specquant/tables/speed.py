"""How fast decoding is, and how much faster than decoding one by one: each rule of averaging, written once.

A speed is a ratio of sums: all new tokens over all the time that they took, prefill left out. Speeds of several texts
are put together in one of two forms, which differ where speeds do:

* `over_questions`, the paper's form, is that of Spec-Bench's script (arXiv 2401.07851, evaluation/speed.py): the mean
  of the questions' speeds. Benchmarks are told so.
* `over_equal_texts` is the speed of as much text of each, so again a ratio of sums. All other tables, figures and the
  planner's pick over several tasks are told so.

A speedup is a speed over that of decoding the same text one by one, by the same model in the same scheme.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from specquant.tables.intervals import over_base

Number = TypeVar("Number", float, pd.Series)


def speed(tokens: Number, time_ms: Number) -> Number:
    """Tokens per second: tokens over the milliseconds that they took."""
    return 1e3 * tokens / time_ms


def whole_step_ms(steps: Any) -> Any:
    """How long steps took: their drafts, their passes and the rest. steps: one of them, or a table with its columns."""
    return steps.draft_ms + steps.verify_ms + steps.other_ms


def over_equal_texts(table: pd.DataFrame, keys: Sequence[str], columns: str | list[str]) -> pd.Series | pd.DataFrame:
    """The speeds in `columns` over as much text of each row that has the same keys; NaN where a row has none."""
    time_per_token = 1 / table[columns]
    mean = time_per_token.groupby([table[key] for key in keys], sort=False).agg(lambda each: each.mean(skipna=False))
    return 1 / mean


def over_questions(speeds: np.ndarray) -> np.ndarray:
    """The mean of the questions' speeds, along the last axis; one that is NaN is left out."""
    return np.nan_to_num(speeds).sum(axis=-1) / (~np.isnan(speeds)).sum(axis=-1)


def speedups(speeds: pd.Series, base: str = "autoregressive") -> pd.Series:
    """Each speed over that of the method `base`; NaN where that has none.

    Args:
        speeds: by method and by all that it is compared within; of `base` one for each.
        base: what the index level `method` calls it.
    """
    return over_base(speeds, "method", base)
