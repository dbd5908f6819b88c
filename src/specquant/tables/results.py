"""Tables of results: one tidy CSV per experiment and, beside it, one JSON that says where it comes from."""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from specquant.errors import SpecquantError
from specquant.files import resolve, write_file
from specquant.tables.provenance import provenance
from specquant.tables.schemas import TABLES, medians
from specquant.tables.sources import FIELD, several
from specquant.tables.table import REMEDY, Table, require_columns

TEXTS = ("date", "commit", "clock", FIELD)  # of a table's JSON, where they are known


def write_results(
    frame: pd.DataFrame,
    path: str | os.PathLike,
    parameters: Mapping[str, Any],
    *,
    device: str = "cpu",
    repeats: int | None = None,
    clock: str | None = None,
    table: str | None = None,
) -> Path:
    """Write a table as CSV and its provenance as JSON of the same name beside it; returns the CSV's path.

    A relative path is below the project root. table: which of the tables above it is, if its file may have another
    name. Each row says what it rests on in `weights` ("trained" or "synthetic").
    Raises SpecquantError for a missing column, an empty table, or a folder that cannot be written.
    """
    path = resolve(path)
    kind = TABLES.get(table or path.stem)
    require_columns(frame, () if kind else ("weights",), path, "give each row one")
    if frame.empty:
        raise SpecquantError(f"{path.name} would hold no row: nothing was measured")
    if kind:
        kind.check(frame, path)
    record = provenance(parameters, device=device, repeats=repeats, clock=clock)
    # First what says how rows were measured: a table without it could not be gone on with.
    write_file(path.with_suffix(".json"), json.dumps(record, indent=2, default=str) + "\n", by_several=True)
    return write_file(path, frame.to_csv(index=False, lineterminator="\n"), by_several=True)


def read_results(path: str | os.PathLike, columns: Iterable[str] = (), table: str | None = None) -> pd.DataFrame:
    """Read a table back; a relative path is below the project root.

    table: which of the tables above it is, if its file may have another name. Raises SpecquantError that names the
    file, and the line or column, where the file is missing, is no table, holds no row or a torn one, lacks one of
    `columns` or a column that such a table has, leaves out a name or a number, or holds something else where numbers
    belong: text, an infinite or a negative number, 0 where something is divided by it, a fraction of a whole number;
    and where a row is there twice.
    """
    path = resolve(path)
    kind = TABLES.get(table or path.stem)
    remedy = kind.remedy if kind else REMEDY
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecquantError(f"there are no results at {path}: {_first(kind)}") from None
    except OSError as error:
        raise SpecquantError(f"cannot read {path} ({error.strerror}): name a table that can be read") from None
    except UnicodeDecodeError as error:
        raise SpecquantError(f"cannot read {path} as text ({error}): {remedy}") from None
    _require_whole_rows(text, path, kind)
    names = kind.schema.columns if kind else {}
    texts = {name: str for name, column in names.items() if not column.title}
    frame = pd.read_csv(io.StringIO(text), dtype=texts, keep_default_na=False, na_values=[""])  # "NA" may be a name
    require_columns(frame, columns, path, remedy)
    if frame.empty:
        raise SpecquantError(f"{path} holds column names and no row: {remedy}")
    if kind:
        return kind.check(frame, path)
    if (twice := frame.duplicated()).any():
        raise SpecquantError(f"{path}, line {int(np.argmax(twice)) + 2}: a second row like one above it: {remedy}")
    return frame


def _first(kind: Table | None) -> str:
    """What to do where a table is missing."""
    if kind and not kind.written_by:
        return "take them from the repository"
    by = f"{kind.written_by}, or a notebook of specquant study" if kind else "specquant study"
    return f"measure them first ({by}), or take them from the repository"


@contextmanager
def rows_there(*tables: str) -> Iterator[None]:
    """Raises SpecquantError as `lacking` where a row, or a column of its values, is looked up in vain."""
    try:
        yield
    except (KeyError, IndexError) as error:
        sought = error.args[0] if isinstance(error, KeyError) and error.args else ""
        raise lacking(tables, "" if isinstance(sought, bool) else sought) from None


def lacking(tables: Sequence[str], what: object = "") -> SpecquantError:
    """For rows that one of these tables lacks, by their paths. what: the rows are of, "" if that is not known; several
    words of one row may be a tuple."""
    words = ", ".join(map(str, what)) if isinstance(what, tuple) else str(what).removesuffix(" not in index")
    commands = dict.fromkeys(kind.written_by for table in tables if (kind := TABLES.get(Path(table).stem)))
    made = one_of([command for command in commands if command])
    do = f"measure them ({made}), or take" if made else "take"
    of = f" of {words}" if words else ""
    return SpecquantError(f"{one_of(tables)} lacks rows{of} that are needed: {do} the table from the repository")


def one_of(names: Sequence[str]) -> str:
    """As in a sentence: "a, b or c"."""
    *others, last = names or [""]
    return f"{', '.join(others)} or {last}" if others else last


def read_medians(path: str | os.PathLike) -> pd.DataFrame:
    """A table with one row for each quantity, the medians over processes. Raises SpecquantError as `read_results`."""
    return medians(read_results(path), resolve(path).stem)


def read_provenance(path: str | os.PathLike, remedy: str = "measure its table again") -> dict[str, Any]:
    """The JSON beside the table at `path`. Raises SpecquantError where it is missing, broken, names no device, or holds
    something else where text belongs."""
    path = resolve(path).with_suffix(".json")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecquantError(f"there is no provenance at {path}: {remedy}, for specquant wrote none") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SpecquantError(f"{path} is no JSON ({error}): {remedy}") from None
    if not isinstance(record, dict) or not isinstance(record.get("device"), str):
        raise SpecquantError(f"{path} names no device: {remedy}")
    if not isinstance(record.setdefault("parameters", {}), dict):
        raise SpecquantError(f"{path}: parameters is no JSON object: {remedy}")
    for name in TEXTS:
        if not all(isinstance(each, str | None) for each in several(record.get(name))):
            raise SpecquantError(f"{path}: {name} is no text: {remedy}")
    return record


def _require_whole_rows(text: str, path: Path, kind: Table | None) -> None:
    """pandas fills a row that breaks off with NaN; here it is an error. So is a file without a column of its table."""
    remedy = kind.remedy if kind else REMEDY
    reader = csv.reader(io.StringIO(text), strict=True)
    try:
        header = next(reader, None)
        if not header:
            raise SpecquantError(f"{path} is empty: {remedy}")
        if kind and not {*header} & {*kind.schema.columns}:
            do = f"name a table that {kind.written_by} wrote" if kind.written_by else remedy
            raise SpecquantError(f"{path} is no table of {kind.name}, for its first line has none of its columns: {do}")
        if twice := [name for name, count in Counter(header).items() if count > 1]:
            raise SpecquantError(f"{path} has the column {twice[0]} twice: {remedy}")
        if not text.endswith("\n"):
            raise SpecquantError(f"{path} breaks off in its last line: {remedy}")
        for row in reader:
            if len(row) != len(header):
                raise SpecquantError(
                    f"{path}, line {reader.line_num}: {len(row)} fields under {len(header)} column names: {remedy}"
                )
    except csv.Error as error:
        raise SpecquantError(f"{path}, line {reader.line_num}: {error}: {remedy}") from None
