"""What many units cost besides what they compute: `python -m tests.measure.thousand {here,slurm} [COUNT] [SECONDS]`.

Real processes or jobs, which sleep and write a part each (`sleeper`), by the executor, the parts and the joins of every
question. Prints what docs/cluster.md says.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from specquant.measure import executors, measure
from specquant.tables.parts import Parts
from specquant.tables.provenance import device_name, provenance
from specquant.tables.results import read_results
from tests.measure import sleeper
from tests.measure.sleeping import MEASURE, Parameters

AT_ONCE = 8  # processes here


@contextmanager
def counted(owner, name):
    """How often a function is called, and how many seconds that takes in all."""
    told, plain = {"times": 0, "seconds": 0.0}, getattr(owner, name)

    def counting(*given, **named):
        began = time.monotonic()
        try:
            return plain(*given, **named)
        finally:
            told["times"] += 1
            told["seconds"] = round(told["seconds"] + time.monotonic() - began, 3)

    setattr(owner, name, counting)
    try:
        yield told
    finally:
        setattr(owner, name, plain)


@contextmanager
def most_files(folder):
    """The most files that there are below a folder at a time."""
    told, over = {"files": 0}, threading.Event()

    def watch():
        while not over.wait(1):
            told["files"] = max(told["files"], sum(len(files) for _, _, files in os.walk(folder)))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield told
    finally:
        over.set()
        watching.join()


def run(executor, count: int, seconds: float) -> None:
    plain = measure._task
    measure._task = lambda *given: replace(plain(*given), module=sleeper.__name__)
    executors.current = lambda: executor
    same = {"device": device_name("cpu"), "seconds": seconds}
    os.environ[sleeper.PROVENANCE] = json.dumps(provenance(same))
    with tempfile.TemporaryDirectory(prefix="thousand-") as folder:
        out, parameters = Path(folder), Parameters(count=count, seconds=seconds)
        with (
            counted(Parts, "join") as joins,
            counted(executors.Slurm, "_queue") as looks,
            counted(executors.Slurm, "_submitted") as submissions,
            most_files(out / "sleeping.jobs") as logs,
        ):
            began, cpu = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
            path = measure.record(MEASURE, parameters, out)
            took, ended = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF)
        parts = list((out / "sleeping.parts").iterdir())
        assert len(read_results(path)) == 2 * count
        with counted(Parts, "missing") as resuming:
            measure.record(MEASURE, parameters, out)
        told = {"units": count, "seconds of each": seconds, "seconds": round(took, 1)}
        told["CPU seconds of the command"] = round(ended.ru_utime + ended.ru_stime - cpu.ru_utime - cpu.ru_stime, 1)
        told |= {"parts": len(parts), "MB of parts": round(sum(part.stat().st_size for part in parts) / 1e6, 2)}
        told |= {"joins": joins, "resuming": resuming, "submissions": submissions, "looks at the queue": looks}
        told |= {"most files of jobs": logs["files"], "files of jobs left": (out / "sleeping.jobs").exists()}
        print(json.dumps(told, indent=2), flush=True)


def main(kind: str, count: int = 1000, seconds: float = 0.5) -> None:
    if kind == "here":
        run(executors.Here(AT_ONCE), count, seconds)
        return
    from tests.slurm import started

    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, started(Path(folder), cores=4) as cluster:
        run(replace(cluster.executor, poll_s=5.0), count, seconds)
        print(subprocess.run(["sdiag"], capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]), *map(float, sys.argv[3:4]))
