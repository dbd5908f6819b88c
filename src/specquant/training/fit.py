"""One training loop for all four networks: AdamW or Muon, warm-up and cosine, checkpoints, the best weights kept."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from specquant.errors import SpecquantError, lacks_memory
from specquant.progress import tqdm


@dataclass(frozen=True)
class Schedule:
    """How long and how fast one network learns."""

    steps: int
    learning_rate: float
    weight_decay: float
    muon: bool = False  # for the matrices between embedding and LM head; AdamW for the rest
    warmup_steps: int = 100
    evaluate_every: int = 250

    def factor(self, step: int) -> float:
        """The learning rate at a step, as a fraction of its peak: a linear warm-up, then half a cosine to zero."""
        warmup = min(self.warmup_steps, self.steps // 2)
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (self.steps - warmup)))


def optimizers_of(module: nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """The optimizers of a module's trainable parameters: AdamW, after Muon where the schedule asks for it.

    Muon (Jordan et al., 2024) orthogonalizes each matrix's update; scaled as in arXiv 2502.16982 it takes AdamW's
    learning rates and weight decay.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    ends = ("embed_tokens", "lm_head")
    hidden = [
        p for name, p in trainable.items() if schedule.muon and p.ndim == 2 and not any(end in name for end in ends)
    ]
    others = [p for p in trainable.values() if not any(p is matrix for matrix in hidden)]
    settings = {"lr": schedule.learning_rate, "weight_decay": schedule.weight_decay}
    muon = [torch.optim.Muon(hidden, **settings, adjust_lr_fn="match_rms_adamw")] if hidden else []
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in others if p.ndim >= 2]},
            {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
        ],
        **settings,
        betas=(0.9, 0.98),
        fused=others[0].is_cuda,
    )
    return [*muon, adamw]


def fit(
    name: str,
    module: nn.Module,
    loss_at: Callable[[int], torch.Tensor],
    held_out_loss: Callable[[], float],
    schedule: Schedule,
    seed: int,
    checkpoint: Path,
    checkpoint_every: int = 500,
) -> dict:
    """Minimize loss_at(step) over the module's trainable parameters; leave the best held-out weights in it.

    Returns {"seconds", "curve"}; the curve's points are {"step", "train_loss" (mean since the last point),
    "held_out_loss"}. After an interruption the same call continues from `checkpoint`; the result is that of an
    uninterrupted run, since batches, dropout and noise depend on the seed and the step alone. Called again after the
    end, it only loads the result.
    """
    run = _Run(module, schedule, checkpoint)
    run.resume()
    started = time.monotonic() - run.seconds
    module.train()
    with tqdm(total=schedule.steps, initial=run.step, desc=name, unit="step", mininterval=2) as progress:
        while run.step < schedule.steps:
            torch.manual_seed(seed * 1_000_003 + run.step)
            run.learn(loss_at)
            progress.update()
            if run.step % schedule.evaluate_every == 0 or run.step == schedule.steps:
                run.evaluate(held_out_loss)
                point = run.curve[-1]
                progress.set_postfix(train=f"{point['train_loss']:.3f}", held_out=f"{point['held_out_loss']:.3f}")
            if run.step % checkpoint_every == 0 or run.step == schedule.steps:
                run.seconds = time.monotonic() - started
                run.save()
    module.load_state_dict(run.best)
    module.eval()
    return {"seconds": round(time.monotonic() - started, 1), "curve": run.curve}


class _Run:
    """How far a network has learnt, and the best weights so far."""

    def __init__(self, module: nn.Module, schedule: Schedule, checkpoint: Path):
        self.module, self.schedule, self.checkpoint = module, schedule, checkpoint
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizers = optimizers_of(module, schedule)
        self.step, self.seconds = 0, 0.0
        self.curve: list[dict] = []
        self.best: dict[str, torch.Tensor] = {}
        self.recent_loss = torch.zeros((), device=self.parameters[0].device)  # since the last point of the curve

    def learn(self, loss_at: Callable[[int], torch.Tensor]) -> None:
        """One step."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.schedule.learning_rate * self.schedule.factor(self.step)
        loss = loss_at(self.step)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.module.zero_grad(set_to_none=True)
        self.recent_loss += loss.detach()
        self.step += 1

    def evaluate(self, held_out_loss: Callable[[], float]) -> None:
        """Add a point to the curve, and keep the weights if they are the best."""
        self.module.eval()
        held_out = held_out_loss()
        self.module.train()
        steps_since = self.step - (self.curve[-1]["step"] if self.curve else 0)
        train_loss = self.recent_loss.item() / steps_since
        self.curve.append({"step": self.step, "train_loss": train_loss, "held_out_loss": held_out})
        self.recent_loss.zero_()
        if held_out <= min(point["held_out_loss"] for point in self.curve):
            self.best = {key: value.detach().clone() for key, value in self.module.state_dict().items()}

    def save(self) -> None:
        state = {"step": self.step, "curve": self.curve, "best": self.best, "seconds": self.seconds}
        if self.step < self.schedule.steps:
            state |= {"module": self.module.state_dict(), "recent_loss": self.recent_loss}
            state["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one. Raises SpecquantError where it is none of this network."""
        if not self.checkpoint.exists():
            return
        with _a_checkpoint(self.checkpoint):
            state = torch.load(self.checkpoint, map_location=self.recent_loss.device, weights_only=True)
            self.step, self.curve, self.best, self.seconds = (state[n] for n in ("step", "curve", "best", "seconds"))
            if self.step < self.schedule.steps:
                self.module.load_state_dict(state["module"])
                for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                    optimizer.load_state_dict(saved)
                self.recent_loss = state["recent_loss"]
            else:
                self.module.load_state_dict(self.best)


@contextmanager
def _a_checkpoint(path: Path) -> Iterator[None]:
    """Raises SpecquantError where what is read of a file is no checkpoint of what learns."""
    try:
        yield
    except Exception as error:  # torch raises whatever a damaged file makes of its reading
        if lacks_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise SpecquantError(f"{path} is no checkpoint of what is to be trained ({reason}): remove it") from None
