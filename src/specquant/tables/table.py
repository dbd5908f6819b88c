"""What a kind of table is: what names its rows, and its columns, which pandera checks when it is written and read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pandera.pandas as pa

from specquant.errors import SpecquantError

REMEDY = "measure it again, or take it from the repository"
REPEATS = ("process", "protocol", "block", "place")  # columns that say which measurement of a quantity a row is
ABOVE_0 = " above 0"


@dataclass(frozen=True)
class Table:
    """A kind of table.

    name: of its file, without .csv. schema: the columns that others rely on; a table may hold more. unit: the columns
    that name a unit of work, whose rows are written together. row: the columns that name a row among those of its unit.
    needs: a column, and values that must be there in it. renamed: what columns are called now, by what older tables
    call them. command: writes the table; by default `specquant bench` with the table's name, "" where none does.
    remedy: for a damaged one.
    """

    name: str
    schema: pa.DataFrameSchema
    unit: tuple[str, ...] = ()
    row: tuple[str, ...] = ()
    needs: tuple[str, tuple[str, ...]] = ("", ())
    renamed: Mapping[str, str] = field(default_factory=dict)
    command: str | None = None
    remedy: str = REMEDY

    @property
    def written_by(self) -> str:
        """The command that writes such a table, "" where none does."""
        return f"specquant bench {self.name.replace('_', '-')}" if self.command is None else self.command

    def check(self, frame: pd.DataFrame, where: Path) -> pd.DataFrame:
        """The frame with its numbers as numbers, and its columns as they are called now.

        Raises SpecquantError that names `where`, and the line and column, for a column that is missing, a value of a
        wrong kind or out of its range, a row that is there twice, and one that is missing.
        """
        older = {old: new for old, new in self.renamed.items() if new not in frame}
        frame = frame.rename(columns=older) if older else frame
        required = (name for name, column in self.schema.columns.items() if column.required)
        require_columns(frame, required, where, self.remedy)
        try:
            checked = self.schema.validate(self._with_numbers(frame), lazy=True)
        except pa.errors.SchemaErrors as error:
            raise SpecquantError(self._first_failure(error.failure_cases, frame, where)) from None
        whole = [name for name in self._numbers(checked) if is_whole(self.schema.columns[name])]
        whole = [name for name in whole if checked[name].notna().all()]
        checked = checked.astype(dict.fromkeys(whole, "int64"))
        names = [name for name in (*self.unit, *self.row) if name in checked]
        twice = checked.duplicated(names) if self.row else pd.Series(False, checked.index)
        if twice.any():
            line = int(np.argmax(twice))
            told = ", ".join(f"{name} {checked[name].iloc[line]}" for name in names)
            raise SpecquantError(f"{where}, line {line + 2}: a second row of {told}: {self.remedy}")
        of, values = self.needs
        for value in values:
            if not (checked[of] == value).any():
                raise SpecquantError(f"{where} has no row whose {of} is {value}: {self.remedy}")
        return checked

    @property
    def quantity(self) -> list[str]:
        """The columns that name what was measured, whichever process and block measured it."""
        return [name for name in (*self.unit, *self.row) if name not in REPEATS]

    def one_row_each(self, rows: pd.DataFrame) -> pd.DataFrame:
        """A row for each quantity; of every number the median over processes of the medians over each one's blocks.

        `processes` says how many there were. What was timed in turns does not count.
        """
        if "protocol" in rows:
            rows = rows[rows.protocol == "blocks"]
        numbers = [name for name in rows.select_dtypes("number") if name not in (*self.quantity, *REPEATS)]
        in_each = rows.groupby([*self.quantity, "process"], sort=False, dropna=False)[numbers].median()
        over_processes = in_each.groupby(level=self.quantity, sort=False, dropna=False)
        told = over_processes.median().assign(processes=over_processes.size()).reset_index()
        others = [name for name in rows.columns if name not in (*told.columns, *REPEATS)]
        if others:
            told = told.merge(rows.drop_duplicates(self.quantity)[[*self.quantity, *others]], on=self.quantity)
        told.attrs = rows.attrs
        return told

    def _numbers(self, frame: pd.DataFrame) -> list[str]:
        return [name for name, column in self.schema.columns.items() if column.title and name in frame]

    def _with_numbers(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame with its numbers as floats; text where numbers belong becomes one that no column may hold."""
        converted = frame.copy()
        for name in self._numbers(frame):
            values = pd.to_numeric(frame[name].astype(str), errors="coerce").astype(float)  # as text, True is no number
            converted[name] = values.mask(values.isna() & frame[name].notna(), -np.inf)
        return converted

    def _first_failure(self, cases: pd.DataFrame, frame: pd.DataFrame, where: Path) -> str:
        """What pandera found first, in the order of the columns and lines."""
        order = list(self.schema.columns)
        cases = cases.assign(place=cases.column.map(order.index)).sort_values(["place", "index"], kind="stable")
        name, index = cases.column.iloc[0], cases["index"].iloc[0]
        line, value = int(frame.index.get_loc(index)) + 2, frame.loc[index, name]
        if not (kind := self.schema.columns[name].title):
            if pd.isna(value):
                return f"{where}, line {line}: column {name} is empty: {self.remedy}"
            return f'{where}, line {line}: "{value}" in column {name} ({cases.check.iloc[0]}): {self.remedy}'
        if pd.isna(pd.to_numeric(str(value), errors="coerce")):
            kind = kind.removesuffix(ABOVE_0)
        told = "nothing" if pd.isna(value) else f'"{value}"'
        return f"{where}, line {line}: {told} in column {name} where {kind} belongs: {self.remedy}"


def require_columns(frame: pd.DataFrame, names: Iterable[str], where: Path, remedy: str) -> None:
    """Raises SpecquantError that names `where`, and the columns that are missing in it."""
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise SpecquantError(f"{where} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}: {remedy}")


def text(*choices: str, required: bool = True) -> pa.Column:
    """A column of names, of which none is empty; choices: the only ones."""
    return pa.Column(None, pa.Check.isin(choices) if choices else None, nullable=False, required=required)


def anything() -> pa.Column:
    """A column of finite numbers, which may be missing, or empty in a row."""
    return _number("a number", required=False)


def number(required: bool = True) -> pa.Column:
    """A column of finite numbers of at least 0; where it is not required, it may be missing, or empty in a row."""
    return _number("a number", pa.Check.ge(0), required=required)


def positive(required: bool = True) -> pa.Column:
    """A column of finite numbers above 0; where it is not required, it may be missing, or empty in a row."""
    return _number(f"a number{ABOVE_0}", pa.Check.gt(0), required=required)


def count(lowest: int = 1, required: bool = True) -> pa.Column:
    """A column of whole numbers of at least `lowest`, which is 0 or 1; where it is not required, it may be missing."""
    whole = pa.Check(lambda values: values % 1 == 0)
    return _number(f"a whole number{ABOVE_0 if lowest else ''}", pa.Check.ge(lowest), whole, required=required)


def share(required: bool = True) -> pa.Column:
    """A column of probabilities; where it is not required, it may be missing, or empty in a row."""
    return _number("a probability", pa.Check.in_range(0, 1), required=required)


def is_whole(column: pa.Column) -> bool:
    return bool(column.title) and column.title.startswith("a whole number")


def _number(kind: str, *checks: pa.Check, required: bool = True) -> pa.Column:
    finite = pa.Check(np.isfinite)
    return pa.Column(float, [*checks, finite], required=required, nullable=not required, title=kind)
