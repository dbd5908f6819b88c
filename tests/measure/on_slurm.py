"""Units as jobs of a real Slurm of this machine: `make test-slurm`. Two nodes of one core, on the loopback alone."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from specquant.errors import SpecquantError
from specquant.measure import executors
from specquant.measure.executors import SlurmOptions
from specquant.measure.measure import record
from specquant.tables.results import read_provenance, read_results
from tests.measure.sleeping import MEASURE, Parameters
from tests.slurm import meanwhile, output, require_slurm, started, wait_for


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    require_slurm()
    with started(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture(autouse=True)
def used(cluster, monkeypatch):
    monkeypatch.setattr(executors, "current", lambda: cluster.executor)


@pytest.fixture
def notes(tmp_path) -> Path:
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


def job_of(unit: int) -> str:
    """The running job of a unit: units are the tasks of an array, in their order."""
    lines = output("squeue", "--me", "-h", "-r", "-t", "running", "-o", "%i").splitlines()
    return next((line for line in lines if line.endswith(f"_{unit}")), "")


def rows(path: Path) -> str:
    """The rows of a table, but for the nodes that they came from."""
    return read_results(path).drop(columns="node", errors="ignore").to_csv(index=False)


def table_of_here(parameters: Parameters, folder: Path, monkeypatch) -> str:
    monkeypatch.setattr(executors, "current", executors.Here)
    return rows(record(MEASURE, parameters, folder))


def begun(notes: Path) -> list[int]:
    """How often each unit began."""
    return [len((notes / name).read_text().split()) for name in sorted(each.name for each in notes.iterdir())]


def test_jobs_write_the_table_that_processes_here_write(tmp_path, notes, monkeypatch):
    parameters = Parameters(count=4, notes=notes)
    path = record(MEASURE, parameters, tmp_path / "jobs")
    assert set(read_provenance(path)["node"]) == set(read_results(path).node) == {"node1", "node2"}
    assert not (tmp_path / "jobs/sleeping.jobs").exists()
    assert rows(path) == table_of_here(parameters, tmp_path / "here", monkeypatch)


def test_a_job_that_is_requeued_in_the_middle_begins_anew_and_counts_once(tmp_path, notes, monkeypatch):
    parameters = Parameters(count=3, seconds=6.0, notes=notes)
    acting = meanwhile(lambda: subprocess.run(["scontrol", "requeue", job_of(1)], check=True), (notes / "1").exists)
    path = record(MEASURE, parameters, tmp_path / "jobs")
    acting.join()
    assert begun(notes)[:2] == [1, 2]
    assert rows(path) == table_of_here(parameters, tmp_path / "here", monkeypatch)


def test_a_job_that_is_killed_is_named_and_the_same_command_goes_on(tmp_path, notes, monkeypatch):
    parameters = Parameters(count=3, seconds=6.0, notes=notes)
    acting = meanwhile(lambda: subprocess.run(["scancel", job_of(1)], check=True), (notes / "1").exists)
    with pytest.raises(SpecquantError, match="sleeping synthetic 1 failed ") as error:
        record(MEASURE, parameters, tmp_path / "jobs")
    acting.join()
    assert Path(str(error.value).split("its log is ")[1].split(")")[0]).is_file()
    assert read_results(tmp_path / "jobs/sleeping.csv").process.tolist() == [0, 0, 2, 2]
    path = record(MEASURE, parameters, tmp_path / "jobs")
    assert begun(notes) == [1, 2, 1]
    assert rows(path) == table_of_here(parameters, tmp_path / "here", monkeypatch)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_takes_its_jobs_with_it(tmp_path, notes, how):
    program = (
        "import sys; from pathlib import Path\n"
        "from specquant.measure.measure import record\n"
        "from tests.measure.sleeping import MEASURE, Parameters\n"
        "record(MEASURE, Parameters(count=3, seconds=60, notes=Path(sys.argv[2])), sys.argv[1])\n"
    )
    environment = os.environ | {executors.EXECUTOR: '{"options": {}, "poll_s": 0.5}'}
    command = [sys.executable, "-c", program, str(tmp_path / "jobs"), str(tmp_path / "notes")]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # also where these tests ignore interrupts
    process = subprocess.Popen(command, env=environment, preexec_fn=heed)
    wait_for((tmp_path / "notes/0").exists, "the first unit")
    process.send_signal(how)
    assert process.wait(60) != 0
    wait_for(lambda: output("squeue", "--me", "-h") == "", "an empty queue")


def test_jobs_that_are_preempted_begin_anew(tmp_path, notes, monkeypatch):
    """A partition of higher priority takes both nodes; Slurm requeues what ran there."""
    parameters = Parameters(count=3, seconds=6.0, notes=notes)
    urgent = ["sbatch", "--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap=sleep 2"]
    acting = meanwhile(
        lambda: subprocess.run(urgent, check=True), lambda: {"0", "1"} <= {path.name for path in notes.iterdir()}
    )
    path = record(MEASURE, parameters, tmp_path / "jobs")
    acting.join()
    assert begun(notes)[:2] == [2, 2]
    assert rows(path) == table_of_here(parameters, tmp_path / "here", monkeypatch)


def test_a_job_whose_node_is_lost_begins_anew_on_another(cluster, tmp_path, notes, monkeypatch):
    parameters = Parameters(count=2, seconds=6.0, notes=notes)
    acting = meanwhile(lambda: cluster.lose("node2"), lambda: {"0", "1"} <= {path.name for path in notes.iterdir()})
    try:
        path = record(MEASURE, parameters, tmp_path / "jobs")
        acting.join()
        assert sum(begun(notes)) == 3
        assert set(read_results(path).node) == {"node1"}
        assert not (tmp_path / "jobs/sleeping.jobs").exists()
        assert rows(path) == table_of_here(parameters, tmp_path / "here", monkeypatch)
    finally:
        acting.join()
        cluster.bring_back("node2")


def test_a_lost_job_that_slurm_does_not_requeue_is_named_and_the_same_command_goes_on(
    cluster, tmp_path, notes, monkeypatch
):
    parameters = Parameters(count=2, seconds=6.0, notes=notes)

    def lose() -> None:
        for job in output("squeue", "--me", "-h", "-r", "-o", "%A").split():
            subprocess.run(["scontrol", "update", f"jobid={job}", "requeue=0"], check=True)
        cluster.lose("node2")

    acting = meanwhile(lose, lambda: {"0", "1"} <= {path.name for path in notes.iterdir()})
    try:
        sentence = r"^sleeping synthetic [01] failed \(left the queue without a result; its log is (.*?)\): what had"
        with pytest.raises(SpecquantError, match=sentence) as error:
            record(MEASURE, parameters, tmp_path / "jobs")
    finally:
        acting.join()
        cluster.bring_back("node2")
    assert Path(str(error.value).split("its log is ")[1].split(")")[0]).is_file()
    assert len(read_results(tmp_path / "jobs/sleeping.csv")) == 2
    path = record(MEASURE, parameters, tmp_path / "jobs")
    assert sorted(begun(notes)) == [1, 2]
    assert rows(path) == table_of_here(parameters, tmp_path / "here", monkeypatch)


def test_a_job_whose_time_is_over_is_named_with_its_log(cluster, tmp_path, notes, monkeypatch):
    monkeypatch.setattr(executors, "current", lambda: replace(cluster.executor, options=SlurmOptions(time=1)))
    with pytest.raises(SpecquantError, match=r"^sleeping synthetic 0 failed \(its time is over; its log") as error:
        record(MEASURE, Parameters(count=1, seconds=300, notes=notes), tmp_path / "jobs")
    assert Path(str(error.value).split("its log is ")[1].split(")")[0]).is_file()
    assert begun(notes) == [1]


def test_the_same_command_twice_at_once_counts_each_unit_once(tmp_path, notes, monkeypatch):
    program = (
        "import sys; from pathlib import Path\n"
        "from specquant.measure.measure import record\n"
        "from tests.measure.sleeping import MEASURE, Parameters\n"
        "record(MEASURE, Parameters(count=3, seconds=2, notes=Path(sys.argv[2])), sys.argv[1])\n"
    )
    environment = os.environ | {executors.EXECUTOR: '{"options": {}, "poll_s": 0.5}'}
    command = [sys.executable, "-c", program, str(tmp_path / "jobs"), str(notes)]
    both = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [each.wait(180) for each in both] == [0, 0]
    assert max(begun(notes)) <= 2
    parameters = Parameters(count=3, seconds=2, notes=notes)
    there = rows(tmp_path / "jobs/sleeping.csv")
    assert there == table_of_here(parameters, tmp_path / "here", monkeypatch)
