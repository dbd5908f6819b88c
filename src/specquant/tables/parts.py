"""A table that is written in parts: each unit of work is one file, written whole, and all are joined to the CSV.

So a unit is either wholly in the table or not at all, two commands that write one table never lose each other's rows,
and a unit that is measured twice counts once. What is missing is what a later command measures. Nothing is locked:
files appear whole under their names, on a file system that several machines share as on any other.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pandas as pd

from specquant.errors import SpecquantError
from specquant.files import wait_until_seen, write_file
from specquant.tables.provenance import node_of_job, provenance, without_local_paths
from specquant.tables.results import read_provenance, read_results
from specquant.tables.sources import measured_with_others, several
from specquant.tables.table import Table

Unit = Mapping[str, Any]
BY_NAME = "by_name_alone"  # in a table's JSON: models and files that some of its rows are perhaps not of
DEVICE = ".device"  # the file that says of which one a table is, once the first job has begun


class Parts:
    """The parts of one table.

    table: what kind of table. path: of its CSV; the parts are in the folder NAME.parts beside it. same: parameters that
    all of its rows share; unnamed: what they were in tables that do not name them. Where `same` names no device, since
    jobs have it, it is that of the first rows that are seen. kernels: the digest of those that all rows are
    measured with; None where they need none. Raises SpecquantError where rows are there that were measured with others.
    """

    def __init__(
        self,
        table: Table,
        path: Path,
        same: Mapping[str, Any],
        unnamed: Mapping[str, Any] | None = None,
        kernels: str | None = None,
    ):
        self.kernels = kernels
        self.table, self.path, self.folder = table, path, path.with_suffix(".parts")
        self.same = json.loads(json.dumps(without_local_paths(dict(same)), default=str))
        self.unnamed = dict(unnamed or {})
        self.by_name_alone: list[str] = []  # what rows are perhaps not of, for their records name none
        self._seen: dict[Path, tuple[Any, dict[str, Any]]] = {}  # parts that were read, as of when
        if path.is_file():
            self._require_same(read_provenance(path), path)

    def missing(self, units: Iterable[Unit]) -> list[Unit]:
        """Those of `units` that the table does not hold yet."""
        held = self._held()
        return [unit for unit in units if self._name(unit) not in held]

    def _held(self) -> set[tuple]:
        """The names of the units that the table holds."""
        return set(self._rows(self._parts())[list(self.table.unit)].itertuples(index=False, name=None))

    def told(self) -> tuple[dict[str, Any], set[str]] | None:
        """The parameters that the records of all rows name, and the models that rows are of; None without rows."""
        parts = self._parts()
        rows, records = self._rows(parts), [part["provenance"] for part in parts]
        if rows.empty:
            return None
        if self.path.is_file():
            records.append(read_provenance(self.path))
        models = {str(each) for name in ("model", "intermediate") if name in rows for each in rows[name].unique()}
        return {name: value for record in records for name, value in record["parameters"].items()}, models

    def holds(self, unit: Unit) -> bool:
        """Whether a part of this unit is there, by its name alone: jobs do not read each other's parts."""
        return self._part(unit).is_file()

    def claim_device(self) -> None:
        """Have this table be of the device that `same` names; raises SpecquantError as `claim_device`."""
        claim_device(self.folder, str(self.same["device"]), self.path.name)

    def forget_device(self) -> None:
        """Forget a claim behind which no row came, as of a job that failed."""
        if not self.path.is_file() and not self._names_of_parts():
            forget_device(self.folder)

    def add(self, unit: Unit, rows: pd.DataFrame, **how: Any) -> None:
        """Write the rows of one unit; how: as for `provenance`. Raises SpecquantError as `Table.check`.

        Rows that a job of Slurm measured say on which node, in a column `node`.
        """
        names = self._name(unit)
        path = self._part(unit)
        rows = self.table.check(rows.assign(**dict(zip(self.table.unit, names, strict=True))), path)
        columns = [name for name in self.table.schema.columns if name in rows]
        rows = rows.reindex(columns=columns).assign(**node_of_job())
        part = {"unit": dict(zip(self.table.unit, names, strict=True)), "provenance": provenance(self.same, **how)}
        exact = rows.astype(object).where(rows.notna(), None).to_dict("records")  # JSON has no NaN
        write_file(path, json.dumps(part | {"rows": exact}), by_several=True)

    def wait_for(self, units: Sequence[Unit]) -> None:
        """Wait until units are seen here that jobs have written; raises SpecquantError as `wait_until_seen`."""
        names = {self._name(unit) for unit in units}
        wait_until_seen(lambda: len(names - self._held()), self.folder)

    def join(self) -> Path:
        """Write the CSV and its provenance from all that is there; returns the CSV's path.

        Parts that come while it writes are joined, too: the last of several commands to join leaves them all. Raises
        SpecquantError where nothing was measured.
        """
        joined = None
        while (there := self._names_of_parts()) != joined:
            self._join_once()
            joined = there
        return self.path

    def _join_once(self) -> None:
        parts = self._parts()
        rows = self._rows(parts)
        if rows.empty:
            raise SpecquantError(f"{self.path.name} would hold no row: nothing was measured")
        order = [*self.table.unit, *self.table.row]
        rows = self.table.check(rows.sort_values(order, kind="stable", ignore_index=True), self.path)
        records = [part["provenance"] for part in parts]
        if self.path.is_file():
            records.append(read_provenance(self.path))
        write_file(self.path, rows.to_csv(index=False, lineterminator="\n"), by_several=True)
        told = joined_provenance(records)
        before = [name for name in several(told.pop(BY_NAME, None)) if name]
        if before or self.by_name_alone:
            told[BY_NAME] = sorted({*before, *self.by_name_alone})
        write_file(self.path.with_suffix(".json"), json.dumps(told, indent=2) + "\n", by_several=True)

    def _rows(self, parts: Sequence[dict[str, Any]]) -> pd.DataFrame:
        """Those of the parts, and those of the CSV whose unit has no part."""
        names = list(self.table.unit)
        rows = pd.DataFrame([row for part in parts for row in part["rows"]])
        if self.path.is_file():
            recorded = read_results(self.path)
            in_parts = {self._name(part["unit"]) for part in parts}
            kept = [name not in in_parts for name in recorded[names].itertuples(index=False, name=None)]
            rows = pd.concat([recorded[kept], rows], ignore_index=True) if len(rows) else recorded
        return rows if len(rows) else pd.DataFrame(columns=names)

    def _parts(self) -> list[dict[str, Any]]:
        """All that are there. Those that are as they were when they were last read are not read again."""
        found, new = [], {}
        for path in (self.folder / name for name in sorted(self._names_of_parts())):
            try:
                try:
                    status = path.stat()
                except FileNotFoundError:  # removed since it was listed, by a command that measures all anew
                    continue
                stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
                before, part = self._seen.get(path, (None, {}))
                if before != stamp:
                    part = json.loads(path.read_text(encoding="utf-8"))
                    new[path] = stamp, part, pd.DataFrame(part["rows"])
                theirs = part["provenance"]
                hash(self._name(part["unit"]))
                dict(theirs).get("device"), dict(theirs["parameters"])
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise self._no_part(path) from None
            if path in new:
                self._require_same(theirs, path)
            found.append(part)
        self._check({path: rows for path, (_, _, rows) in new.items()})
        self._seen |= {path: (stamp, part) for path, (stamp, part, _) in new.items()}
        return found

    def _check(self, rows: Mapping[Path, pd.DataFrame]) -> None:
        """Raises SpecquantError for a part that is none. All are checked at once, which is as fast as one by itself."""
        try:
            if rows:
                self.table.check(pd.concat(rows.values(), ignore_index=True), self.folder)
        except (ValueError, TypeError, KeyError, SpecquantError):
            for path, of_part in rows.items():
                try:
                    self.table.check(of_part, path)
                except (ValueError, TypeError, KeyError):
                    raise self._no_part(path) from None

    def _no_part(self, path: Path) -> SpecquantError:
        return SpecquantError(f"{path} is no part of {self.path.name}: remove it")

    def _names_of_parts(self) -> set[str]:
        return {path.name for path in self.folder.glob("*.json")}

    def _part(self, unit: Unit) -> Path:
        return self.folder / f"{_slug(self._name(unit))}.json"

    def _require_same(self, provenance: Mapping[str, Any], path: Path) -> None:
        theirs = {"device": provenance.get("device")} | self.unnamed | provenance["parameters"]
        self.same.setdefault("device", theirs["device"])
        if told := measured_otherwise(self.same, theirs):
            raise SpecquantError(f"{path} holds rows {told}: choose another folder, or remove it")
        if told := measured_with_others(provenance, self.kernels):
            name = self.path.stem
            raise SpecquantError(
                f"{path} holds rows {told}: choose another folder, or remove {name}.csv, {name}.json and {name}.parts"
            )

    def _name(self, unit: Unit) -> tuple:
        return tuple(unit[name] for name in self.table.unit)


