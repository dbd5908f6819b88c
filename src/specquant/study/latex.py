"""The study's tables for a paper, in LaTeX, each a function from a table of results to what is printed."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from specquant.decoding.drafters import MARKS
from specquant.decoding.method import PLAN_FIELDS, Plan
from specquant.measure.replay import at_fitted_chances
from specquant.planning.acceptance import Shapes
from specquant.tables.style import SCHEMES, caption, in_order, mark


@dataclass(frozen=True)
class RecordedTable:
    """A LaTeX table that `specquant figures` rebuilds from `data/recorded/GPU/`; `decimals` of its numbers. beside:
    further tables below `data/` that `arrange` takes."""

    name: str
    table: str
    arrange: Callable[..., pd.DataFrame]
    text: str
    decimals: int = 2
    other_tables: tuple[str, ...] = ()


def accepted_lengths(frame: pd.DataFrame) -> pd.DataFrame:
    """Schemes by methods, the mean over tasks. `frame`: throughput.csv."""
    return _named(frame.pivot_table(index="scheme", columns="method", values="accepted_length"), MARKS)


def differing_prompts(frame: pd.DataFrame) -> pd.DataFrame:
    """Schemes by methods. `frame`: losslessness.csv."""
    return _named(frame.pivot_table(index="scheme", columns="method", values="differing_prompts"), MARKS)


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


def replayed_plans(frame: pd.DataFrame, trees: pd.DataFrame) -> pd.DataFrame:
    """Models and plans by what a step does and takes. `frame`: replayed.csv; trees: trees.csv."""
    rows = at_fitted_chances(frame, Shapes.of(trees))
    plans = [str(Plan(*plan)) for plan in rows[[*PLAN_FIELDS]].itertuples(index=False, name=None)]
    columns = {
        "accepted_length": "accepted",
        "draft_ms": "draft, ms",
        "verify_ms": "verify, ms",
        "tokens_per_s": "tokens/s",
        "speedup": "speedup",
        "expected_speedup": "expected",
    }
    arranged = rows.assign(plan=plans).set_index(["model", "scheme", "plan"])
    return arranged[list(columns)].rename(columns=columns)


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
    RecordedTable(
        "replayed_plans",
        "replayed.csv",
        replayed_plans,
        "One step of each plan, and its speedup over decoding one by one; expected: at the mean accepted length.",
        other_tables=("recorded/cpu/trees.csv",),
    ),
)


def latex(recorded: RecordedTable, frame: pd.DataFrame, *beside: pd.DataFrame, device: str) -> str:
    """The table as a LaTeX environment that needs the booktabs package (and multirow, where rows have several names),
    with its caption."""
    arranged = recorded.arrange(frame, *beside)
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
    pivoted = pivoted.reindex(in_order(pd.Series(pivoted.index), SCHEMES))
    pivoted.index = pd.Index([mark(scheme, SCHEMES).label for scheme in pivoted.index], name="scheme")
    if columns:
        pivoted = pivoted[in_order(pd.Series(pivoted.columns), columns)]
        pivoted.columns = [mark(name, columns).label for name in pivoted.columns]
    return pivoted
