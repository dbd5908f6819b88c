"""Which recorded tables are of which kernels: the part of data/recorded/README.md that is written from their JSONs."""

from pathlib import Path
from typing import Any

from specquant.errors import SpecquantError
from specquant.files import project_root, write_parts
from specquant.tables.markdown import markdown_table
from specquant.tables.results import read_provenance
from specquant.tables.sources import FIELD, needs_kernels, several

PAGE = "data/recorded/README.md"
MARKERS = "<!-- kernels: specquant claims writes this list -->", "<!-- end of kernels -->"
UNKNOWN = "not known: files differed from the commit"


def write_kernels_used(root: Path | None = None) -> list[Path]:
    """Write that part of the README anew; returns the files that changed by that.

    Raises SpecquantError where the README has no place for it, or a table's JSON is missing or broken.
    """
    page = (root or project_root()) / PAGE
    return write_parts(page, "the list of recorded tables", {MARKERS: kernels_list(page.parent)})


def kernels_list(recorded: Path) -> str:
    """The tables of each state of the kernels, the newest first, in Markdown."""
    tables: dict[str, list[str]] = {}
    newest: dict[str, str] = {}
    for path in sorted(recorded.rglob("*.csv")):
        record = read_provenance(path)
        if not record.get("driver") or not needs_kernels("cuda", record.get("clock")):
            continue
        if not (dates := [date for date in several(record.get("date")) if date]):
            raise SpecquantError(f"{path.with_suffix('.json')} names no date: measure its table again")
        states = states_of(record)
        for state in states:
            part = " (some rows)" if len(states) > 1 else ""
            tables.setdefault(state, []).append(f"`{path.relative_to(recorded).as_posix()}`{part}")
            newest[state] = max(newest.get(state, ""), *dates)
    rows = []
    for state in sorted(tables, key=newest.__getitem__, reverse=True):
        name = state if state == UNKNOWN else f"`{state}`"
        rows.append([name, newest[state][:10], ", ".join(tables[state])])
    return markdown_table(["kernels", "until", "tables"], rows) + "\n"


def states_of(record: dict[str, Any]) -> list[str]:
    """The kernels that rows were measured with, by the beginnings of their digests. record: a table's provenance."""
    return [digest[:8] if digest else UNKNOWN for digest in several(record.get(FIELD))]
