"""What a step of one model costs: from the tables of one GPU."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from specquant.errors import SpecquantError
from specquant.files import resolve
from specquant.tables.results import read_medians


@dataclass(frozen=True)
class LevelCosts:
    """What a step of one model costs, in milliseconds.

    Attributes:
        verify_ms: of a pass, by its draft size in tokens. What lies between is interpolated.
        draft_ms: of an EAGLE-2 draft, by its iterations, through which a line is laid. Empty where there is no head.
        other_ms: of a step's rest: accepting tokens and keeping the books.
    """

    verify_ms: pd.Series
    draft_ms: pd.Series
    other_ms: float = 0.0

    def verify(self, draft_size: float) -> float:
        """Of a pass over so many tokens. Raises SpecquantError beyond the sizes that were measured."""
        sizes, times_ms = self._passes
        if not sizes.min() <= draft_size <= sizes.max():
            raise SpecquantError(
                f"a pass over {draft_size:g} tokens was not measured, only over {sizes.min()} to {sizes.max()}"
            )
        return float(np.interp(draft_size, sizes, times_ms))

    def draft(self, iterations: int) -> float:
        """Of an EAGLE-2 draft of so many levels. Raises SpecquantError where none of such a head was measured."""
        if not len(self.draft_ms):
            raise SpecquantError("no draft of such a head was measured: measure some (specquant bench drafting)")
        if len(self.draft_ms) == 1:
            return float(self.draft_ms.iloc[0]) * iterations / self.draft_ms.index[0]
        return float(np.polyval(self._line, iterations))

    @cached_property
    def _passes(self) -> tuple[np.ndarray, np.ndarray]:
        """Sizes and times as arrays: a planner asks for thousands of passes, and pandas takes longer than they do."""
        return self.verify_ms.index.to_numpy(), self.verify_ms.to_numpy()

    @cached_property
    def _line(self) -> np.ndarray:
        return np.polyfit(self.draft_ms.index, self.draft_ms, 1)


def recorded_tables(
    recorded: str | Path, models: Iterable[str], scheme: str, head_scheme: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Passes and drafts of one GPU with one row for each quantity, from verify_cost.csv and drafting.csv.

    Args:
        recorded: the folder of these tables.
        models: that are asked for.
        scheme: of their passes.
        head_scheme: of EAGLE heads.

    Raises:
        SpecquantError: a table is missing, or one of these was not measured.
    """
    passes, drafting = (read_medians(resolve(recorded) / f"{table}.csv") for table in ("verify_cost", "drafting"))
    if head_scheme not in set(drafting.head_scheme):
        raise SpecquantError(
            f"{resolve(recorded) / 'drafting.csv'} has no drafts of heads in {head_scheme}, only in "
            f"{', '.join(drafting.head_scheme.unique())}: choose one of these (--head-scheme)"
        )
    for model in models:
        measured_costs(passes, drafting, model, scheme, head_scheme)
    return passes, drafting


def too_slow(tables: tuple[pd.DataFrame, pd.DataFrame], target: str, intermediate: str, scheme: str) -> str | None:
    """What is to be said of an intermediate model that is no faster than its target; None where it is.

    tables: `recorded_tables`.
    """
    its_ms, target_ms = (measured_costs(*tables, model, scheme).verify(1) for model in (intermediate, target))
    if its_ms < target_ms:
        return None
    return (
        f"a pass of the intermediate model {intermediate} over one token takes {its_ms:.2f} ms, and one of {target} "
        f"{target_ms:.2f} ms: it hardly pays unless it is faster, so name a smaller model (--intermediate)"
    )


def without_heads(drafting: pd.DataFrame, models: Iterable[str], head_scheme: str) -> str | None:
    """What is to be said of models on which no draft of such heads was measured; None where there are none.

    drafting: of `recorded_tables`.
    """
    timed = set(drafting[drafting.head_scheme == head_scheme].model)
    if not (without := [model for model in models if model not in timed]):
        return None
    return (
        f"drafts of heads in {head_scheme} on {' and '.join(without)} were not measured, so methods that need them are "
        "left out: measure some (specquant bench drafting)"
    )


def measured_costs(
    verify_cost: pd.DataFrame,
    drafting: pd.DataFrame,
    model: str,
    scheme: str,
    head_scheme: str = "fp16",
    head_vocabulary: int | None = None,
    context_length: int = 512,
    other_ms: float = 0.0,
) -> LevelCosts:
    """One model's costs, from the tables of one GPU with one row for each quantity (`read_medians`).

    Args:
        verify_cost: verify_cost.csv.
        drafting: drafting.csv.
        model, scheme: of the passes.
        head_scheme: of the EAGLE head.
        head_vocabulary: tokens that the head knows. The most that were measured where it is None, or 0, which is how
            tables before 0.2 wrote "all".
        context_length: tokens in the cache.
        other_ms: bookkeeping of a step.

    Returns:
        The costs; without times of drafts where none of such a head was measured.

    Raises:
        SpecquantError: if the pass of one token was not measured.
    """
    passes = verify_cost[(verify_cost.model == model) & (verify_cost.scheme == scheme)]
    passes = passes[passes.context_length == context_length].set_index("draft_size").time_ms.sort_index()
    if 1 not in passes.index:
        there = verify_cost[(verify_cost.context_length == context_length) & (verify_cost.draft_size == 1)]
        its = ", ".join(there[there.model == model].scheme.unique())
        told = f"only in {its}" if its else f"only of {', '.join(there.model.unique()) or 'no model'}"
        raise SpecquantError(
            f"no pass of {model!r} in {scheme} behind {context_length} tokens was measured, {told}: choose of these, "
            "or measure it (specquant bench verify-cost)"
        )
    drafts = drafting[(drafting.model == model) & (drafting.head_scheme == head_scheme)]
    known = head_vocabulary or drafts.head_vocabulary.max()
    return LevelCosts(passes, drafts[drafts.head_vocabulary == known].groupby("iterations").time_ms.mean(), other_ms)


def bookkeeping_ms(table: pd.DataFrame, **values: str) -> float:
    """How long a step's bookkeeping took, in milliseconds: the median of the rows with these values, by their columns.

    Raises SpecquantError where there are none.
    """
    for column, value in values.items():
        rows = table[table[column] == value]
        if rows.empty:
            recorded = ", ".join(table[column].unique())
            raise SpecquantError(
                f"nothing was recorded with {column} {value}, only with {recorded}: choose of these, or measure it"
            )
        table = rows
    return table.other_ms.median()
