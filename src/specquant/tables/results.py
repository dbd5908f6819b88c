"""Tables of results: one tidy CSV per experiment and, beside it, one JSON that says where it comes from."""

import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from specquant.errors import SpecquantError
from specquant.files import resolve, write_file
from specquant.tables.provenance import provenance
from specquant.tables.table import TABLES, medians

# The columns that others rely on, by table; a table may hold more. Units stand in the names; lengths are in tokens.
TEXT_COLUMNS = {
    "verify_cost": ("model", "scheme", "weights", "protocol"),
    "throughput": ("model", "scheme", "method", "task", "weights", "acceptance"),
    "losslessness": ("scheme", "method", "weights"),
    "quality": ("model", "scheme", "domain", "weights"),
    "kernels": ("implementation", "scheme", "layer", "weights"),
    "ceilings": ("what", "unit", "weights"),
    "pass_profiles": ("model", "scheme", "weights", "kernel"),
    "drafting": ("model", "head_scheme", "weights"),
    "rounds": ("model", "scheme", "head_scheme", "weights", "acceptance"),
    "replayed": ("model", "scheme", "method", "head_scheme", "intermediate", "intermediate_scheme", "weights"),
    "trees": ("model", "scheme", "weights", "parents"),
    "plans": ("scheme", "task", "method", "weights", "acceptance"),
    "calibration": ("model", "scheme", "head_scheme", "method", "level", "weights"),
    "speedups": ("source", "where", "model", "gpu", "scheme", "method"),
    "specmquant_verify_cost": ("gpu", "model", "scheme", "weights"),
    "specmquant_steps": ("gpu", "model", "scheme", "method", "what", "weights"),
    "assumptions": ("name", "source"),
}
# Numbers, none of them below 0. Those that the tables below name are more than that.
NUMBER_COLUMNS = {
    "verify_cost": ("process", "block", "draft_size", "context_length", "time_ms", "p10_ms", "p90_ms", "repeats"),
    "throughput": ("accepted_length", "draft_ms", "verify_ms", "other_ms", "tokens_per_s"),
    "losslessness": ("prompts", "new_tokens", "differing_prompts"),
    "quality": ("perplexity",),
    "kernels": ("in_features", "out_features", "draft_size", "time_us"),
    "ceilings": ("value",),
    "pass_profiles": ("draft_size", "context_length", "launches", "time_us", "alone_us", "span_us"),
    "drafting": ("head_vocabulary", "draft_size", "iterations", "context_length", "time_ms", "p10_ms", "p90_ms"),
    "rounds": ("head_vocabulary", "accepted_length", "draft_ms", "verify_ms", "other_ms", "time_ms"),
    "replayed": (
        *("draft_size", "iterations", "min_draft_length", "head_vocabulary", "head_chance", "agreement"),
        *("mean_draft_size", "accepted_length", "draft_ms", "verify_ms", "other_ms", "tokens_per_s"),
    ),
    "trees": ("draft_size", "iterations", "accepted_length"),
    "plans": ("draft_size", "iterations", "min_draft_length", "accepted_length", "tokens_per_s"),
    "calibration": (
        *("draft_size", "iterations", "min_draft_length", "head_vocabulary", "drafts", "accepted", "rows"),
        *("draft_ms", "verify_ms", "other_ms"),
    ),
    "speedups": ("value",),
    "specmquant_verify_cost": ("draft_size", "context_length", "time_ms"),
    "specmquant_steps": ("draft_size", "iterations", "time_ms"),
    "assumptions": ("value", "low", "high"),
}
# What is divided by, or cannot be nothing.
POSITIVE_COLUMNS = {
    "verify_cost": ("draft_size", "context_length", "time_ms", "repeats"),
    "throughput": ("accepted_length", "verify_ms", "tokens_per_s"),
    "losslessness": ("prompts",),
    "quality": ("perplexity",),
    "kernels": ("in_features", "out_features", "draft_size", "time_us"),
    "ceilings": ("value",),
    "pass_profiles": ("draft_size", "context_length", "span_us"),
    "drafting": ("head_vocabulary", "draft_size", "iterations", "context_length", "time_ms"),
    "rounds": ("head_vocabulary", "accepted_length", "draft_ms", "verify_ms", "time_ms"),
    "replayed": ("mean_draft_size", "accepted_length", "verify_ms", "tokens_per_s"),
    "trees": ("draft_size", "iterations", "accepted_length"),
    "plans": ("accepted_length", "tokens_per_s"),
    "calibration": ("rows", "verify_ms"),
    "speedups": ("value",),
    "specmquant_verify_cost": ("draft_size", "context_length", "time_ms"),
    "specmquant_steps": ("draft_size", "time_ms"),
    "assumptions": ("value", "low", "high"),
}
WHOLE_COLUMNS = {
    "verify_cost": ("draft_size", "context_length", "repeats"),
    "losslessness": ("prompts", "new_tokens", "differing_prompts"),
    "kernels": ("in_features", "out_features", "draft_size"),
    "pass_profiles": ("draft_size", "context_length", "launches"),
    "drafting": ("head_vocabulary", "draft_size", "iterations", "context_length"),
    "rounds": ("head_vocabulary",),
    "replayed": ("draft_size", "iterations", "min_draft_length", "head_vocabulary"),
    "trees": ("draft_size", "iterations"),
    "plans": ("draft_size", "iterations", "min_draft_length"),
    "calibration": (
        *("draft_size", "iterations", "min_draft_length", "head_vocabulary", "drafts", "accepted", "rows"),
    ),
    "specmquant_verify_cost": ("draft_size", "context_length"),
    "specmquant_steps": ("draft_size", "iterations"),
}
PROBABILITY_COLUMNS = {"replayed": ("head_chance", "agreement")}
# Numbers above 0 that a table may do without, or leave out of a row.
OPTIONAL_COLUMNS = {
    "verify_cost": ("bytes", "floor_ms"),
    "kernels": ("bytes", "operations"),
    "drafting": ("bytes", "floor_ms"),
    "plans": ("predicted_tokens_per_s",),
}
# Rows that a table must have, by the column that names them.
ROWS = {
    "ceilings": ("what", ("read-only stream", "fp16 product (cuBLAS)", "int8 product (cuBLASLt)")),
    "assumptions": ("name", ("eagle2_length_70b", "eagle2_length_8b", "hierarchical_length")),
}
# What names a row, which then is there once. Of what `TABLES` describes, this stands there.
UNIQUE = {
    "assumptions": ("name",),
    "specmquant_verify_cost": ("gpu", "model", "scheme", "weights", "draft_size", "context_length"),
    "specmquant_steps": ("gpu", "model", "scheme", "method", "what", "draft_size", "iterations"),
}
REMEDY = "measure it again, or take it from the repository"


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
    required = (*TEXT_COLUMNS.get(path.stem, ()), *NUMBER_COLUMNS.get(path.stem, ())) or ("weights",)
    _require_columns(frame, required, path)
    if frame.empty:
        raise SpecquantError(f"{path.name} would hold no row: nothing was measured")
    record = provenance(parameters, device=device, repeats=repeats, clock=clock)
    # First what says how rows were measured: a table without it could not be gone on with.
    write_file(path.with_suffix(".json"), json.dumps(record, indent=2, default=str) + "\n")
    return write_file(path, frame.to_csv(index=False, lineterminator="\n"))


