"""On a real Slurm of this machine: `make test-slurm`. Two nodes of one core, on the loopback alone."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from specquant.errors import SpecquantError
from specquant.measure import executors
from specquant.measure.executors import Slurm, SlurmOptions
from specquant.measure.measure import record
from specquant.tables.results import read_provenance, read_results
from tests.measure.sleeping import MEASURE, Parameters

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
CONFIGURATION = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
SchedulerParameters=sched_interval=1,bf_interval=1
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cores} State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cores} State=UNKNOWN
PartitionName=test Nodes=node1,node2 Default=YES MaxTime=60 State=UP
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def started(folder: Path, cores: int = 1) -> Iterator[Slurm]:
    """A Slurm of two nodes, with all its files in a folder, that runs meanwhile. Gives the executor for its jobs."""
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, host=host, ports=free_ports(3), cores=cores))
    at = ("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed")
    munge = [f"--{option}={folder}/munge.{name}" for option, name in at]
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    daemons = [subprocess.Popen(["munged", "--foreground", "--force", *munge])]
    try:
        wait_for(lambda: (folder / "munge.socket").exists(), "munged")
        daemons.append(subprocess.Popen(["slurmctld", "-D"]))
        daemons += [subprocess.Popen(["slurmd", "-D", "-N", name]) for name in ("node1", "node2")]
        wait_for(lambda: output("sinfo", "-h", "-t", "idle", "-o", "%D") == "2", "two idle nodes")
        yield Slurm(SlurmOptions(time=5), poll_s=0.5, grace_s=5.0)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)
        del os.environ["SLURM_CONF"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    lacking = [name for name in DAEMONS if not shutil.which(name)]
    if lacking or os.geteuid() != 0:
        pytest.fail(f"a Slurm of one's own needs root, and Debian's slurm-wlm and munge (not here: {lacking})")
    with started(tmp_path_factory.mktemp("slurm")) as executor:
        yield executor


@pytest.fixture(autouse=True)
def used(slurm, monkeypatch):
    monkeypatch.setattr(executors, "current", lambda: slurm)


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def wait_for(condition, what: str, seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"{what}: not within {seconds} s"
        time.sleep(0.2)


def meanwhile(act, when) -> threading.Thread:
    """Act as soon as something is the case, while the test waits for jobs."""

    def run() -> None:
        wait_for(when, "the time to act")
        act()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def job_of(unit: int) -> str:
    """The running job of a unit: units are the tasks of an array, in their order."""
    lines = output("squeue", "--me", "-h", "-r", "-t", "running", "-o", "%i").splitlines()
    return next((line for line in lines if line.endswith(f"_{unit}")), "")


def table_of_here(parameters: Parameters, folder: Path, monkeypatch) -> str:
    monkeypatch.setattr(executors, "current", executors.Here)
    return record(MEASURE, parameters, folder).read_text()


def test_jobs_write_the_table_that_processes_here_write(tmp_path, monkeypatch):
    (tmp_path / "notes").mkdir()
    parameters = Parameters(count=4, notes=tmp_path / "notes")
    path = record(MEASURE, parameters, tmp_path / "jobs")
    assert set(read_provenance(path)["node"]) == {"node1", "node2"}
    assert not (tmp_path / "jobs/sleeping.jobs").exists()
    assert path.read_text() == table_of_here(parameters, tmp_path / "here", monkeypatch)


def test_a_job_that_is_requeued_in_the_middle_begins_anew_and_counts_once(tmp_path, monkeypatch):
    notes = tmp_path / "notes"
    notes.mkdir()
    parameters = Parameters(count=3, seconds=6.0, notes=notes)
    acting = meanwhile(lambda: subprocess.run(["scontrol", "requeue", job_of(1)], check=True), (notes / "1").exists)
    path = record(MEASURE, parameters, tmp_path / "jobs")
    acting.join()
    assert (notes / "1").read_text() == "began\n" * 2
    assert (notes / "0").read_text() == "began\n"
    assert path.read_text() == table_of_here(parameters, tmp_path / "here", monkeypatch)


def test_a_job_that_is_killed_is_named_and_the_same_command_goes_on(tmp_path, monkeypatch):
    notes = tmp_path / "notes"
    notes.mkdir()
    parameters = Parameters(count=3, seconds=6.0, notes=notes)
    acting = meanwhile(lambda: subprocess.run(["scancel", job_of(1)], check=True), (notes / "1").exists)
    with pytest.raises(SpecquantError, match="sleeping synthetic 1 failed ") as error:
        record(MEASURE, parameters, tmp_path / "jobs")
    acting.join()
    assert Path(str(error.value).split("its log is ")[1].split(")")[0]).is_file()
    assert read_results(tmp_path / "jobs/sleeping.csv").process.tolist() == [0, 0, 2, 2]
    path = record(MEASURE, parameters, tmp_path / "jobs")
    assert [len((notes / str(unit)).read_text().split()) for unit in range(3)] == [1, 2, 1]
    assert path.read_text() == table_of_here(parameters, tmp_path / "here", monkeypatch)


def test_an_interrupted_command_takes_its_jobs_with_it(tmp_path):
    (tmp_path / "notes").mkdir()
    program = (
        "import sys; from pathlib import Path\n"
        "from specquant.measure.measure import record\n"
        "from tests.measure.sleeping import MEASURE, Parameters\n"
        "record(MEASURE, Parameters(count=3, seconds=60, notes=Path(sys.argv[2])), sys.argv[1])\n"
    )
    environment = os.environ | {executors.EXECUTOR: '{"options": {}, "poll_s": 0.5}'}
    command = [sys.executable, "-c", program, str(tmp_path / "jobs"), str(tmp_path / "notes")]
    process = subprocess.Popen(command, env=environment)
    wait_for((tmp_path / "notes/0").exists, "the first unit")
    process.send_signal(2)
    assert process.wait(60) != 0
    wait_for(lambda: output("squeue", "--me", "-h") == "", "an empty queue")
