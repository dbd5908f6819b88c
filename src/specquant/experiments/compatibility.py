"""Passes over drafts of some sizes behind a context, and what a GPU does in them."""

from collections.abc import Callable, Sequence

import pandas as pd
import torch

from specquant.errors import SpecquantError
from specquant.models.graphs import graphed
from specquant.models.llama import Llama, causal_mask

DRAFT_SIZES = (1, 2, 4, 8, 13, 16, 24, 30, 32, 48, 60, 64)


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
    about = {"model": name, "scheme": model.scheme.name, "weights": weights}
    about |= {"draft_size": draft_size, "context_length": context_length}
    columns = [*about, "kernel", "launches", "time_us", "alone_us", "span_us"]
    return table.reset_index(names="kernel").assign(**about)[columns]


# Parts of a pass, by what the names of their kernels contain; whatever is none of these is a matrix product.
PARTS = {
    "attention": "_attend|_join",
    "norms": "norm",
    "SwiGLU": "swiglu",
    "rotation": "rotate",
    "other": "at::native|Mem|quantize",
    "idle": "^idle$",
}


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


def prepare_passes(
    model: Llama, draft_sizes: Sequence[int], context_length: int
) -> dict[int, Callable[[], torch.Tensor]]:
    """A call for each draft size that runs it behind `context_length` cached positions and gives the logits.

    Raises SpecquantError where context and draft do not fit the model, or a size is below 1.
    """
    longest = model.context_length
    if not draft_sizes or min(draft_sizes) < 1 or context_length < 1 or context_length + max(draft_sizes) > longest:
        raise SpecquantError(
            f"draft sizes {list(draft_sizes)} behind a context of {context_length} do not fit: all must be at least 1 "
            f"and context plus draft at most {longest}"
        )
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.config.vocab_size, (context_length + max(draft_sizes),), generator=generator)
    tokens = tokens.to(model.device)
    cache = model.new_cache(len(tokens))
    model.prefill(tokens[:context_length], cache)
    model = graphed(model)

    def prepared(size: int) -> Callable[[], torch.Tensor]:
        rows = torch.arange(context_length, context_length + size, device=model.device)
        drafted, mask = tokens[rows], causal_mask(size, model.device)
        return lambda: model.logits(model(drafted, rows, cache, mask))

    return {size: prepared(size) for size in draft_sizes}
