"""A table that is written in parts: each unit of work is one file, written whole, and all are joined to the CSV.

So a unit is either wholly in the table or not at all, two commands that write one table never lose each other's rows,
and a unit that is measured twice counts once. What is missing is what a later command measures.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from specquant.errors import SpecquantError
from specquant.files import write_file
from specquant.tables.provenance import provenance, without_local_paths
from specquant.tables.results import read_provenance, read_results
from specquant.tables.table import Table

Unit = Mapping[str, Any]


class Parts:
    """The parts of one table.

    table: what kind of table. path: of its CSV; the parts are in the folder NAME.parts beside it. same: parameters that
    all of its rows share; unnamed: what they were in tables that do not name them. Raises SpecquantError where rows are
    there that were measured with others.
    """

    def __init__(self, table: Table, path: Path, same: Mapping[str, Any], unnamed: Mapping[str, Any] | None = None):
        self.table, self.path, self.folder = table, path, path.with_suffix(".parts")
        self.same = json.loads(json.dumps(without_local_paths(dict(same)), default=str))
        self.unnamed = dict(unnamed or {})
        self._checked: dict[Path, tuple[int, dict[str, Any]]] = {}  # parts, and when they were written
        if path.is_file():
            self._require_same(read_provenance(path), path)

    def missing(self, units: Iterable[Unit]) -> list[Unit]:
        """Those of `units` that the table does not hold yet."""
        held = set(self._rows()[list(self.table.unit)].itertuples(index=False, name=None))
        return [unit for unit in units if self._name(unit) not in held]

    def add(self, unit: Unit, rows: pd.DataFrame, **how: Any) -> None:
        """Write the rows of one unit; how: as for `provenance`. Raises SpecquantError as `Table.check`."""
        names = self._name(unit)
        path = self.folder / f"{_slug(names)}.json"
        rows = self.table.check(rows.assign(**dict(zip(self.table.unit, names, strict=True))), path)
        rows = rows.reindex(columns=[name for name in self.table.schema.columns if name in rows])
        part = {"unit": dict(zip(self.table.unit, names, strict=True)), "provenance": provenance(self.same, **how)}
        exact = rows.astype(object).where(rows.notna(), None).to_dict("records")  # JSON has no NaN
        write_file(path, json.dumps(part | {"rows": exact}))

    def join(self) -> Path:
        """Write the CSV and its provenance from all that is there; returns the CSV's path.

        Raises SpecquantError where nothing was measured.
        """
        rows = self._rows()
        if rows.empty:
            raise SpecquantError(f"{self.path.name} would hold no row: nothing was measured")
        order = [*self.table.unit, *self.table.row]
        rows = self.table.check(rows.sort_values(order, kind="stable", ignore_index=True), self.path)
        records = [part["provenance"] for part in self._parts()]
        if self.path.is_file():
            records.append(read_provenance(self.path))
        write_file(self.path, rows.to_csv(index=False, lineterminator="\n"))
        write_file(self.path.with_suffix(".json"), json.dumps(_joined(records), indent=2) + "\n")
        return self.path

    def _rows(self) -> pd.DataFrame:
        """Those of the parts, and those of the CSV whose unit has no part."""
        parts = list(self._parts())
        names = list(self.table.unit)
        rows = pd.DataFrame([row for part in parts for row in part["rows"]])
        if self.path.is_file():
            recorded = read_results(self.path)
            in_parts = {self._name(part["unit"]) for part in parts}
            kept = [name not in in_parts for name in recorded[names].itertuples(index=False, name=None)]
            rows = pd.concat([recorded[kept], rows], ignore_index=True) if len(rows) else recorded
        return rows if len(rows) else pd.DataFrame(columns=names)

    def _parts(self) -> Iterable[dict[str, Any]]:
        for path in sorted(self.folder.glob("*.json")):
            try:
                written = path.stat().st_mtime_ns
                if self._checked.get(path, (0,))[0] != written:
                    self._checked[path] = written, self._read(path)
            except (OSError, ValueError, KeyError, TypeError):
                raise SpecquantError(f"{path} is no part of {self.path.name}: remove it") from None
            yield self._checked[path][1]

    def _read(self, path: Path) -> dict[str, Any]:
        """A part from its file, looked at once: with many parts this takes long."""
        part = json.loads(path.read_text(encoding="utf-8"))
        rows, theirs = part["rows"], part["provenance"]
        self.table.check(pd.DataFrame(rows), path)
        self._require_same(theirs, path)
        return part

    def _require_same(self, provenance: Mapping[str, Any], path: Path) -> None:
        theirs = {"device": provenance.get("device")} | self.unnamed | provenance["parameters"]
        for name, value in self.same.items():
            if theirs.get(name) != value:
                raise SpecquantError(
                    f"{path} holds rows measured with {name} {theirs.get(name)}, not {value}: choose another folder, "
                    "or remove it"
                )

    def _name(self, unit: Unit) -> tuple:
        return tuple(unit[name] for name in self.table.unit)


def _slug(names: Sequence[Any]) -> str:
    """A file name for a unit: readable, and short enough for every file system."""
    text = "_".join(quote(str(name), safe="") for name in names)
    return text if len(text) <= 120 else f"{text[:100]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _joined(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One provenance of several: what they agree on once; where they differ all values, sorted, of dates the ends."""
    joined: dict[str, Any] = {}
    for name in dict.fromkeys(name for record in records for name in record):
        values: list[Any] = []
        for record in records:
            value = record.get(name)
            values += [each for each in (value if isinstance(value, list) else [value]) if each not in values]
        if name == "date" and len(values) > 1:
            values = [min(values), max(values)]
        if name == "parameters":  # they agree wherever both name one (`Parts`)
            values = [{key: value for each in reversed(values) for key, value in each.items()}]
        joined[name] = values[0] if len(values) == 1 else values
    return joined
