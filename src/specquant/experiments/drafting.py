"""What drafting costs: the time of an EAGLE-2 draft, and of a round in the hierarchy, on random weights."""

from collections.abc import Sequence
from time import perf_counter

import numpy as np
import torch

from specquant.decoding import EagleDrafter, Speculator
from specquant.decoding.replay import Replay, ReplayedTrees
from specquant.errors import SpecquantError
from specquant.models.eagle import EagleHead
from specquant.models.graphs import graphed
from specquant.models.llama import Llama

# EAGLE-2 trees of the paper: nodes and iterations.
TREES = ((24, 3), (30, 3), (48, 6), (60, 6))
# Of the EAGLE head: the scheme of its matrices and its LM head, and how many tokens this knows.
HEADS = ((None, None), ("w4a16-g128", None), ("w4a16-g128", 32768))
# The tree, and the acceptance, of the inner loop: of a head's tokens, one after the other.
INNER_TREE = (30, 3)
INNER_ACCEPTANCE = 0.8


def describe_head(head_scheme: str | None, head_vocabulary: int | None, config) -> dict:
    """The columns that say which head drafted."""
    return {"head_scheme": head_scheme or "fp16", "head_vocabulary": head_vocabulary or config.vocab_size}


@torch.inference_mode()
def draft_cost(
    head: EagleHead,
    draft_size: int,
    iterations: int,
    confirmed_rows: int = 4,
    context_length: int = 512,
    repeats: int = 50,
    warm_up: int = 3,
) -> dict:
    """Time EAGLE-2 drafts behind a context, each from `confirmed_rows` new tokens, until the tree is there.

    Returns the columns that say so: median, p10 and p90 in milliseconds, and `bytes`, what the head's iterations must
    read of its matrices and LM head. Raises SpecquantError where the context has fewer tokens than are new, or results
    are not finite: such a draft may take another time.
    """
    if not 1 <= confirmed_rows < context_length:
        raise SpecquantError(f"{confirmed_rows} new tokens do not fit a context of {context_length}: give at least 1")
    drafter = EagleDrafter(head, draft_size, iterations)
    generator = torch.Generator(head.device).manual_seed(0)
    shape = (context_length, head.config.hidden_size)
    features = torch.randn(shape, generator=generator, device=head.device).to(head.dtype)
    drafter.start([token % head.config.vocab_size for token in range(context_length + 1)], features, None)
    times_ms = []
    for repeat in range(warm_up + repeats):
        drafter.cache.truncate(context_length - confirmed_rows)
        _wait(head.device)
        began = perf_counter()
        tree = drafter.propose(iterations)
        _wait(head.device)
        if repeat >= warm_up:
            times_ms.append(1e3 * (perf_counter() - began))
    if len(tree) != draft_size or not drafter.cache.keys[:, :, :context_length].isfinite().all():
        raise SpecquantError("the EAGLE head computes numbers that are not finite")
    about = {"draft_size": draft_size, "iterations": iterations, "confirmed_rows": confirmed_rows}
    about |= {"context_length": context_length}
    return about | spread("time_ms", times_ms) | {"repeats": repeats, "bytes": iterations * head.bytes_read}


def inner_rounds(
    model: Llama, head: EagleHead, shapes: Sequence[Sequence[int]], context_length: int = 512, repeats: int = 100
) -> dict:
    """Time rounds of the inner loop: an EAGLE-2 draft, the model's pass over it, acceptance and cache compaction.

    Acceptance is replayed (`decoding.replay`): trees take `shapes`, parents of INNER_TREE's nodes, and each token of
    the longest path counts with the probability INNER_ACCEPTANCE. Returns the medians of the parts, and of the whole
    with p10 and p90, in milliseconds.
    """
    drafter = ReplayedTrees(EagleDrafter(head, *INNER_TREE), shapes, model.device)
    speculator = Speculator(graphed(model), drafter)
    prompt = [token % model.config.vocab_size for token in range(context_length)]
    rule, warm_up = Replay([INNER_ACCEPTANCE], INNER_ACCEPTANCE), 30  # in which all graphs are captured
    speculator.prefill(prompt, rule)
    times_ms, steps = [], []
    for _ in range(warm_up + repeats):
        began = perf_counter()
        steps.append(speculator.step(INNER_TREE[0]))
        times_ms.append(1e3 * (perf_counter() - began))
    steps, times_ms = steps[warm_up:], times_ms[warm_up:]
    parts = {part: np.median([getattr(step, part) for step in steps]) for part in ("draft_ms", "verify_ms", "other_ms")}
    about = {"draft_size": INNER_TREE[0], "iterations": INNER_TREE[1], "context_length": context_length}
    about |= {"accepted_length": np.mean([step.accepted_length for step in steps])}
    return about | parts | spread("time_ms", times_ms) | {"repeats": repeats}


def spread(name: str, times_ms: list[float]) -> dict[str, float]:
    """The median by its name, p10 and p90."""
    return {name: np.median(times_ms), "p10_ms": np.quantile(times_ms, 0.1), "p90_ms": np.quantile(times_ms, 0.9)}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
