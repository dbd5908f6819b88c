"""A measurement that sleeps: what executors do with units, without what units cost."""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pandera.pandas as pa
import torch

from specquant.errors import SpecquantError
from specquant.measure.measure import NO_CLOCK, Measure, Measured
from specquant.measure.parameters import Common
from specquant.tables.table import Table, count, text

FULL = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 139.80 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)


@dataclass(frozen=True, kw_only=True)
class Parameters(Common):
    """Parameters of units that sleep.

    Attributes:
        count: How many there are.
        seconds: For how long each sleeps.
        notes: A folder where each unit notes that it began.
        dying: The units whose process dies.
        refusing: The units that have an error in a sentence.
        full: The units that find the memory of a GPU full, every second one as cuBLAS says it.
    """

    count: int = 3
    seconds: float = 0.0
    notes: Path = Path("nowhere")
    dying: tuple[int, ...] = ()
    refusing: tuple[int, ...] = ()
    full: tuple[int, ...] = ()
    device: str = "cpu"

    shared = ("seconds",)

    def units(self) -> list[dict[str, Any]]:
        return [{"weights": "synthetic", "process": process} for process in range(self.count)]


def run(parameters: Parameters, units: Sequence[dict[str, Any]]) -> Measured:
    for unit in units:
        with (parameters.notes / str(unit["process"])).open("a") as file:
            file.write("began\n")
        if unit["process"] in parameters.dying:
            print("the reason why it died", file=sys.stderr, flush=True)
            os._exit(3)
        if unit["process"] in parameters.refusing:
            raise SpecquantError("this unit cannot be measured: leave it out")
        if unit["process"] in parameters.full:
            raise FULL[unit["process"] % 2]
        time.sleep(parameters.seconds)
        yield unit, pd.DataFrame({"size": [1, 2], "square": [unit["process"] ** 2] * 2})


TABLE = Table(
    "sleeping",
    unit=("weights", "process"),
    row=("size",),
    schema=pa.DataFrameSchema({"weights": text(), "process": count(0), "size": count(), "square": count(0)}),
)
MEASURE = Measure((TABLE,), Parameters, run, NO_CLOCK)
TIMED = Measure((TABLE,), Parameters, run, "time.sleep")
