"""What the jobs of a command are doing: counted for its progress bar, and told in a file for the study's report."""

import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from specquant.errors import SpecquantError
from specquant.files import write_file
from specquant.measure.executors import Task

STATES = "SPECQUANT_STATES"  # the folder in which the study reads what the jobs of a notebook are doing
QUEUED, RUNNING, DONE, LEFT_OUT, FAILED = "queued", "running", "done", "left out", "failed"
EVERY_S = 1.0  # the file is written at most once in this time, and at the end


class States:
    """The states of a command's jobs, as its executor tells of them. A context: at its end the file is written."""

    def __init__(self, name: str, tasks: Sequence[Task]):
        self.name = name
        self._jobs: dict[Task, dict[str, Any]] = {task: {"unit": task.name, "state": QUEUED} for task in tasks}
        folder = os.environ.get(STATES)
        self._file = Path(folder) / f"{time.time_ns()}-{name}.json" if folder and tasks else None
        self._due_at = 0.0

    def __enter__(self) -> "States":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._write()

    def __str__(self) -> str:
        counts = self.counts()
        return ", ".join(f"{counts[state]} {state}" for state in (QUEUED, RUNNING))

    def counts(self) -> Counter[str]:
        return Counter(job["state"] for job in self._jobs.values())

    def take(self, task: Task, told: Mapping[str, Any]) -> None:
        """Note what an executor told of a task."""
        job = self._jobs[task]
        if "state" in told:
            job |= {"state": told["state"], "log": told["log"]}
        elif "error" in told:
            job |= {"state": FAILED, "why": told["error"]}
        elif "left_out" in told:
            job |= {"state": LEFT_OUT, "why": told["left_out"]}
        elif "ended" in told:
            job["log"] = told["log"]
            if told["ended"] != 0:
                job |= {"state": FAILED, "why": told.get("why") or f"ended with status {told['ended']}"}
            elif job["state"] not in (FAILED, LEFT_OUT):
                job["state"] = DONE
        if time.monotonic() >= self._due_at:
            self._write()
            self._due_at = time.monotonic() + EVERY_S

    def _write(self) -> None:
        """How many are in each state, and those of which there is more to say: a sentence, or a log."""
        if self._file is None:
            return
        told = [job for job in self._jobs.values() if job["state"] not in (QUEUED, DONE)]
        with suppress(SpecquantError):  # a report that is late stops no measurement
            write_file(self._file, json.dumps({"name": self.name, "counts": self.counts(), "jobs": told}))


def read_states(folder: Path, seen_from: Path) -> list[dict[str, Any]]:
    """What the commands told that wrote into a folder, in their order; paths of logs as seen from another folder."""
    found = []
    for file in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # gone, or written by another version
            told = json.loads(file.read_text(encoding="utf-8"))
            for job in told["jobs"]:
                if job.get("log"):
                    job["log"] = Path(os.path.relpath(job["log"], seen_from)).as_posix()
            found.append(told)
    return found
