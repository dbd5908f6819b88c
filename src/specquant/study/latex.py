"""The study's tables for a paper, in LaTeX, each a function from a table of results to what is printed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pandas as pd

from specquant.decoding.drafters import MARKS
from specquant.decoding.method import PLAN_FIELDS, Plan, plans_in
from specquant.planning.acceptance import Shapes
from specquant.planning.replayed import ONE_RUN, fitted_in_each_process
from specquant.tables.style import SCHEMES, caption, in_order, mark, model_label
from specquant.tables.verify_cost import behind_first_context


@dataclass(frozen=True)
class RecordedTable:
    """A LaTeX table that `specquant figures` rebuilds from `data/recorded/GPU/`; `decimals` of its numbers.

    other_tables: Further ones, below `data/`, that `arrange` takes. every_process: It takes the first one as it was
    recorded; else the medians over processes. only: Of the first one it takes rows with these values alone.
    first_context: And of these the ones behind the shortest context.
    """

    name: str
    table: str
    arrange: Callable[..., pd.DataFrame]
    text: str
    decimals: int = 2
    other_tables: tuple[str, ...] = ()
    every_process: bool = False
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    first_context: bool = False

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Those of the first table that it takes; without any there is no such table."""
        return rows_with(frame, self.only, self.first_context)


def rows_with(frame: pd.DataFrame, only: Mapping[str, tuple[str, ...]], first_context: bool) -> pd.DataFrame:
    """The rows with these values of these columns, where the table has them; first_context: and of these the ones
    behind the shortest context."""
    for column in only.keys() & set(frame.columns):
        frame = frame[frame[column].isin(only[column])]
    return behind_first_context(frame) if first_context else frame


def accepted_lengths(frame: pd.DataFrame) -> pd.DataFrame:
    """Schemes by methods, the mean over tasks. `frame`: throughput.csv."""
    return _named(_drafted(frame).pivot_table(index="scheme", columns="method", values="accepted_length"), MARKS)


def differing_prompts(frame: pd.DataFrame) -> pd.DataFrame:
    """Schemes by methods. `frame`: losslessness.csv."""
    return _named(_drafted(frame).pivot_table(index="scheme", columns="method", values="differing_prompts"), MARKS)


def perplexities(frame: pd.DataFrame) -> pd.DataFrame:
    """Schemes by domains. `frame`: quality.csv."""
    return _named(frame.pivot_table(index="scheme", columns="domain", values="perplexity"))


def pass_times(frame: pd.DataFrame) -> pd.DataFrame:
    """Schemes by models and draft sizes. `frame`: verify_cost.csv."""
    rows = frame[frame.draft_size.isin([1, 16, 60])]
    return _of_models(_named(rows.pivot_table(index="scheme", columns=["model", "draft_size"], values="time_ms")))


def draft_times(frame: pd.DataFrame) -> pd.DataFrame:
    """Kinds of heads by models and iterations. `frame`: drafting.csv."""
    rows = frame.pivot_table(
        index=["head_scheme", "head_vocabulary"], columns=["model", "iterations"], values="time_ms"
    )
    rows = rows.sort_index(ascending=[True, False])
    heads = [f"{mark(scheme, SCHEMES).label}, {vocabulary:,} tokens" for scheme, vocabulary in rows.index]
    return _of_models(rows.set_axis(pd.Index(heads, name="head")))


def replayed_plans(frame: pd.DataFrame, trees: pd.DataFrame) -> pd.DataFrame:
    """Models and plans by what a step does and takes: the median over processes, of speedups too.

    frame: replayed.csv of every process. trees: trees.csv.
    """
    shapes, keys = Shapes.of(trees), [*ONE_RUN, *PLAN_FIELDS]
    rows = fitted_in_each_process(frame, shapes).groupby(keys, sort=False).median(numeric_only=True).reset_index()
    kinds = rows[["model", "scheme", "head_scheme"]].drop_duplicates()
    plans = pd.Index(map(_short, plans_in(rows)), name="plan")
    if len(kinds) > 1:
        told = rows.apply(lambda row: f"{model_label(row.model)}, {mark(row.scheme, SCHEMES).label}", axis=1)
        plans = pd.MultiIndex.from_arrays([told, plans], names=["target", "plan"])
    columns = {
        "accepted_length": "accepted",
        "draft_ms": "draft",
        "verify_ms": "pass",
        "expected_speedup": "speedup",
    }
    return rows.set_index(plans)[list(columns)].rename(columns=columns)


