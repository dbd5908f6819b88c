"""Where work runs: here in fresh processes, or as jobs of Slurm, by submitit. Each task has a process of its own.

A command chooses an executor (`chosen`). The processes that it starts find the choice in their environment (`current`).
Nothing here imports torch: this module is loaded on a node before the task's own process begins.
"""

import difflib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from specquant.errors import TERMINATED, SpecquantError, sigterm_raised
from specquant.files import SEEN_AFTER_S, read_text, resolve
from specquant.tables.plain_yaml import plain_yaml
from specquant.tables.provenance import DEVICE_OF_JOBS

EXECUTOR = "SPECQUANT_EXECUTOR"  # how a process knows what a command that started it chose, as JSON
OF_ITSELF = {EXECUTOR: "", DEVICE_OF_JOBS: ""}  # the environment of a task that computes where it runs
CARD = "SPECQUANT_CARD"  # the card that all tables must be of: a word of its name. Unset, or cpu: any card
SLURM_FILE = "notebooks/slurm.yaml"
MOST_OF_AN_ARRAY = 1000  # jobs; Slurm's MaxArraySize is 1001 where nobody changed it


@dataclass(frozen=True, eq=False)
class Task:
    """What one process does.

    Attributes:
        name: For people.
        module: What runs (`python -m`). It reads its order from standard input, and tells JSON objects, one a line.
        order: That order.
        environment: Variables that differ from those of the process that asks.
    """

    name: str
    module: str
    order: str
    environment: Mapping[str, str]

    @property
    def words(self) -> list[str]:
        return [sys.executable, "-m", self.module]


# What a task told; or {"state": "queued" or "running", "log": path}; or, at last, {"ended": exit status, "log": path},
# with the reason as "why" where there is no exit status. A log is None where it goes to the terminal. Of one of the
# jobs that are left {} is told after each look at them, for whoever shows what else goes on.
Told = Iterator[tuple[Task, dict[str, Any]]]


