"""How every question is measured: units that the table lacks, each process's in an interpreter of its own.

Where these run is the executor's to say (`measure.executors`): one process after another here, or each unit as a job.
"""

import gc
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from specquant.errors import SpecquantError, full_memory_told
from specquant.files import resolve
from specquant.measure import executors
from specquant.measure.executors import Here, Slurm, Task
from specquant.measure.parameters import Common, from_json
from specquant.measure.states import States
from specquant.models.digest import by_name_alone
from specquant.models.memory import NotEnoughMemory
from specquant.models.synthetic import require_room
from specquant.progress import tell, tqdm
from specquant.tables.parts import Parts, Unit
from specquant.tables.provenance import COMMAND, command_line, device_name
from specquant.tables.sources import NO_CLOCK, kernels_sha256, needs_kernels
from specquant.tables.table import Table

# The rows of each unit, a frame for each table, or why it has none.
Measured = Iterator[tuple[dict[str, Any], pd.DataFrame | tuple[pd.DataFrame, ...] | SpecquantError]]
SHARE_OF_JOINS = 0.05  # a join of some time is followed by 1 / 0.05 of it without one, but for the last


@dataclass(frozen=True)
class Measure:
    """A question.

    Attributes:
        tables: What is written; a question may fill several at once. The first gives the question its name.
        parameters: Their class.
        run: Measures units, which are all of one process, and gives the rows of each, or why it has none: a frame for
            each table.
        clock: As for `provenance`.
    """

    tables: tuple[Table, ...]
    parameters: type[Common]
    run: Callable[[Any, Sequence[dict[str, Any]]], Measured]
    clock: str

    @property
    def name(self) -> str:
        return self.tables[0].name

    @property
    def timed(self) -> bool:
        return self.clock != NO_CLOCK


def record(measure: Measure, parameters: Common, out_dir: str | Path, anew: bool = False) -> Path:
    """Measure what the table in `out_dir` lacks, or with `anew` everything; returns the (first) table's path.

    Each process of the parameters is a fresh interpreter, so that what it finds is independent of the others; where
    several run at a time, or jobs, each unit is. The table is joined as units end. What cannot be measured, such as a
    scheme that does not fit, is named on stderr and left out. A process that dies does not stop the others.

    Raises SpecquantError where the table holds rows of other parameters or kernels, a process died, or nothing was
    measured.
    """
    executor = executors.current()
    if measure.timed and isinstance(executor, Here):
        executor = executor.require_alone(measure.name)
    parameters.check()
    paths = [resolve(out_dir) / f"{table.name}.csv" for table in measure.tables]
    for path in paths if anew else ():
        shutil.rmtree(path.with_suffix(".parts"), ignore_errors=True)
        for old in (path, path.with_suffix(".json")):
            old.unlink(missing_ok=True)
    same = parameters.same()
    if executor.elsewhere:
        del same["device"]  # is that of the jobs
    parts = _parts(measure, parameters, paths, same, parameters.unnamed())
    units = parameters.units()
    for name in ("model", "intermediate"):
        if any(unit.get(name) == "" for unit in units):
            raise SpecquantError(f"the {name} has no name that a table could call it by: give it one, or its full path")
    lacking = [each.missing(units) for each in parts]
    for each in parts:
        _tell_by_name_alone(parameters, each)
    missing = [unit for unit in units if any(unit in of_table for of_table in lacking)]
    if parameters.device == "cpu" and not executor.elsewhere:  # on a GPU each process looks: to look takes memory there
        missing = _that_fit(parameters, missing)
    raise_failures(_measure_all(measure, parameters, missing, parts, executor), "processes")
    joined = [each.join() for each in parts]
    return joined[0]


