"""Schedules for a given time: how many steps fit is measured once, before the first."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from specquant.errors import SpecquantError
from specquant.files import write_file
from specquant.training.fit import Schedule

TIMED_STEPS = 8  # or fewer, where they would take more than a share of the time
TIMING_SHARE = 0.1
SHARE_FOR_STEPS = 0.9  # of the time; the rest is for the optimizer, evaluations and checkpoints
EVALUATIONS = 10


def fitting(
    schedule: Schedule, seconds: float, module: nn.Module, loss_at: Callable[[int], torch.Tensor], record: Path
) -> Schedule:
    """A schedule with as many steps as fit into a time.

    Args:
        schedule: All but the number of steps.
        seconds: How long to learn.
        module: What learns; its weights stay.
        loss_at: The loss of a step.
        record: A file that keeps the number, so that an interrupted run goes on with the same.

    Returns:
        The schedule.
    """
    if not record.is_file():
        module.train()
        times = []
        # The first step is not counted: a compiler may be at work.
        while len(times) < 3 or (len(times) <= TIMED_STEPS and times[-1] - times[0] < TIMING_SHARE * seconds):
            loss_at(len(times)).backward()
            module.zero_grad(set_to_none=True)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.monotonic())
        each = min(after - before for before, after in pairwise(times))
        left = max(0.0, seconds - (times[-1] - times[0]))
        write_file(record, json.dumps({"steps": max(1, round(SHARE_FOR_STEPS * left / each))}))
    steps = _steps(record)
    warmup = min(schedule.warmup_steps, max(1, steps // 10))
    return replace(schedule, steps=steps, warmup_steps=warmup, evaluate_every=max(1, -(-steps // EVALUATIONS)))


def _steps(record: Path) -> int:
    """The number that a file keeps. Raises SpecquantError where it keeps none."""
    try:
        steps = json.loads(record.read_text(encoding="utf-8"))["steps"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        steps = None
    if type(steps) is not int or steps < 1:
        raise SpecquantError(f"{record} does not say how many steps were begun: remove it and {record.stem}.pt")
    return steps
