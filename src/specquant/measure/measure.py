"""How every question is measured: units that the table lacks, each process's in an interpreter of its own."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pandas as pd
from tqdm import tqdm

from specquant.errors import SpecquantError
from specquant.files import resolve
from specquant.tables.parts import Parts, Unit
from specquant.tables.table import Table


class Parameters(Protocol):
    """What a measurement takes: a frozen dataclass of values that JSON can hold, and of paths.

    Its fields are the options of the measurement's command, and its docstring says what they mean (`commands`).
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def device(self) -> str: ...

    @property
    def repeats(self) -> int: ...

    def check(self) -> None:
        """Raises SpecquantError, before anything is measured, for what cannot be."""

    def same(self) -> dict[str, Any]:
        """What all rows of one table must share."""

    def units(self) -> list[dict[str, Any]]:
        """The units of work, those of one process after each other."""


@dataclass(frozen=True)
class Measure:
    """A question. run: measures units, which are all of one process, and gives the rows of each, or why it has none.

    device: of the parameters, where it is measured. repeats, clock: as for `provenance`.
    """

    table: Table
    parameters: Callable[..., Parameters]
    run: Callable[[Any, Sequence[dict]], Iterator[tuple[dict, "pd.DataFrame | SpecquantError"]]]
    clock: str

    @property
    def name(self) -> str:
        return self.table.name


def record(measure: Measure, parameters: Parameters, out_dir: str | Path, anew: bool = False) -> Path:
    """Measure what the table in `out_dir` lacks, or with `anew` everything; returns the table's path.

    Each process of the parameters is a fresh interpreter, so that what it finds is independent of the others. The table
    is joined after each unit. What cannot be measured, such as a scheme that does not fit, is named on stderr and left
    out. Raises SpecquantError where the table holds rows of other parameters, a process dies, or nothing was measured.
    """
    parameters.check()
    path = resolve(out_dir) / f"{measure.name}.csv"
    if anew:
        shutil.rmtree(path.with_suffix(".parts"), ignore_errors=True)
        for old in (path, path.with_suffix(".json")):
            old.unlink(missing_ok=True)
    parts = Parts(measure.table, path, parameters.same())
    missing = parts.missing(parameters.units())
    with tqdm(total=len(missing), desc=measure.name, unit="unit", disable=None if missing else True) as bar:
        for _, units in groupby(missing, key=lambda unit: unit["process"]):
            for told in _fresh_process(measure, parameters, list(units), parts):
                if "error" in told:
                    raise SpecquantError(told["error"])
                if "left_out" in told:
                    tqdm.write(told["left_out"], file=sys.stderr)
                else:
                    parts.join()
                bar.update()
    return parts.join()


def _fresh_process(
    measure: Measure, parameters: Parameters, units: Sequence[Unit], parts: Parts
) -> Iterator[dict[str, Any]]:
    """What the process that measures these units tells, a line for each."""
    order = {"measure": measure.run.__module__, "parameters": asdict(parameters), "units": units}
    order |= {"path": str(parts.path), "same": parts.same}
    command = [sys.executable, "-m", "specquant.measure"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with suppress(BrokenPipeError):  # it has died already, which its status tells
                process.stdin.write(json.dumps(order, default=str))  # of paths
                process.stdin.close()
            yield from map(json.loads, process.stdout)
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise SpecquantError(
            f"the process that measured {measure.name} ended with status {process.returncode}: what had finished is "
            "kept, and the same command goes on from there"
        )


def serve(order: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """What a fresh process does: measure the units of an order, write each as a part, and tell of each."""
    measure: Measure = import_module(order["measure"]).MEASURE
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in order["parameters"].items()}
    parameters = measure.parameters(**values)
    parts = Parts(measure.table, Path(order["path"]), order["same"])
    how = {"device": parameters.device, "repeats": parameters.repeats, "clock": measure.clock}
    try:
        for unit, rows in measure.run(parameters, order["units"]):
            if isinstance(rows, SpecquantError):
                tell({"left_out": str(rows)})
            else:
                parts.add(unit, rows, **how)
                tell({"done": unit})
    except SpecquantError as error:
        tell({"error": str(error)})
