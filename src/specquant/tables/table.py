"""What a table's columns are: checked when it is written and when it is read, by pandera."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa

from specquant.errors import SpecquantError

REMEDY = "measure it again, or take it from the repository"


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


def _text(*choices: str) -> pa.Column:
    return pa.Column(str, pa.Check.isin(choices) if choices else None)


def _count(lowest: int = 1) -> pa.Column:
    return pa.Column(int, pa.Check.ge(lowest), coerce=True)


def _positive(required: bool = True) -> pa.Column:
    """A finite number above 0; where it is not required, the column may be missing or empty."""
    finite = pa.Check(np.isfinite, name="a finite number", error="a finite number")
    return pa.Column(float, [pa.Check.gt(0), finite], coerce=True, required=required, nullable=not required)


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

TABLES = {table.name: table for table in (VERIFY_COST, SETTLING)}
