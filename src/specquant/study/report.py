"""The HTML report of a batch: the claims, what each notebook found or is just doing, and links to all that it wrote."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined

from specquant.errors import SpecquantError
from specquant.files import project_root, write_file
from specquant.measure.states import DONE, FAILED, LEFT_OUT, QUEUED, RUNNING
from specquant.tables.style import device_label

TEMPLATE = Path(__file__).with_suffix(".html")
RULE = "data/published/README.md"  # of the clone, which explains the verdicts
# How the state of a job looks: classes of the template.
JOB_LOOK = {FAILED: "bad", LEFT_OUT: "open", RUNNING: "open", "unknown": "open", QUEUED: "", DONE: "good"}
MOST_JOBS = 30  # of a command that have a line of their own


@dataclass(frozen=True)
class Live:
    """Where a batch is.

    Attributes:
        name: Of the notebook that it runs.
        cell: In which cell that is.
        cells: Of how many.
        waiting: Notebooks that are still to come.
        job: Where a job runs the notebook: queued or running.
        log: That job's log, as seen from the report.
        jobs: Those that the notebook waits for, of each of its commands (`measure.states`).
    """

    name: str
    cell: int = 0
    cells: int = 0
    waiting: tuple[str, ...] = ()
    job: str | None = None
    log: str | None = None
    jobs: Sequence[Mapping[str, Any]] = ()

    def state(self, name: str) -> str | None:
        """What a notebook is doing; None where this batch does nothing with it any more."""
        if name == self.name:
            queued = self.job == QUEUED  # again, if it has been in some cell
            return f"running, cell {self.cell} of {self.cells}" if self.cells and not queued else self.job or "starting"
        return "waiting" if name in self.waiting else None


def write_report(folder: Path, profile: str, notebooks: Iterable[str], live: Live | None = None) -> Path:
    """Write `folder`/index.html from the notebooks' records; returns its path.

    Links are relative: the folder can move. Only that to the rule of the verdicts leaves it, in a clone. While a batch
    runs (`live`), a browser loads the page again and again.

    Raises:
        SpecquantError: The folder cannot be written.
    """
    records = {name: _record(folder, name) for name in notebooks}
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        profile=profile,
        live=live,
        facts=_facts(records.values(), live),
        **_claims(folder),
        notebooks=[_notebook(folder, name, record, live) for name, record in records.items()],
    )
    return write_file(folder / "index.html", page, by_several=True)


def _record(folder: Path, name: str) -> dict[str, Any]:
    """A notebook's record, empty where it has not run or the record is damaged."""
    try:
        record = json.loads((folder / "notebooks" / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(record, dict) or not isinstance(record.get("seconds"), int | float):
        return {}
    error, files = record.get("error", 0), record.get("files")
    whole = isinstance(error, str | None) and isinstance(files, list) and all(isinstance(file, str) for file in files)
    return record if whole else {}


def _facts(records: Iterable[dict[str, Any]], live: Live | None) -> dict[str, str]:
    """What ran, when and where, as the records say; several values where notebooks ran at different times."""
    records = [record for record in records if record]
    if live:
        now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
        facts = {"now": f"{live.name}: {live.state(live.name)} (as of {now})"}
    else:
        facts = {}
    dates = sorted(str(record["date"]) for record in records if record.get("date"))
    if dates:
        first, last = (date.replace("T", " ") for date in (dates[0], dates[-1]))
        facts["date"] = first if first == last else f"{first} to {last}"
    commits = [
        f"{record['commit']}{' with uncommitted changes' if record.get('uncommitted_changes') else ''}"
        for record in records
        if record.get("commit")
    ]
    devices = [device_label(str(record["device"])) for record in records if record.get("device")]
    for name, values in {"commit": commits, "device": devices}.items():
        if told := list(dict.fromkeys(values)):
            facts[name] = "; ".join(told)
    return facts


def _claims(folder: Path) -> dict[str, Any]:
    """The claims that README.md shows, or why they are not to be had, how each verdict looks, and where their rule is:
    its page in the clone, and a link to it from `folder`, None where that is not in the clone."""
    from specquant.study.claims import NOT_REPRODUCED, NOT_TESTED, REPRODUCED, read_claims, shown  # loads torch

    look = {REPRODUCED: "good", NOT_REPRODUCED: "bad", NOT_TESTED: "open"}
    try:
        root, inside = project_root(), Path(os.path.abspath(folder))
        link = os.path.relpath(root / RULE, inside) if inside.is_relative_to(root) else None
        return {"claims": shown(read_claims(), "README"), "look": look, "rule": RULE, "rule_link": link}
    except SpecquantError as error:
        return {"claims": str(error), "look": look}


def _notebook(folder: Path, name: str, record: dict[str, Any], live: Live | None) -> dict[str, Any]:
    """What the template tells of one notebook."""
    files = record.get("files", [])
    findings = record.get("findings")
    state, look = (live.state(name) if live else None), "open"
    log, jobs = (live.log, live.jobs) if live and live.name == name else (None, ())
    if state is None:
        (state, look), log, jobs = _outcome(record), record.get("log"), record.get("jobs")
    return {
        "name": name,
        "title": record.get("title") or "",
        "ran": bool(record),
        "page": f"notebooks/{quote(name)}.html",
        "source": f"notebooks/{quote(name)}.ipynb",
        "error": record.get("error"),
        "state": state,
        "look": look,
        "log": quote(log) if isinstance(log, str) else None,
        "jobs": _jobs(jobs),
        "findings": findings if isinstance(findings, dict) else {},
        "tables": [
            {"file": quote(file), "name": file, "provenance": quote(str(Path(file).with_suffix(".json").as_posix()))}
            for file in files
            if file.endswith(".csv")
        ],
        "figures": [_figure(folder, file) for file in sorted(files) if file.endswith(".png")],
    }


def _outcome(record: dict[str, Any]) -> tuple[str, str]:
    """How a notebook's last run ended, and how that looks."""
    if not record:
        return "has not run", ""
    if record["error"] is None:
        return f"done in {record['seconds']:.0f} s", "good"
    return f"after {record['seconds']:.0f} s: {record['error']}", ""


def _jobs(commands: Any) -> list[dict[str, Any]]:
    """Of each command of a notebook how many jobs are in each state, and a line for each of which there is more to say.

    Nothing where a record holds something else.
    """
    try:
        return [_jobs_of(command) for command in commands or ()]
    except (AttributeError, KeyError, TypeError, ValueError):
        return []


def _jobs_of(command: Mapping[str, Any]) -> dict[str, Any]:
    counts = {state: int(command["counts"].get(state, 0)) for state in JOB_LOOK}
    order = list(JOB_LOOK)
    jobs = sorted((job for job in command["jobs"] if job["state"] in order), key=lambda job: order.index(job["state"]))
    told = [
        {
            "name": str(job["unit"]),
            "state": job["state"],
            "look": JOB_LOOK[job["state"]],
            "log": quote(str(job["log"])) if job.get("log") else None,
            "why": str(job.get("why") or ""),
        }
        for job in jobs[:MOST_JOBS]
    ]
    shown = ", ".join(f"{counts[state]} {state}" for state in reversed(order) if counts[state])
    return {"name": str(command["name"]), "counts": shown, "told": told, "more": len(jobs) - len(told)}


def _figure(folder: Path, picture: str) -> dict[str, str]:
    try:
        caption = (folder / picture).with_suffix(".txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        caption = Path(picture).stem
    pdf = Path(picture).with_suffix(".pdf").as_posix()
    return {"png": quote(picture), "pdf": quote(pdf), "caption": caption}