def read_results(path: str | os.PathLike, columns: Iterable[str] = (), table: str | None = None) -> pd.DataFrame:
    """Read a table back; a relative path is below the project root.

    table: which of the tables above it is, if its file may have another name. Raises SpecquantError that names the
    file, and the line or column, where the file is missing, is no table, holds no row or a torn one, lacks one of
    `columns` or a column that such a table has, leaves out a name or a number, or holds something else where numbers
    belong: text, an infinite or a negative number, 0 where something is divided by it, a fraction of a whole number.
    """
    path = resolve(path)
    table = table or path.stem
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecquantError(f"there are no results at {path}: measure them first, with specquant study") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecquantError(f"cannot read {path} as text ({error}): {REMEDY}") from None
    _require_whole_rows(text, path)
    names, numbers = TEXT_COLUMNS.get(table, ()), NUMBER_COLUMNS.get(table, ())
    frame = pd.read_csv(io.StringIO(text), dtype=dict.fromkeys(names, str))
    _require_columns(frame, (*names, *numbers, *columns), path)
    if frame.empty:
        raise SpecquantError(f"{path} holds column names and no row: {REMEDY}")
    for column in names:
        if frame[column].isna().any():
            line = int(frame[column].isna().idxmax()) + 2
            raise SpecquantError(f"{path}, line {line}: column {column} is empty: {REMEDY}")
    for column in numbers:
        _require_numbers(frame[column], table, path)
    for column in OPTIONAL_COLUMNS.get(table, ()):
        if column in frame:
            _require_numbers(frame[column].dropna(), table, path)
    of, rows = ROWS.get(table, ("", ()))
    for row in rows:
        if not (frame[of] == row).any():
            raise SpecquantError(f"{path} has no row whose {of} is {row}: {REMEDY}")
    _require_no_row_twice(frame, UNIQUE.get(table, ()), path)
    return TABLES[table].check(frame, path) if table in TABLES and "process" in frame else frame


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
    except (OSError, ValueError, RecursionError) as error:
        raise SpecquantError(f"{path} is no JSON ({error}): measure its table again") from None
    if not isinstance(record, dict) or not isinstance(record.get("device"), str):
        raise SpecquantError(f"{path} names no device: measure its table again")
    if not isinstance(record.setdefault("parameters", {}), dict):
        raise SpecquantError(f"{path}: parameters is no JSON object: measure its table again")
    return record


