"""How every question is measured: units that the table lacks, each process's in an interpreter of its own."""

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import groupby
from pathlib import Path
from time import monotonic
from typing import Any

import pandas as pd
import torch

from specquant.errors import SpecquantError
from specquant.files import resolve
from specquant.measure.parameters import Common, from_json
from specquant.models.memory import NotEnoughMemory
from specquant.progress import tell, tqdm
from specquant.tables.parts import Parts, Unit
from specquant.tables.provenance import COMMAND, command_line
from specquant.tables.table import Table

# The rows of each unit, a frame for each table, or why it has none.
Measured = Iterator[tuple[dict[str, Any], pd.DataFrame | tuple[pd.DataFrame, ...] | SpecquantError]]


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


def record(measure: Measure, parameters: Common, out_dir: str | Path, anew: bool = False) -> Path:
    """Measure what the table in `out_dir` lacks, or with `anew` everything; returns the (first) table's path.

    Each process of the parameters is a fresh interpreter, so that what it finds is independent of the others. The table
    is joined as units are there. What cannot be measured, such as a scheme that does not fit, is named on stderr and
    left out. Raises SpecquantError where the table holds rows of other parameters, a process dies, or nothing was
    measured.
    """
    parameters.check()
    paths = [resolve(out_dir) / f"{table.name}.csv" for table in measure.tables]
    for path in paths if anew else ():
        shutil.rmtree(path.with_suffix(".parts"), ignore_errors=True)
        for old in (path, path.with_suffix(".json")):
            old.unlink(missing_ok=True)
    parts = _parts(measure, paths, parameters.same(), parameters.unnamed())
    units = parameters.units()
    lacking = [each.missing(units) for each in parts]
    missing = [unit for unit in units if any(unit in of_table for of_table in lacking)]
    try:
        _measure(measure, parameters, missing, parts)
    except BaseException:  # an interrupt, too: what is there shall be in the table
        with suppress(SpecquantError):
            _join(parts)
        raise
    return _join(parts)


def _measure(measure: Measure, parameters: Common, missing: Sequence[Unit], parts: Sequence[Parts]) -> None:
    """Measure units, those of each process in fresh interpreters, as many at once as there are to be workers."""
    next_join = 0.0
    with tqdm(total=len(missing), desc=measure.name, unit="unit", disable=None if missing else True) as bar:
        for _, of_process in groupby(missing, key=lambda unit: unit.get("process", 0)):
            together = list(of_process)
            shares = [together[place :: parameters.workers] for place in range(parameters.workers)]
            orders = [_order(measure, parameters, share, parts) for share in shares if share]
            for told in _fresh_process(measure, *orders):
                if "error" in told:
                    raise SpecquantError(told["error"])
                if "left_out" in told:
                    tell(told["left_out"])
                elif (began := monotonic()) > next_join:  # joining many takes its time, too
                    _join(parts)
                    next_join = monotonic() + 10 * (monotonic() - began)
                bar.update()


def _join(parts: Sequence[Parts]) -> Path:
    """Join the parts of each table; returns the first one's path."""
    paths = [each.join() for each in parts]
    return paths[0]


def _parts(measure: Measure, paths: Sequence[Path], same: dict[str, Any], unnamed: dict[str, Any]) -> list[Parts]:
    return [Parts(table, path, same, unnamed) for table, path in zip(measure.tables, paths, strict=True)]


def _order(measure: Measure, parameters: Common, units: Sequence[Unit], parts: Sequence[Parts]) -> str:
    """What `serve` is to do, as JSON."""
    order: dict[str, Any] = {"module": measure.run.__module__, "measure": measure.name}
    order |= {"parameters": asdict(parameters), "units": units, "paths": [each.path for each in parts]}
    return json.dumps(order | {"same": parts[0].same, "unnamed": parts[0].unnamed}, default=str)


def _fresh_process(measure: Measure, *orders: str) -> Iterator[dict[str, Any]]:
    """What processes that measure tell, one for each order, a line for each unit. All write to one pipe."""
    command = [sys.executable, "-m", "specquant.measure"]
    environment = os.environ | {COMMAND: command_line() or ""}
    reader, writer = os.pipe()
    processes: list[subprocess.Popen] = []
    with ExitStack() as stack:
        lines = stack.enter_context(open(reader, encoding="utf-8"))
        try:
            with open(writer, "wb") as told:
                for _ in orders:
                    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=told, text=True, env=environment)
                    processes.append(stack.enter_context(process))
            for process, order in zip(processes, orders, strict=True):
                assert process.stdin is not None
                with suppress(BrokenPipeError):  # it has died already, which its status tells
                    process.stdin.write(order)
                    process.stdin.close()
            yield from map(json.loads, lines)
        except BaseException:
            for process in processes:
                process.terminate()
            raise
    for status in (process.returncode for process in processes if process.returncode):
        raise SpecquantError(
            f"the process that measured {measure.name} ended with status {status}: what had finished is kept, and the "
            "same command goes on from there"
        )


def serve(order: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """What a fresh process does: measure the units of an order, write each as a part, and tell of each."""
    measures = (each for each in vars(import_module(order["module"])).values() if isinstance(each, Measure))
    measure = next(each for each in measures if each.name == order["measure"])
    parameters = from_json(measure.parameters, order["parameters"])
    if parameters.threads:
        torch.set_num_threads(parameters.threads)
    parts = _parts(measure, [Path(path) for path in order["paths"]], order["same"], order["unnamed"])
    how = {"device": parameters.device, "repeats": parameters.repeats, "clock": measure.clock}
    try:
        for unit, rows in measure.run(parameters, order["units"]):
            if isinstance(rows, SpecquantError):
                tell({"left_out": str(rows)})
            else:
                for each, frame in zip(parts, rows if isinstance(rows, tuple) else (rows,), strict=True):
                    each.add(unit, frame, **how)
                tell({"done": unit})
    except SpecquantError as error:
        tell({"error": str(error)})


def free(device: str) -> None:
    """Give back what the last model held."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def left_out(unit: Mapping[str, Any], error: NotEnoughMemory) -> SpecquantError:
    """Why a unit has no rows: its model does not fit."""
    scheme = f" in {unit['scheme']}" if "scheme" in unit else ""
    return SpecquantError(f"{unit['model']}{scheme} is left out: {error}")