RECORDED_TABLES = (
    RecordedTable("accepted_lengths", "throughput.csv", accepted_lengths, "Tokens per pass of the target."),
    RecordedTable(
        "differing_prompts", "losslessness.csv", differing_prompts, "Prompts to which a method wrote other tokens.", 0
    ),
    RecordedTable("perplexities", "quality.csv", perplexities, "Held-out perplexity."),
    RecordedTable(
        "pass_times",
        "verify_cost.csv",
        pass_times,
        "Time of a pass in milliseconds, by tokens in it.",
        1,
        first_context=True,
    ),
    RecordedTable(
        "draft_times", "drafting.csv", draft_times, "Time of an EAGLE-2 draft in milliseconds, by iterations."
    ),
    RecordedTable(
        "replayed_plans",
        "replayed.csv",
        replayed_plans,
        "One step of each plan: nodes of EAGLE-2's tree, and tokens at least where the intermediate model drafts; "
        "times in milliseconds; speedup over decoding one by one, at the mean accepted length. Heads in W4A16.",
        other_tables=("recorded/cpu/trees.csv",),
        every_process=True,
        only={"head_scheme": ("w4a16-g128",), "chances": ("fitted",)},
    ),
)


def latex(recorded: RecordedTable, frame: pd.DataFrame, *beside: pd.DataFrame, device: str, folder: str = "") -> str:
    """The table as a LaTeX environment of one column's width that needs the booktabs package alone, with its caption.

    folder: of the card, which makes its label one of its own.
    """
    arranged = recorded.arrange(frame, *beside)
    arranged.columns = arranged.columns.set_names([None] * arranged.columns.nlevels)  # the caption says what they are
    text = arranged.to_latex(
        float_format=f"%.{recorded.decimals}f",
        caption=caption(recorded.text, frame, device).replace("%", r"\%"),
        label=":".join(part for part in ("tab", folder, recorded.name) if part),
        na_rep="--",
        escape=True,
        multicolumn_format="c",
        multirow=False,
    )
    small = "\\centering\n\\footnotesize\n\\setlength{\\tabcolsep}{3pt}\n\\setlength{\\belowcaptionskip}{4pt}\n"
    text = text.replace("\\begin{table}\n", "\\begin{table}\n" + small)
    return "\n".join(_one_heading([line for line in text.splitlines() if not line.startswith("\\cline")])) + "\n"


def _one_heading(lines: list[str]) -> list[str]:
    """With the rows' names in the same line as the columns', where pandas writes one below the other."""
    place = lines.index("\\midrule") - 1
    columns, rows = (line.removesuffix(" \\\\").split(" & ") for line in lines[place - 1 : place + 1])
    heading = " & ".join(column.strip() or row.strip() for column, row in zip(columns, rows, strict=True))
    return [*lines[: place - 1], heading + " \\\\", *lines[place + 1 :]]


def _drafted(frame: pd.DataFrame) -> pd.DataFrame:
    """Without decoding one by one, of which these tables say nothing: 1 token, no prompt that differs."""
    return frame[frame.method != "autoregressive"]


def _short(plan: Plan) -> str:
    """A plan in few words: its method, and what it is given."""
    numbers = [str(number) for number in (plan.draft_size, plan.min_draft_length) if number]
    return ", ".join([mark(plan.method, MARKS).label, *numbers])


def _of_models(pivoted: pd.DataFrame) -> pd.DataFrame:
    """Columns of models by sizes, with the names that papers write."""
    columns = [(model_label(model), size) for model, size in pivoted.columns]
    names = [name.replace("_", " ") for name in pivoted.columns.names]
    return pivoted.set_axis(pd.MultiIndex.from_tuples(columns, names=names), axis=1)


def _named(pivoted: pd.DataFrame, columns: dict | None = None) -> pd.DataFrame:
    """Rows in the house's order, with the names that figures use."""
    pivoted = pivoted.reindex(in_order(pd.Series(pivoted.index), SCHEMES))
    pivoted.index = pd.Index([mark(scheme, SCHEMES).label for scheme in pivoted.index], name="scheme")
    if columns:
        pivoted = pivoted[in_order(pd.Series(pivoted.columns), columns)]
        pivoted.columns = [mark(name, columns).label for name in pivoted.columns]
    return pivoted