def _require_columns(frame: pd.DataFrame, required: Iterable[str], path: Path) -> None:
    missing = [column for column in required if column not in frame.columns]
    if missing:
        raise SpecquantError(f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}")


def _require_numbers(found: pd.Series, table: str, path: Path) -> None:
    """Raises SpecquantError where a column has something else than such numbers as its table has there."""
    column = found.name
    positive = column in (*POSITIVE_COLUMNS.get(table, ()), *OPTIONAL_COLUMNS.get(table, ()))
    whole = column in WHOLE_COLUMNS.get(table, ())
    most = 1.0 if column in PROBABILITY_COLUMNS.get(table, ()) else sys.float_info.max
    values = pd.to_numeric(found.astype(str), errors="coerce").astype(float)  # as text, True is no number
    right = values.between(0, most, inclusive="right" if positive else "both")
    if whole:
        right &= values.mod(1) == 0
    wrong = found[~right]
    if not wrong.empty:
        line, value = int(wrong.index[0]) + 2, "nothing" if pd.isna(wrong.iloc[0]) else f'"{wrong.iloc[0]}"'
        kind = "a whole number" if whole else "a probability" if most == 1 else "a number"
        kind += " above 0" if positive and pd.notna(values.loc[wrong.index[0]]) else ""
        raise SpecquantError(f"{path}, line {line}: {value} in column {column} where {kind} belongs: {REMEDY}")


def _require_no_row_twice(frame: pd.DataFrame, names: tuple[str, ...], path: Path) -> None:
    if names and (twice := frame.duplicated(list(names))).any():
        row = ", ".join(f"{name} {frame.loc[twice.idxmax(), name]}" for name in names)
        raise SpecquantError(f"{path}, line {int(twice.idxmax()) + 2}: a second row of {row}: {REMEDY}")


def _require_whole_rows(text: str, path: Path) -> None:
    """pandas fills a row that breaks off with NaN; here it is an error."""
    reader = csv.reader(io.StringIO(text), strict=True)
    try:
        header = next(reader, None)
        if not header:
            raise SpecquantError(f"{path} is empty: {REMEDY}")
        if twice := [name for name, count in Counter(header).items() if count > 1]:
            raise SpecquantError(f"{path} has the column {twice[0]} twice: {REMEDY}")
        if not text.endswith("\n"):
            raise SpecquantError(f"{path} breaks off in its last line: {REMEDY}")
        for row in reader:
            if len(row) != len(header):
                raise SpecquantError(
                    f"{path}, line {reader.line_num}: {len(row)} fields under {len(header)} column names: {REMEDY}"
                )
    except csv.Error as error:
        raise SpecquantError(f"{path}, line {reader.line_num}: {error}: {REMEDY}") from None
