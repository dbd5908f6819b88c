"""Clocks that wait for the device, and how the times of repeats are told."""

from collections.abc import Sequence
from time import perf_counter

import numpy as np
import torch


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def spread(times_ms: Sequence[float]) -> dict[str, float]:
    """The columns time_ms, the median, p10_ms and p90_ms."""
    return {"time_ms": np.median(times_ms), "p10_ms": np.quantile(times_ms, 0.1), "p90_ms": np.quantile(times_ms, 0.9)}
