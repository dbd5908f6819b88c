"""What does a GPU do in a pass, kernel by kernel? On random weights, for drafts of some sizes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from specquant.errors import SpecquantError
from specquant.measure.checks import require_draft_sizes
from specquant.measure.measure import Measure, Measured, free, left_out
from specquant.measure.parameters import OnGpu, require_gpu
from specquant.measure.passes import prepare_passes
from specquant.models.llama import Llama
from specquant.models.memory import NotEnoughMemory
from specquant.models.synthetic import synthetic_config, synthetic_model
from specquant.tables.schemas import TABLES

# Parts of a pass, by what the names of their kernels contain; whatever is none of these is a matrix product.
PARTS = {
    "attention": "_attend|_join",
    "norms": "norm",
    "SwiGLU": "swiglu",
    "rotation": "rotate",
    "other": "at::native|Mem|quantize",
    "idle": "^idle$",
}


@dataclass(frozen=True)
class Parameters(OnGpu):
    """What to profile: passes of a model's shapes with random weights on a GPU, each behind one other.

    Attributes:
        model: llama-3-8b or llama-3-70b, or a directory whose shapes are taken.
        device: cuda; only a GPU is measured.
        schemes: With commas; the command takes "all" for those that the shapes can have.
        draft_sizes: Tokens in a pass, with commas.
        context: Tokens in the cache.
        seed: Of the random weights.
    """

    model: str | Path
    schemes: tuple[str, ...] = ("all",)
    draft_sizes: tuple[int, ...] = (1, 60)
    context: int = 512
    seed: int = 0

    shared = ("context", "seed")

    def check(self) -> None:
        """Raises SpecquantError where there is no GPU, for unknown shapes, and for numbers out of range."""
        super().check()
        require_gpu(self.device)
        require_draft_sizes(self.draft_sizes)
        synthetic_config(self.model)

    def units(self) -> list[dict[str, Any]]:
        about: dict[str, Any] = {"model": Path(self.model).name, "weights": "synthetic", "context_length": self.context}
        return [
            {**about, "scheme": scheme, "draft_size": draft_size}
            for scheme in self.schemes
            for draft_size in self.draft_sizes
        ]


@torch.inference_mode()
def profile_pass(model: Llama, name: str, weights: str, draft_size: int, context_length: int = 256) -> pd.DataFrame:
    """What the GPU does in one such pass: a row for each kernel, the longest first, then one for the time between.

    launches: how often it starts; time_us: how long it runs in all; alone_us: the same without the time in which a
    kernel before it still ran, for which it waits (programmatic dependent launches overlap). alone_us, with that of
    `idle`, when none runs, sums to span_us, from the first kernel's start to the last one's end. Raises SpecquantError
    as `prepare_passes`, and where the model is not on a GPU.
    """
    if model.device.type != "cuda":
        raise SpecquantError("only passes on an NVIDIA GPU can be profiled")
    run = prepare_passes(model, [draft_size], context_length)[draft_size]
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize(model.device)
    kernels = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    spans = pd.DataFrame(
        ((event.name, event.time_range.start, event.time_range.end) for event in kernels),
        columns=["kernel", "start", "end"],
    ).sort_values("start")
    reached = spans.end.cummax().shift(fill_value=spans.start.min())
    alone_us = (spans.end - spans.start.clip(lower=reached)).clip(lower=0)
    groups = spans.assign(time_us=spans.end - spans.start, alone_us=alone_us).groupby("kernel", sort=False)
    table = (
        groups[["time_us", "alone_us"]].sum().assign(launches=groups.size()).sort_values("alone_us", ascending=False)
    )
    idle_us = (spans.start - reached).clip(lower=0).sum()
    table.loc["idle"] = {"launches": 0, "time_us": idle_us, "alone_us": idle_us}
    table["span_us"] = spans.end.max() - spans.start.min()
    table = table.astype({"launches": int})
    about: dict[str, Any] = {"model": name, "scheme": model.scheme.name, "weights": weights}
    about |= {"draft_size": draft_size, "context_length": context_length}
    columns = [*about, "kernel", "launches", "time_us", "alone_us", "span_us"]
    return table.reset_index(names="kernel").assign(**about)[columns]


def time_by_part(profiles: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds of each part of a pass, LM head among the products, and how many launches it has in all.

    profiles: rows of `profile_pass`. A row for each model, scheme and draft size; parts sum to `pass_ms`, the time from
    its first kernel to its last.
    """
    parts = pd.Series("products", profiles.index)
    for part, names in PARTS.items():
        parts[profiles.kernel.str.contains(names)] = part
    same = ["model", "scheme", "draft_size"]
    times = profiles.assign(part=parts, ms=profiles.alone_us / 1e3)
    table = times.pivot_table(index=same, columns="part", values="ms", aggfunc="sum", fill_value=0.0, sort=False)
    groups = profiles.groupby(same, sort=False)
    return table.reindex(columns=["products", *PARTS], fill_value=0.0).assign(
        pass_ms=groups.span_us.first() / 1e3, launches=groups.launches.sum()
    )


def run(parameters: Parameters, units: Sequence[dict]) -> Measured:
    """Profile one pass of each draft size, scheme by scheme."""
    config, context = synthetic_config(parameters.model), parameters.context
    for scheme, group in groupby(units, key=lambda unit: unit["scheme"]):
        of_scheme = list(group)
        try:
            model = synthetic_model(config, scheme, context + max(parameters.draft_sizes), seed=parameters.seed)
        except NotEnoughMemory as error:
            yield from ((unit, left_out(unit, error)) for unit in of_scheme)
            continue
        for unit in of_scheme:
            yield unit, profile_pass(model, unit["model"], "synthetic", unit["draft_size"], context)
        del model
        free("cuda")


MEASURE = Measure((TABLES["pass_profiles"],), Parameters, run, "torch.profiler, one pass")
