"""Timing in blocks: each thing many times after itself, warmed up, and the blocks in random order.

What runs behind something larger finds the card in another state (`measure.settling`), so nothing is timed in turns.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch

from specquant.measure.card import CardState


@dataclass(frozen=True)
class Blocks:
    """count: blocks of each thing. repeats: timed runs of a block, behind warm_ups runs and warm_up_ms, whichever is
    longer."""

    count: int = 2
    repeats: int = 20
    warm_ups: int = 8
    warm_up_ms: float = 200.0


def in_blocks(
    runs: Mapping[Any, Callable[[], object]], device: torch.device, blocks: Blocks, order: random.Random
) -> pd.DataFrame:
    """Time each of `runs` in blocks of its own, which come in random order.

    Returns a row for each block: `what`, the key of the run; block; place, its position in the order; median, p10 and
    p90 in milliseconds; on a GPU its mean clock and power.
    """
    all_blocks, rows = [(what, block) for what in runs for block in range(blocks.count)], []
    for place, (what, block) in enumerate(order.sample(all_blocks, len(all_blocks))):
        began, warmed_up = now(device), 0
        while warmed_up < blocks.warm_ups or 1e3 * (now(device) - began) < blocks.warm_up_ms:
            runs[what]()
            warmed_up += 1
        with CardState(device) as card:
            times_ms = [time_ms(runs[what], device) for _ in range(blocks.repeats)]
        row = {"what": what, "block": block, "place": place, "repeats": blocks.repeats}
        rows.append(row | spread(times_ms) | card.mean())
    return pd.DataFrame(rows)


def time_ms(run: Callable[[], object], device: torch.device) -> float:
    """How long one run takes, from an idle device to an idle device."""
    began = now(device)
    run()
    return 1e3 * (now(device) - began)


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def spread(times_ms: Sequence[float]) -> dict[str, float]:
    """The columns time_ms, the median, p10_ms and p90_ms."""
    return {"time_ms": np.median(times_ms), "p10_ms": np.quantile(times_ms, 0.1), "p90_ms": np.quantile(times_ms, 0.9)}
