"""A real Slurm of this machine for tests: two nodes, with all files in a folder, on the loopback alone."""

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from specquant.measure.executors import Slurm, SlurmOptions

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
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=test Nodes=node1,node2 Default=YES MaxTime=60 State=UP PriorityTier=1
PartitionName=urgent Nodes=node1,node2 MaxTime=60 State=UP PriorityTier=2 PreemptMode=OFF
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Cluster:
    """Daemons that run, by their names.

    Attributes:
        executor: For jobs on it.
    """

    def __init__(self, folder: Path, cores: int):
        self.executor = Slurm(SlurmOptions(time=5), poll_s=0.5, grace_s=5.0)
        (folder / "state").mkdir()
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        about = {"folder": folder, "host": socket.gethostname().split(".")[0], "ports": free_ports(3), "cores": cores}
        (folder / "slurm.conf").write_text(CONFIGURATION.format(**about))
        at = ("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed")
        self._munge = [f"--{option}={folder}/munge.{name}" for option, name in at]
        self._socket = folder / "munge.socket"
        self._daemons: dict[str, subprocess.Popen] = {}

    def run(self) -> None:
        self._daemons["munged"] = subprocess.Popen(["munged", "--foreground", "--force", *self._munge])
        wait_for(self._socket.exists, "munged")
        self._daemons["slurmctld"] = subprocess.Popen(["slurmctld", "-D"])
        for name in ("node1", "node2"):
            self.start(name)
        self.wait_until_idle()

    def start(self, node: str) -> None:
        self._daemons[node] = subprocess.Popen(["slurmd", "-D", "-N", node])

    def wait_until_idle(self) -> None:
        wait_for(lambda: output("sinfo", "-h", "-p", "test", "-t", "idle", "-o", "%D") == "2", "two idle nodes")

    def lose(self, node: str) -> None:
        """As if the node's power were gone, which Slurm finds out by itself after some minutes: here it is told."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait(30)
        running = processes_of(node)
        for process in sorted(running, key=lambda each: "slurmstepd" not in name_of(each)):
            with suppress(ProcessLookupError):
                os.kill(process, 9)
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=lost"], check=True)

    def bring_back(self, node: str) -> None:
        self.start(node)
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=True)
        self.wait_until_idle()

    def stop(self) -> None:
        with suppress(AssertionError, OSError):  # what a failed test has left
            subprocess.run(["scancel", "--me"], check=False)
            wait_for(lambda: output("squeue", "--me", "-h") == "", "an empty queue")
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
            daemon.wait(30)


def processes_of(node: str) -> set[int]:
    """The processes of a node's jobs, and what started them there."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            if f"\0SLURMD_NODENAME={node}\0" in f"\0{(folder / 'environ').read_text(errors='replace')}\0":
                found.add(int(folder.name))
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if "slurmstepd" in name_of(parent):
                    found.add(parent)
    return found


def name_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text().partition("\0")[0]
    except OSError:
        return ""


@contextmanager
def started(folder: Path, cores: int = 1) -> Iterator[Cluster]:
    """A Slurm of two nodes, with all its files in a folder, that runs meanwhile."""
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    cluster = Cluster(folder, cores)
    try:
        cluster.run()
        yield cluster
    finally:
        cluster.stop()
        del os.environ["SLURM_CONF"]


def require_slurm() -> None:
    lacking = [name for name in DAEMONS if not shutil.which(name)]
    if lacking or os.geteuid() != 0:
        pytest.fail(f"a Slurm of one's own needs root, and Debian's slurm-wlm and munge (not here: {lacking})")


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
