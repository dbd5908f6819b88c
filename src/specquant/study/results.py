"""Tables of results: one tidy CSV per experiment and, beside it, one JSON that says where it comes from."""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from specquant.errors import SpecquantError
from specquant.paths import resolve, write_file
from specquant.study.provenance import provenance
from specquant.tables.table import TABLES, medians

# The columns that others rely on, by table; a table may hold more. Units stand in the names; lengths are in tokens.
TEXT_COLUMNS = {
    "verify_cost": ("model", "scheme", "weights", "protocol"),
    "throughput": ("model", "scheme", "method", "task", "weights", "acceptance"),
    "losslessness": ("scheme", "method", "weights"),
    "quality": ("model", "scheme", "domain", "weights"),
    "kernels": ("implementation", "scheme", "layer", "weights"),
    "speedups": ("source", "where", "model", "gpu", "scheme", "method"),
}
NUMBER_COLUMNS = {
    "verify_cost": ("process", "block", "draft_size", "context_length", "time_ms", "p10_ms", "p90_ms", "repeats"),
    "throughput": ("accepted_length", "draft_ms", "verify_ms", "other_ms", "tokens_per_s"),
    "losslessness": ("prompts", "new_tokens", "differing_prompts"),
    "quality": ("perplexity",),
    "kernels": ("in_features", "out_features", "draft_size", "time_us"),
    "speedups": ("value",),
}


def write_results(
    frame: pd.DataFrame,
    path: str | os.PathLike,
    parameters: Mapping[str, Any],
    *,
    device: str = "cpu",
    repeats: int | None = None,
    clock: str | None = None,
) -> Path:
    """Write a table as CSV and its provenance as JSON of the same name beside it; returns the CSV's path.

    A relative path is below the project root. Each row says what it rests on in `weights` ("trained" or "synthetic").
    Raises SpecquantError for a missing column, an empty table, or a folder that cannot be written.
    """
    path = resolve(path)
    required = _columns(path, TEXT_COLUMNS) + _columns(path, NUMBER_COLUMNS) or ("weights",)
    _require_columns(frame, required, path)
    if frame.empty:
        raise SpecquantError(f"{path.name} would hold no row: nothing was measured")
    record = provenance(parameters, device=device, repeats=repeats, clock=clock)
    write_file(path, frame.to_csv(index=False, lineterminator="\n"))
    write_file(path.with_suffix(".json"), json.dumps(record, indent=2, default=str) + "\n")
    return path


def read_results(path: str | os.PathLike, columns: Iterable[str] = ()) -> pd.DataFrame:
    """Read a table back; a relative path is below the project root.

    Raises SpecquantError that names the file, and the line or column, where the file is missing, is no table, holds no
    row or a torn one, lacks one of `columns` or a column that a table of its name has, leaves out a name or a number,
    or has text, an infinite or a negative number where numbers belong.
    """
    path = resolve(path)
    remedy = "measure it again, or take it from the repository"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecquantError(f"there are no results at {path}: measure them first, with specquant study") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecquantError(f"cannot read {path} as text ({error}): {remedy}") from None
    _require_whole_rows(text, path, remedy)
    names, numbers = _columns(path, TEXT_COLUMNS), _columns(path, NUMBER_COLUMNS)
    frame = pd.read_csv(io.StringIO(text), dtype=dict.fromkeys(names, str))
    _require_columns(frame, (*names, *numbers, *columns), path)
    if frame.empty:
        raise SpecquantError(f"{path} holds column names and no row: {remedy}")
    for column in names:
        if frame[column].isna().any():
            line = int(frame[column].isna().idxmax()) + 2
            raise SpecquantError(f"{path}, line {line}: column {column} is empty: {remedy}")
    for column in numbers:
        values = pd.to_numeric(frame[column], errors="coerce")
        wrong = frame[column][~values.between(0, math.inf, inclusive="left")]
        if not wrong.empty:
            line, value = int(wrong.index[0]) + 2, "nothing" if pd.isna(wrong.iloc[0]) else f'"{wrong.iloc[0]}"'
            raise SpecquantError(f"{path}, line {line}: {value} in column {column} where a number belongs: {remedy}")
    return TABLES[path.stem].check(frame, path) if path.stem in TABLES and "process" in frame else frame


def read_medians(path: str | os.PathLike) -> pd.DataFrame:
    """A table with one row for each quantity, the medians over processes. Raises SpecquantError as `read_results`."""
    return medians(read_results(path), resolve(path).stem)


def read_provenance(path: str | os.PathLike) -> dict[str, Any]:
    """The JSON beside the table at `path`. Raises SpecquantError where it is missing, broken or names no device."""
    path = resolve(path).with_suffix(".json")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecquantError(f"there is no provenance at {path}: specquant did not write its table") from None
    except (OSError, ValueError) as error:
        raise SpecquantError(f"{path} is no JSON ({error}): measure its table again") from None
    if not isinstance(record, dict) or not isinstance(record.get("device"), str):
        raise SpecquantError(f"{path} names no device: measure its table again")
    return record


def _columns(path: Path, columns: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    return columns.get(path.stem, ())


def _require_columns(frame: pd.DataFrame, required: Iterable[str], path: Path) -> None:
    missing = [column for column in required if column not in frame.columns]
    if missing:
        raise SpecquantError(f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}")


def _require_whole_rows(text: str, path: Path, remedy: str) -> None:
    """pandas fills a row that breaks off with NaN; here it is an error."""
    reader = csv.reader(io.StringIO(text), strict=True)
    try:
        header = next(reader, None)
        if not header:
            raise SpecquantError(f"{path} is empty: {remedy}")
        if not text.endswith("\n"):
            raise SpecquantError(f"{path} breaks off in its last line: {remedy}")
        for row in reader:
            if len(row) != len(header):
                raise SpecquantError(
                    f"{path}, line {reader.line_num}: {len(row)} fields under {len(header)} column names: {remedy}"
                )
    except csv.Error as error:
        raise SpecquantError(f"{path}, line {reader.line_num}: {error}: {remedy}") from None
