"""The study's tables for a paper, in LaTeX, each a function from a table of results to what is printed."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from specquant.study.style import METHODS, SCHEMES, caption, in_house_order, mark


@dataclass(frozen=True)
class RecordedTable:
    """A LaTeX table that `specquant figures` rebuilds from `data/recorded/GPU/`; `decimals` of its numbers."""

    name: str
    table: str
    arrange: Callable[[pd.DataFrame], pd.DataFrame]
    text: str
    decimals: int = 2


def accepted_lengths(frame: pd.DataFrame) -> pd.DataFrame:
    """Schemes by methods, the mean over tasks. `frame`: throughput.csv."""
    return _named(frame.pivot_table(index="scheme", columns="method", values="accepted_length"), METHODS)


def differing_prompts(frame: pd.DataFrame) -> pd.DataFrame:
    """Schemes by methods. `frame`: losslessness.csv."""
    return _named(frame.pivot_table(index="scheme", columns="method", values="differing_prompts"), METHODS)


def perplexities(frame: pd.DataFrame) -> pd.DataFrame:
    """Schemes by domains. `frame`: quality.csv."""
    return _named(frame.pivot_table(index="scheme", columns="domain", values="perplexity"))


def pass_times(frame: pd.DataFrame) -> pd.DataFrame:
    """Schemes by models and draft sizes, behind the shortest context. `frame`: verify_cost.csv."""
    rows = frame[(frame.context_length == frame.context_length.min()) & frame.draft_size.isin([1, 16, 32, 60])]
    return _named(rows.pivot_table(index="scheme", columns=["model", "draft_size"], values="time_ms"))


def draft_times(frame: pd.DataFrame) -> pd.DataFrame:
    """Kinds of heads by models and iterations. `frame`: drafting.csv."""
    rows = frame.pivot_table(
        index=["head_scheme", "head_vocabulary"], columns=["model", "iterations"], values="time_ms"
    )
    return rows.sort_index(ascending=[True, False])


RECORDED_TABLES = (
    RecordedTable("accepted_lengths", "throughput.csv", accepted_lengths, "Tokens per pass of the target."),
    RecordedTable(
        "differing_prompts", "losslessness.csv", differing_prompts, "Prompts to which a method wrote other tokens.", 0
    ),
    RecordedTable("perplexities", "quality.csv", perplexities, "Held-out perplexity."),
    RecordedTable("pass_times", "verify_cost.csv", pass_times, "Time of a pass in milliseconds, by tokens in it."),
    RecordedTable(
        "draft_times", "drafting.csv", draft_times, "Time of an EAGLE-2 draft in milliseconds, by iterations."
    ),
)


def latex(recorded: RecordedTable, frame: pd.DataFrame, device: str) -> str:
    """The table as a LaTeX environment that needs the booktabs package, with its caption."""
    arranged = recorded.arrange(frame)
    return arranged.to_latex(
        float_format=f"%.{recorded.decimals}f",
        caption=caption(recorded.text, frame, device).replace("%", r"\%"),
        label=f"tab:{recorded.name}",
        na_rep="--",
        escape=True,
        multicolumn_format="c",
    )


def _named(pivoted: pd.DataFrame, columns: dict | None = None) -> pd.DataFrame:
    """Rows in the house's order, with the names that figures use."""
    pivoted = pivoted.reindex(in_house_order(pd.Series(pivoted.index), SCHEMES))
    pivoted.index = pd.Index([mark(scheme, SCHEMES).label for scheme in pivoted.index], name="scheme")
    if columns:
        pivoted = pivoted[in_house_order(pd.Series(pivoted.columns), columns)]
        pivoted.columns = [mark(name, columns).label for name in pivoted.columns]
    return pivoted