@dataclass(frozen=True)
class Here:
    """Fresh processes of this machine.

    Attributes:
        jobs: How many at a time.
        for_several: Whether it serves several commands. Those that take times then run their processes one after
            another, whatever `jobs` is.
    """

    jobs: int = 1
    for_several: bool = False
    elsewhere = False

    def require_alone(self, name: str) -> "Here":
        """The executor for what is timed. Raises SpecquantError where it was told to run several at a time."""
        if self.jobs > 1 and not self.for_several:
            raise SpecquantError(f"{name} takes times, which need this machine to themselves: leave --jobs out")
        return Here()

    def run(self, tasks: Sequence[Task], folder: Path) -> Told:
        """Run tasks: one after another, with all that they say on the terminal; or several at a time, with logs in
        `folder`. The logs of tasks that failed stay there."""
        if self.jobs == 1:
            for task in tasks:
                yield from ((task, told) for told in _streamed(task))
        elif tasks:
            yield from self._at_once(tasks, folder / _stamp())

    def _at_once(self, tasks: Sequence[Task], folder: Path) -> Told:
        folder.mkdir(parents=True)
        pool, running = ThreadPoolExecutor(self.jobs), set[subprocess.Popen]()
        try:
            pending = {
                pool.submit(_logged, task, folder / f"{number}.log", running): task for number, task in enumerate(tasks)
            }
            for future in as_completed(pending):
                yield from ((pending[future], told) for told in future.result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            _remove_if_empty(folder)


def _streamed(task: Task) -> Iterator[dict[str, Any]]:
    """What a task tells, as it tells it."""
    with subprocess.Popen(
        task.words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | task.environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with suppress(BrokenPipeError):  # it has died already, which its status tells
                process.stdin.write(task.order)
                process.stdin.close()
            for line in process.stdout:
                yield from _objects(line)
        except BaseException:
            process.terminate()
            raise
    yield {"ended": process.returncode, "log": None}


def _logged(task: Task, log: Path, running: set[subprocess.Popen]) -> list[dict[str, Any]]:
    """What a task told, at its end; its log stays if it failed."""
    with log.open("w") as errors:
        pipe = subprocess.PIPE
        environment = os.environ | task.environment
        process = subprocess.Popen(task.words, stdin=pipe, stdout=pipe, stderr=errors, text=True, env=environment)
        running.add(process)
        try:
            lines, _ = process.communicate(task.order)
        finally:
            running.discard(process)
    if process.returncode == 0:
        log.unlink()
    return [*_objects(lines), {"ended": process.returncode, "log": str(log) if process.returncode else None}]


def _objects(lines: str) -> list[dict[str, Any]]:
    """The JSON objects of lines, but for a last one that broke off."""
    return [json.loads(line) for line in lines.splitlines(keepends=True) if line.endswith("\n")]


@dataclass(frozen=True)
class SlurmOptions:
    """What each job asks Slurm for: `sbatch`'s options of these names, and no others.

    Attributes:
        time: Minutes of a job.
        gres: What a job gets of a node, such as gpu:1 or gpu:h200:1. If it names no gpu, jobs compute on the CPU.
        constraint: Features that a node must have, such as its card.
        exclusive: Whether a job has its node to itself.
        at_once: The most jobs of one command that run at a time.
        setup: Lines of shell before a job's program, such as `module load cuda`.
        notebooks: Those of these options that differ for the jobs of notebooks.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    gres: str | None = None
    constraint: str | None = None
    exclusive: bool = False
    time: int = 60
    cpus_per_task: int | None = None
    mem_gb: int | None = None
    at_once: int | None = None
    setup: tuple[str, ...] = ()
    notebooks: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        return "cuda" if "gpu" in (self.gres or "") else "cpu"

    def of_notebooks(self) -> "SlurmOptions":
        return SlurmOptions(**{**asdict(self), "notebooks": {}, **self.notebooks})

    def parameters(self) -> dict[str, Any]:
        """As submitit's AutoExecutor takes them."""
        given = {
            "timeout_min": self.time,
            "cpus_per_task": self.cpus_per_task,
            "mem_gb": self.mem_gb,
            "slurm_array_parallelism": self.at_once,
            "slurm_exclusive": self.exclusive or None,
            "slurm_setup": list(self.setup) or None,
        }
        given |= {f"slurm_{name}": getattr(self, name) for name in _NAMES}
        return {name: value for name, value in given.items() if value is not None}


_NAMES = ("partition", "account", "qos", "gres", "constraint")


def read_options(path: str | Path) -> SlurmOptions:
    """The options in a YAML file. Raises SpecquantError for a field that is none, and a value of a wrong type."""
    path = resolve(path)
    values = plain_yaml(read_text(path, "Slurm's options"), str(path))
    return _options({} if values is None else values, str(path))


def _options(values: Any, place: str, without: tuple[str, ...] = ()) -> SlurmOptions:
    from specquant.measure.parameters import require_type

    if not isinstance(values, dict):
        raise SpecquantError(f"{place} must hold lines of the form `partition: gpu`")
    known = {each.name: each.type for each in fields(SlurmOptions) if each.name not in without}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            told = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
            raise SpecquantError(f"{place}: there is no option {str(name)[:100]!r}: {told}")
        values[name] = tuple(value) if isinstance(value, list) else value
        if name == "notebooks":
            _options(value, f"{place}, notebooks", without=(name,))
        elif name in _NAMES and isinstance(value, str) and (not value or re.search(r"\s", value)):
            raise SpecquantError(f"{place}: {name} is {value!r}: give one word, or leave it out")
        else:
            least = 1 if name in ("time", "cpus_per_task", "mem_gb", "at_once") and value is not None else None
            require_type(f"{place}: {name}", values[name], known[name], least)
    return SlurmOptions(**values)


@dataclass(frozen=True)
class Slurm:
    """Jobs of Slurm, by submitit. The file system is shared between this machine and the nodes.

    Attributes:
        options: Of the jobs.
        cluster: A name that submitit knows: slurm; or local or debug, to try things out without Slurm.
        poll_s: Seconds between two looks at the queue.
        grace_s: Seconds to wait for the result of a job that has left the queue.
        by_srun: Whether a job's program is a step of its own (`srun`). A step is told when the job's time is over, but
            on some clusters it cannot submit jobs.
    """

    options: SlurmOptions
    cluster: str = "slurm"
    poll_s: float = 5.0
    grace_s: float = SEEN_AFTER_S
    by_srun: bool = True
    jobs = 1
    elsewhere = True

    def of_notebooks(self) -> "Slurm":
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return Slurm(**{**values, "options": self.options.of_notebooks(), "by_srun": False})

    def run(self, tasks: Sequence[Task], folder: Path) -> Told:
        """Run each task as a job, with its files in `folder`. The logs of jobs that failed stay there.

        Jobs that have not ended when the caller ends are cancelled, also where SIGTERM ends it.
        """
        if not tasks:
            return
        folder /= _stamp()
        jobs = self._submitted(tasks, folder)
        try:
            with sigterm_raised():  # by which Slurm ends the job of a notebook
                yield from self._watched(jobs, folder)
        finally:
            for job in jobs:
                with suppress(Exception):  # what cannot be reached is Slurm's
                    job.cancel(check=False)
            _remove_if_empty(folder)

    def _submitted(self, tasks: Sequence[Task], folder: Path) -> dict[Any, Task]:
        submitit = _submitit()
        kept = {} if self.cluster == "debug" else {f"{self.cluster}_max_num_timeout": 0}
        jobs: dict[Any, Task] = {}
        try:
            executor = submitit.AutoExecutor(folder=folder, cluster=self.cluster, **kept)
            executor.update_parameters(name="specquant", slurm_use_srun=self.by_srun, **self.options.parameters())
            for first in range(0, len(tasks), MOST_OF_AN_ARRAY):
                some = tasks[first : first + MOST_OF_AN_ARRAY]
                with _as_no_job(), executor.batch():
                    made = [executor.submit(_Job(task)) for task in some]
                jobs |= dict(zip(made, some, strict=True))
        except (RuntimeError, OSError, submitit.core.utils.FailedJobError) as error:
            for job in jobs:
                job.cancel(check=False)
            reason = " ".join(str(error).split())[:300]
            raise SpecquantError(f"Slurm took no jobs ({reason}): mend the options, or leave --executor out") from None
        return jobs

    def _watched(self, jobs: dict[Any, Task], folder: Path) -> Told:
        """What jobs tell when they end, and their states as they change. Those that have ended leave `jobs`.

        Results are looked for by listing the folder: NFS tells at once what is in one, but for half a minute says of a
        file that was not there the last time that it is not.
        """
        states: dict[Any, str] = {}
        gone_since: dict[Any, float] = {}
        while jobs:
            queue, there = self._queue(list(jobs)), _names(folder)
            for job, task in list(jobs.items()):
                log, state = str(job.paths.stderr), queue.get(job.job_id)
                if self.cluster == "debug" or job.paths.result_pickle.name in there:
                    told = _ended(job)
                elif state is None and time.monotonic() - gone_since.setdefault(job, time.monotonic()) > self.grace_s:
                    told = [{"ended": None, "log": log, "why": "left the queue without a result"}]
                else:
                    if state is not None:
                        gone_since.pop(job, None)
                    if state not in (None, states.get(job)):
                        states[job] = state
                        yield task, {"state": state, "log": log}
                    continue
                del jobs[job]
                yield from ((task, each) for each in told)
            if jobs:
                yield next(iter(jobs.values())), {}
                time.sleep(self.poll_s)

    def _queue(self, jobs: Sequence[Any]) -> dict[str, str]:
        """The states of jobs that are queued or running, by their names. No answer: all unknown."""
        if self.cluster != "slurm":
            return {job.job_id: "running" for job in jobs if not job.done()}
        command = ["squeue", "--me", "--noheader", "--array", "--format=%i %T"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        except (OSError, subprocess.SubprocessError):
            return {job.job_id: "unknown" for job in jobs}
        lines = (line.split() for line in answer.splitlines())
        return {name: "queued" if state in _WAITING else "running" for name, state in lines}


_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SUSPENDED", "PREEMPTED")


class _Job:
    """What submitit runs on a node: a task in a fresh process. One that is preempted or requeued begins anew."""

    def __init__(self, task: Task):
        self.task = task

    def __call__(self) -> tuple[int, str]:
        environment = os.environ | self.task.environment
        command = [sys.executable, "-m", self.task.module]
        ended = subprocess.run(command, input=self.task.order, stdout=subprocess.PIPE, text=True, env=environment)
        if ended.returncode in (-signal.SIGTERM, TERMINATED):  # Slurm's, for it cancels or requeues: no result
            os._exit(TERMINATED)
        if ended.returncode == -signal.SIGUSR2:  # submitit is about to say whether the time is over
            time.sleep(60)
        return ended.returncode, ended.stdout

    def checkpoint(self) -> Any:
        return _submitit().helpers.DelayedSubmission(self)


def _ended(job: Any) -> list[dict[str, Any]]:
    """What a job told that has a result. Its files are removed if all went well."""
    log = str(job.paths.stderr)
    try:
        status, lines = job.result()
    except Exception as error:  # whatever went wrong there comes as an exception of its own
        return [{"ended": None, "log": log, "why": _reason(error)}]
    if status == 0:
        paths = job.paths
        for path in (paths.stdout, paths.stderr, paths.submitted_pickle, paths.result_pickle):
            with suppress(OSError):
                path.unlink(missing_ok=True)
    return [*_objects(lines), {"ended": status, "log": log if status else None}]


def _reason(error: Exception) -> str:
    """Why a job has no result, in a few words: submitit tells a traceback, and where logs are."""
    told = str(error).partition("You can check full logs")[0]
    if "timed-out too many times" in told:
        return "its time is over"
    last = ([line for line in told.splitlines() if line.strip(" -")] or [type(error).__name__])[-1]
    return " ".join(last.split())[:300]


@contextmanager
def _as_no_job() -> Iterator[None]:
    """The environment without what makes this process part of a job, so that it can submit others as well."""
    configuration = {name: value for name, value in os.environ.items() if name == "SLURM_CONF"}
    with _submitit().helpers.clean_env():
        os.environ.update(configuration)
        yield


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise SpecquantError("jobs of Slurm need submitit: pip install 'specquant[slurm]'") from None
    return submitit


def _names(folder: Path) -> set[str]:
    """Of the files in a folder; none while it cannot be listed."""
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _stamp() -> str:
    """A name for the files of one call, so that two commands at once do not share any."""
    return f"{datetime.now():%Y%m%d-%H%M%S}-{uuid4().hex[:6]}"


def _remove_if_empty(folder: Path) -> None:
    """Remove the folder of jobs where no log is left."""
    if not list(folder.glob("*.log")) + list(folder.glob("*_log.err")):
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            folder.parent.rmdir()  # unless another command's are there


@contextmanager
def chosen(
    executor: str = "here", jobs: int = 1, slurm: str | Path | None = None, for_several: bool = False
) -> Iterator[None]:
    """Until the end of the block, an executor runs what this process records, and what the processes do that it starts.

    Args:
        executor: here or slurm.
        jobs: Processes at a time, here.
        slurm: The file of Slurm's options (default: notebooks/slurm.yaml).
        for_several: As of `Here`.

    Raises:
        SpecquantError: for a file that is not there or holds something else, and options that do not belong together.
    """
    if executor == "here" and jobs == 1 and slurm is None:
        yield
        return
    if executor == "here" and slurm is not None:
        raise SpecquantError("--slurm is for --executor slurm")
    if executor == "slurm" and jobs != 1:
        raise SpecquantError("--jobs is for --executor here: of Slurm's jobs, at_once in its file says how many run")
    handed_on: dict[str, Any] = {"jobs": jobs, "for_several": for_several}
    variables = {}
    if executor == "slurm":
        _submitit()
        options = read_options(slurm or SLURM_FILE)
        handed_on = {"options": asdict(options)}
        variables = {DEVICE_OF_JOBS: options.device}
    variables[EXECUTOR] = json.dumps(handed_on)
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def current() -> Here | Slurm:
    """The executor that was chosen by the command that started this process; `Here` by default."""
    handed_on = os.environ.get(EXECUTOR)
    if not handed_on:
        return Here()
    values = json.loads(handed_on)
    if "options" not in values:
        return Here(**values)
    options = values.pop("options")
    return Slurm(SlurmOptions(**options | {"setup": tuple(options.get("setup", ()))}), **values)