def _that_fit(parameters: Common, units: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The units whose synthetic models fit this machine's memory; of the others it is said once for the same models."""
    fit: dict[str, bool] = {}
    known: dict[str, str] = {}  # the models of each unit, whichever its process
    for unit in units:
        work = _of_any_process(unit)
        if work in known:
            continue
        models = parameters.synthetic(unit)
        known[work] = which = f"{unit.get('model')} {models}"
        if which not in fit:
            try:
                require_room(models, parameters.device)
                fit[which] = True
            except NotEnoughMemory as error:
                tell(str(left_out(unit, error)))
                fit[which] = False
    return [unit for unit in units if fit[known[_of_any_process(unit)]]]


def _of_any_process(unit: Unit) -> str:
    return str(dict(unit) | {"process": None})


def _tell_by_name_alone(parameters: Common, parts: Parts) -> None:
    """Say what a table is gone on with that was begun before tables told models and files of one name apart."""
    if told := parts.told():
        parts.by_name_alone = parameters.by_name_alone(*told)
    if parts.by_name_alone:
        tell(f"{parts.path}: {by_name_alone(parts.by_name_alone)}")


def _measure_all(
    measure: Measure, parameters: Common, missing: Sequence[Unit], parts: list[Parts], executor: Here | Slurm
) -> list[str]:
    """Measure units and join the table in the meantime; returns what went wrong, a sentence for each process."""
    together = executor.jobs == 1 and not executor.elsewhere
    by_process = [list(units) for _, units in groupby(missing, key=lambda unit: unit.get("process", 0))]
    tasks = [
        _task(measure, parameters, units, parts) for units in (by_process if together else [[unit] for unit in missing])
    ]
    for each in parts:
        each.forget_device()
    bar = tqdm(total=len(missing), desc=measure.name, unit="unit", disable=None if missing else True)
    done = list[Unit]()
    with bar, _joined_as_it_grows(parts) as join_if_due:

        def heard(task: Task, told: dict[str, Any]) -> None:
            if "error" in told and together:  # the same would be wrong in the others
                raise SpecquantError(told["error"])
            if "left_out" in told:
                tell(told["left_out"])
                bar.update()
            elif "done" in told:
                done.append(told["done"])
                join_if_due()
                bar.update()

        of_all = f"the process that measured {measure.name}" if together else None
        failed = watched(executor, tasks, parts[0].path.with_suffix(".jobs"), bar, heard, of_all)
    if executor.elsewhere and not failed:
        for each in parts:
            each.wait_for(done)
    return failed


def watched(
    executor: Here | Slurm,
    tasks: Sequence[Task],
    folder: Path,
    bar: tqdm,
    heard: Callable[[Task, dict[str, Any]], None],
    name: str | None = None,
) -> list[str]:
    """Run tasks; returns what went wrong, a sentence for each of them.

    Args:
        executor: What runs them.
        tasks: What is run.
        folder: For their logs.
        bar: Shows how many jobs are queued, and how many run.
        heard: Called with each task and what it told.
        name: What all tasks are called. Without it each has its own name, and what went wrong is said at once.
    """
    failed = []
    with States(folder.stem, tasks if executor.elsewhere else ()) as states:
        for task, told in executor.run(tasks, folder):
            if executor.elsewhere:
                states.take(task, told)
                bar.set_postfix_str(str(states), refresh="state" in told)
            heard(task, told)
            if "error" in told:
                failed.append(f"{task.name}: {told['error']}")
            elif told.get("ended", 0) != 0:
                why = told.get("why") or f"ended with status {told['ended']}"
                failed.append(f"{name} {why}" if name else f"{task.name} failed ({why}; its log is {told['log']})")
                if not name:
                    tell(failed[-1])
    return failed


def raise_failures(failed: Sequence[str], what: str) -> None:
    """Raises SpecquantError where something went wrong (`watched`). what: processes, or jobs."""
    if failed:
        all_of_them = f"{len(failed)} {what} failed, the first of them: " if len(failed) > 1 else ""
        kept = "what had finished is kept, and the same command goes on from there"
        raise SpecquantError(f"{all_of_them}{failed[0]}: {kept}")


@contextmanager
def _joined_as_it_grows(parts: Sequence[Parts]) -> Iterator[Callable[[], None]]:
    """What to call when a unit is done. It joins the table in a small share of the time, for that takes longer as the
    table grows; what is left is joined at the end, also after an interruption."""
    due_at, left = 0.0, False

    def join() -> None:
        nonlocal due_at, left
        began, left = time.monotonic(), False
        for each in parts:
            each.join()
        due_at = time.monotonic() + (time.monotonic() - began) / SHARE_OF_JOINS

    def join_if_due() -> None:
        nonlocal left
        left = True
        if time.monotonic() >= due_at:
            join()

    try:
        yield join_if_due
    except BaseException:
        if left:
            with suppress(SpecquantError):  # what went wrong first is what counts
                join()
        raise
    if left:
        join()


def _parts(
    measure: Measure, parameters: Common, paths: Sequence[Path], same: dict[str, Any], unnamed: dict[str, Any]
) -> list[Parts]:
    kernels = kernels_sha256() if needs_kernels(parameters.device, measure.clock) else None
    return [Parts(table, path, same, unnamed, kernels) for table, path in zip(measure.tables, paths, strict=True)]


def _task(measure: Measure, parameters: Common, units: Sequence[Unit], parts: Sequence[Parts]) -> Task:
    """A process that measures units, by `serve`."""
    order: dict[str, Any] = {"served_by": __name__, "module": measure.run.__module__, "measure": measure.name}
    order |= {"parameters": asdict(parameters), "units": units, "paths": [each.path for each in parts]}
    order |= {"same": parts[0].same, "unnamed": parts[0].unnamed}
    environment = {**executors.OF_ITSELF, COMMAND: command_line() or ""}
    return Task(_names(measure, units[0]), "specquant.measure", json.dumps(order, default=str), environment)


def serve(order: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """What a fresh process does: measure the units of an order, write each as a part, and tell of each."""
    measures = (each for each in vars(import_module(order["module"])).values() if isinstance(each, Measure))
    measure = next(each for each in measures if each.name == order["measure"])
    parameters = from_json(measure.parameters, order["parameters"])
    if parameters.threads:
        torch.set_num_threads(parameters.threads)
    left = list(order["units"])
    try:
        with full_memory_told(lambda: _names(measure, left[0]) if left else ""):
            _serve(measure, parameters, order, left, tell)
    except SpecquantError as error:
        tell({"error": str(error)})


def _serve(
    measure: Measure,
    parameters: Common,
    order: dict[str, Any],
    left: list[Unit],
    tell: Callable[[dict[str, Any]], None],
) -> None:
    """Measure the units of an order; those that are done are taken from `left`."""
    device = device_name(parameters.device)
    same = {"device": device} | order["same"]
    how = {"device": parameters.device, "repeats": parameters.repeats, "clock": measure.clock}
    require_card(os.environ.get(executors.CARD), device)
    parts = _parts(measure, parameters, [Path(path) for path in order["paths"]], same, order["unnamed"])
    for each in parts:
        each.claim_device()
    units = [unit for unit in order["units"] if not all(each.holds(unit) for each in parts)]
    for unit in order["units"]:
        if unit not in units:  # another job was first
            tell({"done": unit})
            left.remove(unit)
    for unit, rows in measure.run(parameters, units) if units else ():
        if isinstance(rows, SpecquantError):
            tell({"left_out": str(rows)})
        else:
            for each, frame in zip(parts, rows if isinstance(rows, tuple) else (rows,), strict=True):
                each.add(unit, frame, **how)
            tell({"done": unit})
        if unit in left:
            left.remove(unit)


def _names(measure: Measure, unit: Unit) -> str:
    """A unit, for people."""
    return " ".join((measure.name, *(str(unit[name]) for name in measure.tables[0].unit if name in unit)))


def require_card(card: str | None, device: str | None) -> None:
    """Raises SpecquantError where a GPU's word is not in the name of the device; None is no GPU."""
    if card and card != "cpu" and card.lower() not in (device or "").lower().split():
        there = f"is {device}" if device else "has no GPU"
        raise SpecquantError(f"the tables are to be of the card {card}, and this machine {there}: name its own card")


def free(device: str) -> None:
    """Give back what the last model held."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def left_out(unit: Mapping[str, Any], error: SpecquantError) -> SpecquantError:
    """Why a unit has no rows, such as a model that does not fit."""
    scheme = f" in {unit['scheme']}" if "scheme" in unit else ""
    return SpecquantError(f"{unit['model']}{scheme} is left out: {error}")
