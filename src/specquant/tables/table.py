"""What a table's columns are: checked when it is written and when it is read, by pandera."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa

from specquant.errors import SpecquantError

REMEDY = "measure it again, or take it from the repository"
REPEATS = ("process", "protocol", "block", "place")  # columns that say which measurement of a quantity a row is


@dataclass(frozen=True)
class Table:
    """A kind of table.

    name: of its file, without .csv. unit: the columns that name a unit of work, whose rows are written together. row:
    the columns that name a row among those of its unit. schema: its columns with their types and ranges.
    """

    name: str
    unit: tuple[str, ...]
    row: tuple[str, ...]
    schema: pa.DataFrameSchema

    def check(self, frame: pd.DataFrame, where: Path) -> pd.DataFrame:
        """The frame with its columns in the schema's types.

        Raises SpecquantError that names `where`, the line and the column, for a column that is missing, a value of a
        wrong type or out of its range, and a row that is there twice.
        """
        try:
            frame = self.schema.validate(frame, lazy=True)
        except pa.errors.SchemaErrors as error:
            case = error.failure_cases.iloc[0]
            if case["check"] == "column_in_dataframe":
                raise SpecquantError(f"{where} lacks the column {case.failure_case}: {REMEDY}") from None
            place = f"{where}, line {int(case['index']) + 2}: " if pd.notna(case["index"]) else f"{where}: "
            value = "nothing" if pd.isna(case.failure_case) else f'"{case.failure_case}"'
            raise SpecquantError(f"{place}{value} in column {case.column} ({case['check']}): {REMEDY}") from None
        twice = frame.duplicated([*self.unit, *self.row])
        if twice.any():
            names = ", ".join(f"{name} {frame.loc[twice.idxmax(), name]}" for name in (*self.unit, *self.row))
            raise SpecquantError(f"{where}, line {int(twice.idxmax()) + 2}: a second row of {names}: {REMEDY}")
        return frame

    @property
    def quantity(self) -> list[str]:
        """The columns that name what was measured, whichever process and block measured it."""
        return [name for name in (*self.unit, *self.row) if name not in REPEATS]

    def one_row_each(self, rows: pd.DataFrame) -> pd.DataFrame:
        """A row for each quantity; of every number the median over processes of the medians over each one's blocks.

        What was timed in turns does not count.
        """
        if "protocol" in rows:
            rows = rows[rows.protocol == "blocks"]
        numbers = [name for name in rows.select_dtypes("number") if name not in (*self.quantity, *REPEATS)]
        in_each = rows.groupby([*self.quantity, "process"], sort=False, dropna=False)[numbers].median()
        told = in_each.groupby(level=self.quantity, sort=False, dropna=False).median().reset_index()
        others = [name for name in rows.columns if name not in (*told.columns, *REPEATS)]
        if others:
            told = told.merge(rows.drop_duplicates(self.quantity)[[*self.quantity, *others]], on=self.quantity)
        told.attrs = rows.attrs
        return told


_FINITE = pa.Check(np.isfinite, error="a finite number")


def _text(*choices: str) -> pa.Column:
    return pa.Column(str, pa.Check.isin(choices) if choices else None)


def _count(lowest: int = 1) -> pa.Column:
    return pa.Column(int, pa.Check.ge(lowest), coerce=True)


def _positive(required: bool = True) -> pa.Column:
    """A finite number above 0; where it is not required, the column may be missing or empty."""
    return pa.Column(float, [pa.Check.gt(0), _FINITE], coerce=True, required=required, nullable=not required)


def _not_negative() -> pa.Column:
    return pa.Column(float, [pa.Check.ge(0), _FINITE], coerce=True)


def _share() -> pa.Column:
    return pa.Column(float, pa.Check.in_range(0, 1), coerce=True)


VERIFY_COST = Table(
    "verify_cost",
    unit=("model", "scheme", "weights", "context_length", "process", "protocol"),
    row=("draft_size", "block"),
    schema=pa.DataFrameSchema(
        {
            "model": _text(),
            "scheme": _text(),
            "weights": _text("trained", "synthetic"),
            "context_length": _count(),
            "process": _count(0),
            "protocol": _text("blocks", "turns"),
            "block": _count(0),
            "place": _count(0),
            "draft_size": _count(),
            "time_ms": _positive(),
            "p10_ms": _positive(),
            "p90_ms": _positive(),
            "repeats": _count(),
            "clock_mhz": _positive(required=False),
            "power_w": _positive(required=False),
            "bytes": _positive(required=False),
            "floor_ms": _positive(required=False),
        }
    ),
)

SETTLING = Table(
    "settling",
    unit=("model", "scheme", "weights", "process"),
    row=("what", "behind", "idle_ms", "position"),
    schema=pa.DataFrameSchema(
        {
            "model": _text(),
            "scheme": _text(),
            "weights": _text("synthetic"),
            "process": _count(0),
            "what": _text("pass", "draft", "verify"),
            "behind": _count(0),
            "idle_ms": pa.Column(float, pa.Check.ge(0), coerce=True),
            "position": _count(0),
            "time_ms": _positive(),
            "clock_mhz": _positive(required=False),
            "power_w": _positive(required=False),
        }
    ),
)

_PLAN = {"method": _text(), "draft_size": _count(0), "iterations": _count(0), "min_draft_length": _count(0)}
_HEAD = {"head_scheme": _text(), "head_vocabulary": _count(0)}
_SPREAD = {"time_ms": _positive(), "p10_ms": _positive(), "p90_ms": _positive(), "repeats": _count()}

REPLAYED = Table(
    "replayed",
    unit=("model", "scheme", "weights", *_HEAD, "intermediate", "intermediate_scheme", "chances", "process"),
    row=(*_PLAN, "head_chance", "agreement"),
    schema=pa.DataFrameSchema(
        {
            "model": _text(),
            "scheme": _text(),
            "weights": _text("synthetic"),
            **_HEAD,
            "intermediate": _text(),
            "intermediate_scheme": _text(),
            "chances": _text("fitted", "swept"),
            "process": _count(0),
            **_PLAN,
            "head_chance": _share(),
            "agreement": _share(),
            "acceptance": _text("replayed"),
            "context_length": _count(),
            "new_tokens": _count(),
            "steps": _count(),
            "mean_draft_size": _positive(),
            "accepted_length": _positive(),
            "inner_rounds": _not_negative(),
            "inner_accepted_length": _positive(required=False),
            "prefill_ms": _positive(),
            "draft_ms": _not_negative(),
            "verify_ms": _positive(),
            "other_ms": _not_negative(),
            "decode_ms": _positive(),
            "tokens_per_s": _positive(),
            "whole_drafts": _share(),
        }
    ),
)

DRAFTING = Table(
    "drafting",
    unit=("model", "weights", "context_length", "process"),
    row=(*_HEAD, "draft_size", "iterations", "block"),
    schema=pa.DataFrameSchema(
        {
            "model": _text(),
            "weights": _text("synthetic"),
            "context_length": _count(),
            "process": _count(0),
            **_HEAD,
            "draft_size": _count(),
            "iterations": _count(),
            "confirmed_rows": _count(),
            "block": _count(0),
            "place": _count(0),
            **_SPREAD,
            "clock_mhz": _positive(required=False),
            "power_w": _positive(required=False),
            "bytes": _positive(),
            "floor_ms": _positive(required=False),
        }
    ),
)

ROUNDS = Table(
    "rounds",
    unit=("model", "scheme", "weights", "context_length", "process"),
    row=(*_HEAD,),
    schema=pa.DataFrameSchema(
        {
            "model": _text(),
            "scheme": _text(),
            "weights": _text("synthetic"),
            "context_length": _count(),
            "process": _count(0),
            **_HEAD,
            "acceptance": _text("replayed"),
            "draft_size": _count(),
            "iterations": _count(),
            "accepted_length": _positive(),
            "draft_ms": _positive(),
            "verify_ms": _positive(),
            "other_ms": _not_negative(),
            **_SPREAD,
        }
    ),
)

TABLES = {table.name: table for table in (VERIFY_COST, SETTLING, REPLAYED, DRAFTING, ROUNDS)}


def medians(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """`Table.one_row_each` of the table of this name, where its rows are of processes; others as they are."""
    return TABLES[name].one_row_each(rows) if name in TABLES and "process" in rows else rows
