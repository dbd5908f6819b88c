"""How every network learns: on a text, by a loss of its batches, for a number of steps or for a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from specquant.training.fit import Schedule, fit
from specquant.training.timed import fitting

Loss = Callable[[Any], torch.Tensor]  # of a batch


class Text(Protocol):
    """What a network learns from."""

    def batch(self, step: int) -> Any:
        """What a step reads; it depends on nothing but the step."""

    def mean_loss(self, loss: Loss) -> float:
        """A loss on what is held out, by which the best weights are chosen."""


def learn(
    name: str,
    module: nn.Module,
    text: Text,
    loss: Loss,
    schedule: Schedule,
    seed: int,
    checkpoints: Path,
    seconds: float | None = None,
) -> dict:
    """Train a network; the weights with the lowest held-out loss stay in it.

    Args:
        name: What it is called in progress bars and checkpoints.
        module: What learns.
        text: What it learns from.
        loss: Of a batch of that.
        schedule: The optimizer's.
        seed: Of dropout and noise.
        checkpoints: The folder of what an interrupted call goes on from.
        seconds: How long; None for the schedule's own number of steps.

    Returns:
        What `fit` says, and "steps".
    """

    def loss_at(step: int) -> torch.Tensor:
        return loss(text.batch(step))

    if seconds is not None:
        schedule = fitting(schedule, seconds, module, loss_at, checkpoints / f"{name}.json")
    run = fit(name, module, loss_at, lambda: text.mean_loss(loss), schedule, seed, checkpoints / f"{name}.pt")
    return run | {"steps": schedule.steps}
