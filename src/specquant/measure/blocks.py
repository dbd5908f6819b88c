"""Timing in blocks: each thing many times after itself, warmed up, and the blocks in random order.

What runs behind something larger finds the card in another state (`measure.settling`), so nothing is timed in turns.
Where one product is launched behind the other, the card's clock may fall, further in one process than in another. So
the card rests behind each run of products or attention, and waits before it until the host has launched it
(`docs/measuring.md`).
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter, sleep
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch

from specquant.measure.card import CardState
from specquant.measure.measure import Measured
from specquant.measure.parameters import Common, OnGpu

GRAPH_US = 1500  # a run of launches takes about this long on a GPU
CYCLES_OF_MS = 2_000_000  # of a GPU at 2 GHz: at a lower clock it waits longer
TRIES = 5  # of a run that the host launched too late


@dataclass(frozen=True)
class Blocks:
    """count: blocks of each thing. repeats: timed runs of a block, behind warm_ups runs and warm_up_ms, whichever is
    longer. rest_over_run: how long the device idles behind each run, over the run's own time. delay_ms: how long a GPU
    waits before each run (`device_ms`)."""

    count: int = 2
    repeats: int = 20
    warm_ups: int = 8
    warm_up_ms: float = 200.0
    rest_over_run: float = 0.0
    delay_ms: float = 0.0


class Time(NamedTuple):
    """How long a run took, and how long the host took to launch it, from the call until it returned: NaN on a CPU, None
    where that is no part of the time."""

    ms: float
    launch_us: float | None = None


Clock = Callable[[Callable[[], object], torch.device], Time]


@dataclass(frozen=True, kw_only=True)
class InBlocks(Common):
    """Parameters of what is timed in blocks.

    Attributes:
        processes: Fresh interpreters, each of which measures everything, for intervals.
        blocks: Of each thing that is timed, in a process.
        repeats: Timed runs of a block, after the warm-up.
        warm_up_ms: For how long a thing runs before it is timed.
        seed: Of what is random, and of the order.
    """

    processes: int = 3
    blocks: int = 1
    repeats: int = 20
    warm_up_ms: float = 200.0
    seed: int = 0

    warm_up_passes = 8  # runs before those that are timed, if that is longer; not annotated, as `Common.repeats`
    rest_over_run = delay_ms = 0.0  # not annotated, likewise
    shared: ClassVar[tuple[str, ...]] = ("blocks", "repeats", "warm_up_ms", "seed")

    @property
    def block(self) -> Blocks:
        return Blocks(
            self.blocks, self.repeats, self.warm_up_passes, self.warm_up_ms, self.rest_over_run, self.delay_ms
        )

    def order(self, *names: object) -> random.Random:
        """What draws an order: of a process, or of the part of one that has these names."""
        return random.Random(" ".join(map(str, (self.seed, *names))))


@dataclass(frozen=True, kw_only=True)
class Launches(OnGpu):
    """Parameters of launches on a GPU that are timed as runs of many (`repeated`).

    Attributes:
        rest_over_run: How many times as long as each run the card rests behind it. Without rests it may slow down.
        delay_ms: For how long the card waits before each run, while the host launches it. Without it the launch is
            timed, too.
    """

    rest_over_run: float = 2.0  # a card that runs a third of the time should stay below its limit of power
    delay_ms: float = 0.5  # a launch takes some 0.05 ms, and four times as long on a busy host

    shared: ClassVar[tuple[str, ...]] = ("rest_over_run", "delay_ms")

    def unnamed(self) -> dict[str, Any]:
        return super().unnamed() | {"rest_over_run": 0.0, "delay_ms": 0.0}


@dataclass(frozen=True, kw_only=True)
class LaunchesInBlocks(Launches, InBlocks):
    """Parameters of launches on a GPU that are timed in blocks (`launches_in_blocks`).

    Attributes:
        warm_up_ms: For how long a thing runs, and rests, before it is timed.
    """

    warm_up_ms: float = 100.0

    warm_up_passes = 1  # of many launches
    shared: ClassVar[tuple[str, ...]] = (*Launches.shared, *InBlocks.shared)

    def each(self, units: Sequence[dict], rows: Callable[[dict, random.Random], pd.DataFrame]) -> Measured:
        """The rows of each unit of a process. Units come in random order, which is drawn for each process."""
        order = self.order(units[0]["process"])
        for unit in order.sample(units, len(units)):
            yield unit, rows(unit, order)


def in_blocks(
    runs: Mapping[Any, Callable[[], object]],
    device: torch.device,
    blocks: Blocks,
    order: random.Random,
    clock: Clock | None = None,
) -> pd.DataFrame:
    """Time each of `runs` in blocks of its own, which come in random order.

    Returns a row for each block: `what`, the key of the run; block; place, its position in the order; median, p10 and
    p90 in milliseconds; the median `launch_us`, if `clock` tells it; the card's mean clock and power. What a CPU does
    not have is NaN. clock: times one run; `host_time` by default.
    """
    clock = clock or host_time
    all_blocks, rows = [(what, block) for what in runs for block in range(blocks.count)], []
    for place, (what, block) in enumerate(order.sample(all_blocks, len(all_blocks))):
        began, warmed_up = now(device), 0
        while warmed_up < blocks.warm_ups or 1e3 * (now(device) - began) < blocks.warm_up_ms:
            rested(runs[what], device, clock, blocks.rest_over_run)
            warmed_up += 1
        with CardState(device) as card:
            times = [rested(runs[what], device, clock, blocks.rest_over_run) for _ in range(blocks.repeats)]
        row = {"what": what, "block": block, "place": place, "repeats": blocks.repeats}
        rows.append(row | of_block(times) | card.mean())
    return pd.DataFrame(rows)


def rested(run: Callable[[], object], device: torch.device, clock: Clock, rest_over_run: float) -> Time:
    """How long one run takes by `clock`. Behind it the device idles `rest_over_run` times as long."""
    time = clock(run, device)
    if rest_over_run:
        sleep(rest_over_run * time.ms / 1e3)
    return time


def host_time(run: Callable[[], object], device: torch.device) -> Time:
    """How long one run takes, from an idle device to an idle device. On a GPU that begins with launching it.

    The clock is read once more behind the launch, while the device works, which makes nothing longer.
    """
    began = now(device)
    run()
    launched = perf_counter()
    ms = 1e3 * (now(device) - began)
    return Time(ms, 1e6 * (launched - began) if device.type == "cuda" else math.nan)


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def spread(times_ms: Sequence[float]) -> dict[str, float]:
    """The columns time_ms, the median, p10_ms and p90_ms."""
    return {"time_ms": np.median(times_ms), "p10_ms": np.quantile(times_ms, 0.1), "p90_ms": np.quantile(times_ms, 0.9)}


def of_block(times: Sequence[Time]) -> dict[str, float]:
    """The columns of `spread`, and launch_us, the median, where times tell it."""
    launches_us = [time.launch_us for time in times if time.launch_us is not None]
    return spread([time.ms for time in times]) | ({"launch_us": np.median(launches_us)} if launches_us else {})


def device_ms(run: Callable[[], object], device: torch.device, delay_ms: float = 0.0) -> float:
    """How long one run takes on the device.

    delay_ms: how long a GPU waits first, while the host launches the run. Where the host is not done by then the run is
    timed again, TRIES times at most. Without a delay the launch is timed, too.
    """
    if device.type != "cuda":
        return host_time(run, device).ms
    for _ in range(TRIES):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if delay_ms:
            torch.cuda._sleep(round(delay_ms * CYCLES_OF_MS))
        start.record()
        run()
        launched_in_time = not start.query()
        stop.record()
        stop.synchronize()
        if launched_in_time or not delay_ms:
            break
    return start.elapsed_time(stop)


def device_time(delay_ms: float) -> Clock:
    """`device_ms` behind so long a delay, in which the host launches: how long it took is no part of that."""
    return lambda run, device: Time(device_ms(run, device, delay_ms))


def repeated(launch: Callable[[int], object], turns: int, device: torch.device) -> tuple[Callable[[], object], int]:
    """What is too short to be timed alone, as one run of many launches, and how many: a CUDA graph for about GRAPH_US.

    launch: called with each of `turns` in order, so that it may take other memory each time. On a CPU a run is a plain
    loop over the turns.
    """

    def in_turn() -> None:
        for turn in range(turns):
            launch(turn)

    launch(0)
    if device.type != "cuda":
        return in_turn, turns
    rounds = max(1, round(GRAPH_US / max(1e3 * device_ms(in_turn, device), 1)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            in_turn()
    return graph.replay, rounds * turns


def replay_times_us(
    launch: Callable[[int], object],
    turns: int,
    repeats: int,
    device: torch.device | str = "cuda",
    rest_over_run: float = 0.0,
    delay_ms: float = Launches.delay_ms,
) -> torch.Tensor:
    """Times in microseconds [repeats] of one launch, from runs (`repeated`) behind one such run, each `rested`."""
    device = torch.device(device)
    clock = device_time(delay_ms)
    run, count = repeated(launch, turns, device)
    run()
    return torch.tensor([1e3 * rested(run, device, clock, rest_over_run).ms for _ in range(repeats)]) / count


def launches_in_blocks(
    launches: Mapping[Any, tuple[Callable[[int], object], int]],
    device: torch.device,
    blocks: Blocks,
    order: random.Random,
) -> pd.DataFrame:
    """As `in_blocks`, of launches (`repeated`), each with its number of turns: times are of one, in microseconds."""
    runs = {what: repeated(launch, turns, device) for what, (launch, turns) in launches.items()}
    clock = device_time(blocks.delay_ms)
    rows = in_blocks({what: run for what, (run, _) in runs.items()}, device, blocks, order, clock)
    counts = [runs[what][1] for what in rows["what"]]
    for name in ("time", "p10", "p90"):
        rows[f"{name}_us"] = 1e3 * rows.pop(f"{name}_ms") / counts
    return rows
