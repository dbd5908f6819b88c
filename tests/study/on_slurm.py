"""The tiny study as jobs of a real Slurm of this machine: `make test-slurm`."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest

from specquant.files import project_root
from tests.slurm import name_of, output, processes_of, require_slurm, started, wait_for

NOTEBOOKS = ("01_acceptance", "02_verify_time", "04_quality")
# The tiny study, made short. Its target is called otherwise: findings are of the whole study.
PROFILE = """
target: models/target
eagle_target: models/eagle-target
intermediate: models/intermediate
eagle_intermediate: models/eagle-intermediate
schemes: fp16,w4a16-g128
prompts_per_task: 1
max_new_tokens: 8
tokens_per_domain: 300
time_target: true
max_draft_size: 4
processes: 1
repeats: 2
"""
TIMED = re.compile(r"_(ms|us|s)$|^speedup$|^place$")  # and in which random place of a block it was


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    require_slurm()
    with started(tmp_path_factory.mktemp("slurm")) as running:
        yield running


class Study:
    """A clone with a profile of its own, and its command."""

    def __init__(self, root: Path):
        self.root = root
        for name in ("src", "notebooks"):
            shutil.copytree(project_root() / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("data", "pyproject.toml", "requirements.lock"):
            (root / name).symlink_to(project_root() / name)
        (root / "models").symlink_to(project_root() / "data/tiny")
        (root / "notebooks/profiles/quick.yaml").write_text(PROFILE)
        (root / "slurm.yaml").write_text("time: 10\n")

    def start(self, out: str, *options: str) -> subprocess.Popen:
        environment = os.environ | {"PYTHONPATH": str(self.root / "src"), "SPECQUANT_COMMIT": "abc"}
        only = [word for name in NOTEBOOKS for word in ("--only", name)]
        command = [sys.executable, "-m", "specquant.cli", "study", "--profile", "quick", *only, "--results", out]
        return subprocess.Popen([*command, *options], cwd=self.root, env=environment)

    def run(self, out: str, *options: str) -> int:
        return self.start(out, *options).wait(600)

    def records(self, out: str) -> dict[str, dict]:
        folder = self.root / out / "quick/notebooks"
        return {name: json.loads((folder / f"{name}.json").read_text()) for name in NOTEBOOKS}

    def tables(self, out: str) -> dict[str, pd.DataFrame]:
        """What was not timed, of each table."""
        found = {}
        for path in sorted((self.root / out).rglob("*.csv")):
            table = pd.read_csv(path).drop(columns="node", errors="ignore")
            found[path.relative_to(self.root / out).as_posix()] = table[[n for n in table if not TIMED.search(n)]]
        return found


class Watch(threading.Thread):
    """What the report says while the study runs."""

    def __init__(self, page: Path):
        super().__init__(daemon=True)
        self.page, self.seen, self.over = page, set[str](), threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.2):
            if self.page.is_file():
                self.seen |= set(re.findall(r"<span class=\"open\">(.*?)</span>|(Jobs of .*?)<", self.page.read_text()))

    def stop(self) -> set[str]:
        self.over.set()
        self.join()
        return {text for both in self.seen for text in both if text}


def requeue(notebook: str, folder: Path) -> None:
    """Requeue the job of a notebook when it is in its third cell."""

    def cell() -> int:
        noted = list(folder.glob(f".{notebook}.running-*/cell.json"))
        return json.loads(noted[0].read_text())[0] if noted else 0

    wait_for(lambda: cell() >= 3, f"the third cell of {notebook}", 240)
    (job,) = output("squeue", "--me", "-h", "-t", "running", "-o", "%A").split()
    subprocess.run(["scontrol", "requeue", job], check=True)


def requeue_waiting_notebook() -> None:
    """Requeue the job of a notebook that waits for its units, which are cancelled then: it submits them anew."""

    def arrays() -> set[str]:
        lines = output("squeue", "--me", "-h", "-r", "-o", "%F %K").splitlines()
        return {number for number, place in map(str.split, lines) if place != "N/A"}

    wait_for(arrays, "units", 240)
    (units,) = arrays()
    every = set(output("squeue", "--me", "-h", "-t", "running", "-o", "%F").split())
    (notebook,) = every - {units}
    subprocess.run(["scontrol", "requeue", notebook], check=True)
    wait_for(lambda: units not in arrays(), "the end of its units")


def kill_a_unit() -> None:
    """Kill the process that measures a unit, as the kernel does where memory is full."""

    def measuring() -> list[int]:
        every = processes_of("node1") | processes_of("node2")
        return [each for each in every if "\0specquant.measure\0" in f"{command_of(each)}\0"]

    wait_for(measuring, "a unit", 300)
    os.kill(measuring()[0], signal.SIGKILL)


def command_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return name_of(process)


def test_the_tiny_study_as_jobs_writes_the_tables_of_here(cluster, tmp_path):
    study = Study(tmp_path / "clone")
    assert study.run("here") == 0
    slurm = ("--executor", "slurm", "--slurm", "slurm.yaml")
    watch = Watch(study.root / "jobs/quick/index.html")
    watch.start()
    process = study.start("jobs", *slurm)
    requeue("01_acceptance", study.root / "jobs/quick/notebooks")
    kill_a_unit()
    assert process.wait(600) == 1
    seen = watch.stop()
    assert {"queued", "waiting"} <= seen
    assert any(re.fullmatch(r"running, cell \d+ of \d+", text) for text in seen)
    assert any(re.fullmatch(r"Jobs of verify_cost: .*1 running.*", text) for text in seen)
    first = study.records("jobs")
    assert [name for name, record in first.items() if record["error"]] == ["02_verify_time"]
    (jobs,) = first["02_verify_time"]["jobs"]
    assert jobs["counts"] == {"done": 1, "failed": 1}
    (failed,) = jobs["jobs"]
    assert failed["why"] == "ended with status -9"
    assert (study.root / "jobs/quick" / failed["log"]).is_file()
    page = (study.root / "jobs/quick/index.html").read_text()
    assert "Jobs of verify_cost: 1 done, 1 failed" in page
    assert f'href="{failed["log"]}"' in page

    process = study.start("jobs", *slurm)
    requeue_waiting_notebook()
    assert process.wait(600) == 0
    again = study.records("jobs")
    assert [name for name in NOTEBOOKS if again[name]["date"] != first[name]["date"]] == ["02_verify_time"]
    assert output("squeue", "--me", "-h") == ""
    here, there = study.tables("here"), study.tables("jobs")
    assert list(there) == list(here)
    assert {"accepted_length", "perplexity", "draft_size"} <= {column for table in here.values() for column in table}
    for name, table in here.items():
        pd.testing.assert_frame_equal(there[name], table)
    assert not list((study.root / "jobs/quick/notebooks").glob(".*"))
