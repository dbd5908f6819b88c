"""What does a card do at best? Read and copy bandwidth, and the rates of square products."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import torch

from specquant.kernels.stream import read_triton
from specquant.measure.blocks import Launches, replay_times_us
from specquant.measure.measure import Measure, Measured
from specquant.measure.parameters import require_gpu
from specquant.tables.schemas import TABLES


@dataclass(frozen=True, kw_only=True)
class Parameters(Launches):
    """How often to time.

    Attributes:
        processes: Fresh interpreters, each of which measures everything, for intervals.
        device: cuda; only a GPU is measured.
        repeats: Of each rate in a process.
    """

    processes: int = 3
    repeats: int = 20

    shared: ClassVar[tuple[str, ...]] = (*Launches.shared, "repeats")

    def check(self) -> None:
        """Raises SpecquantError where there is no GPU, and for numbers out of range."""
        super().check()
        require_gpu(self.device)

    def units(self) -> list[dict[str, Any]]:
        return [{"weights": "synthetic", "process": process} for process in range(self.processes)]


def run(parameters: Parameters, units: Sequence[dict]) -> Measured:
    for unit in units:
        yield unit, measure_ceilings(parameters)


def measure_ceilings(parameters: Parameters) -> pd.DataFrame:
    """What the GPU reaches at best: read bandwidth, copy bandwidth and matrix rates (what, value, unit)."""
    rows, device = [], parameters.device

    def record(what: str, amount: float, unit: str, launch: Callable[[int], object]) -> None:
        rests = parameters.rest_over_run, parameters.delay_ms
        times_us = replay_times_us(launch, 4, parameters.repeats, device, *rests)
        rows.append({"what": what, "unit": unit, "value": amount / times_us.median().item() / 1e6})

    numbers = torch.randint(0, 1 << 30, (1 << 30,), dtype=torch.int32, device=device)
    first, second = numbers.chunk(2)
    record("read-only stream", numbers.nbytes, "TB/s", lambda _: read_triton(numbers))
    record("device-to-device copy (bytes read and written)", numbers.nbytes, "TB/s", lambda _: first.copy_(second))
    size = 8192
    a, b = torch.randn(2, size, size, device=device, dtype=torch.float16)
    record("fp16 product (cuBLAS)", 2 * size**3, "TFLOP/s", lambda _: a @ b.t())
    c, d = torch.randint(-127, 128, (2, size, size), device=device, dtype=torch.int8)
    record("int8 product (cuBLASLt)", 2 * size**3, "TOP/s", lambda _: torch._int_mm(c, d.t()))
    return pd.DataFrame(rows)


def read_bandwidth_tb_s(device: str) -> float:
    """How fast this GPU reads at best; NaN on a CPU, where nothing is measured."""
    return measure_ceilings(Parameters()).set_index("what").value["read-only stream"] if device == "cuda" else math.nan


MEASURE = Measure((TABLES["ceilings"],), Parameters, run, "replays of a CUDA graph, median")
