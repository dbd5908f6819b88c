"""What drafting costs: the time of an EAGLE-2 draft, and of a round in the hierarchy, on random weights."""

from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np
import pandas as pd
import torch

from specquant.decoding import DraftTree, EagleDrafter, Speculator
from specquant.decoding.drafters import get_method, methods_with_trees
from specquant.decoding.drafters.replay import ReplayedTrees
from specquant.decoding.replay import Replay
from specquant.errors import SpecquantError
from specquant.experiments.timing import spread
from specquant.models.eagle import EagleHead
from specquant.models.graphs import graphed
from specquant.models.llama import Llama

# EAGLE-2 trees of the paper: nodes and iterations.
TREES = ((24, 3), (30, 3), (48, 6), (60, 6))
# Of the EAGLE head: the scheme of its matrices and its LM head, and how many tokens this knows.
HEADS = ((None, None), ("w4a16-g128", None), ("w4a16-g128", 32768))
# The same of the tiny models, whose vocabulary has 4096 entries: 1024 are as many as 32768 of 128256.
TINY_HEADS = ((None, None), ("w4a16-g128", None), (None, 2048), (None, 1024), ("w4a16-g128", 1024))
# What decodes with each of them: the first gives the tokens that the others must decode as well.
HEAD_METHODS = ("autoregressive", *methods_with_trees())
# The tree, and the acceptance, of the inner loop: of a head's tokens, one after the other.
INNER_TREE = (30, 3)
INNER_ACCEPTANCE = 0.8


def describe_head(head_scheme: str | None, head_vocabulary: int | None, config) -> dict:
    """The columns that say which head drafted."""
    return {"head_scheme": head_scheme or "fp16", "head_vocabulary": head_vocabulary or config.vocab_size}


@torch.inference_mode()
def prepare_draft(
    head: EagleHead, draft_size: int, iterations: int, confirmed_rows: int = 4, context_length: int = 512
) -> Callable[[], DraftTree]:
    """A call that drafts a tree from `confirmed_rows` new tokens behind a context of random features.

    Raises SpecquantError where the context has fewer tokens than are new, or results are not finite: such a draft may
    take another time.
    """
    if not 1 <= confirmed_rows < context_length:
        raise SpecquantError(f"{confirmed_rows} new tokens do not fit a context of {context_length}: give at least 1")
    drafter = EagleDrafter(head, draft_size, iterations)
    generator = torch.Generator(head.device).manual_seed(0)
    shape = (context_length, head.config.hidden_size)
    features = torch.randn(shape, generator=generator, device=head.device).to(head.dtype)
    drafter.start([token % head.config.vocab_size for token in range(context_length + 1)], features, None)

    def draft() -> DraftTree:
        drafter.cache.truncate(context_length - confirmed_rows)
        return drafter.propose(iterations)

    if len(draft()) != draft_size or not drafter.cache.keys[:, :, :context_length].isfinite().all():
        raise SpecquantError("the EAGLE head computes numbers that are not finite")
    return draft


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
    return about | parts | spread(times_ms) | {"repeats": repeats}


def head_costs(decoded: pd.DataFrame) -> list[dict]:
    """What a head reaches in rows of `throughput.decode_prompts`: one of each method that drafts with a head.

    accepted_length: the target's, tokens a step. head_accepted_length: of the model that verifies the head's trees: the
    target's by EAGLE-2, the intermediate model's in the hierarchy. differing_prompts: whose tokens are not those of
    decoding one by one.
    """
    rows = []
    for method, group in decoded.groupby("method", sort=False):
        if method == "autoregressive":
            continue
        accepted_length = (group.new_tokens - 1).sum() / group.steps.sum()
        head_accepted_length = accepted_length
        if get_method(method).trees_of == "intermediate":
            rounds = group.inner_rounds * group.steps
            head_accepted_length = (group.inner_accepted_length * rounds).sum() / rounds.sum()
        row = {"method": method, "prompts": len(group), "new_tokens": group.new_tokens.sum()}
        row |= {"accepted_length": accepted_length, "head_accepted_length": head_accepted_length}
        rows.append(row | {"differing_prompts": (group.first_difference >= 0).sum()})
    return rows


def compared_heads(rows: pd.DataFrame) -> pd.DataFrame:
    """With `ratio`: of head_accepted_length to that of the first head on the same target by the same method."""
    first = rows.groupby(["scheme", "method"], sort=False).head_accepted_length.transform("first")
    return rows.assign(ratio=rows.head_accepted_length / first)