def claim_device(folder: Path, device: str, table: str) -> None:
    """Have a table, whose parts are in `folder`, be of a device.

    Raises SpecquantError where another process has had it be of another one.
    """
    claimed, unfinished = folder / DEVICE, folder / f".{uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(device, encoding="utf-8")
        with suppress(FileExistsError):
            os.link(unfinished, claimed)  # of several at once one is the first, on network file systems, too
        theirs = claimed.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SpecquantError(f"cannot note in {folder} which device rows are of ({error})") from None
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
    if theirs != device:
        raise SpecquantError(
            f"{table} is of {theirs}, and this is {device}: ask for one kind of device (of Slurm by gres or "
            "constraint), or choose another folder"
        )


def forget_device(folder: Path) -> None:
    """Take back that a table is of a device (`claim_device`)."""
    with suppress(OSError):
        (folder / DEVICE).unlink(missing_ok=True)


def measured_otherwise(same: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """The first parameter of `same` that others have otherwise, in words; None where they have all of them so."""
    for name, value in same.items():
        if theirs.get(name) != value:
            return f"measured with {name} {theirs.get(name)}, not {value}"
    return None


def _slug(names: Sequence[Any]) -> str:
    """A file name for a unit: readable, and short enough for every file system."""
    text = "_".join(quote(str(name), safe="") for name in names)
    return text if len(text) <= 120 else f"{text[:100]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def joined_provenance(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
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
