"""What steps cost on the models at hand: a few are taken before decoding, each pass behind a draft."""

from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch

from specquant.decoding.acceptance import Greedy
from specquant.decoding.budget import SIZES, ConfidenceMap, Prices
from specquant.decoding.drafter import Around
from specquant.decoding.drafters.eagle2 import EagleDrafter
from specquant.decoding.speculator import Speculator
from specquant.decoding.tree import DraftTree
from specquant.errors import SpecquantError
from specquant.models.eagle import DraftHead
from specquant.models.graphs import GraphedLlama
from specquant.models.llama import Llama

CONTEXT = 32  # tokens in the cache; a pass hardly grows with it while it is read much less than the weights are
REPEATS = 5
# For which a GPU runs a step before it is timed. It is in the state that decoding has after some 110 ms of wide passes
# (`measure.settling`), and before that a wide pass is faster than there.
SETTLE_S = 0.15
MOST_TIMED = 8  # iterations: each further one takes as long as those did


@torch.inference_mode()
def measured_prices(
    model: Llama | GraphedLlama,
    head: DraftHead,
    iterations: int,
    top_k: int,
    vocab_size: int,
    confidence_map: ConfidenceMap,
) -> Prices:
    """Time a model's passes by draft size, and its head's drafts by iterations, up to as many as are given.

    A pass's time includes all that follows it in a step.

    Args:
        model: That verifies.
        head: That drafts for it.
        iterations: The most.
        top_k: Of the drafter.
        vocab_size: Of the drafter.
        confidence_map: Of the head.

    Raises:
        SpecquantError: The context has no room for a draft.
    """
    room = min(model.context_length, head.context_length)
    if room < 3:
        raise SpecquantError(f"the context is {room}: there is no room for a draft; give a longer one")
    iterations = min(iterations, room - 2)  # behind the shortest prompt there is no room for more
    timed = min(iterations, MOST_TIMED)
    sizes = [size for size in SIZES if size <= 1 + top_k + (iterations - 1) * top_k**2]
    largest = 1 + top_k + (timed - 1) * top_k**2  # where few are timed, they may grow no larger tree
    tokens = (torch.arange(min(CONTEXT, room - iterations - 1) + 1) % min(vocab_size, model.config.vocab_size)).tolist()
    drafter = _Timed(EagleDrafter(head, min(max(SIZES), largest), timed, top_k, vocab_size), len(tokens) + timed)
    level = Speculator(model, drafter, vocab_size=vocab_size)
    level.start(tokens, None, Greedy())

    def step(size: int, count: int) -> Times:
        drafter.size, drafter.count = size, count
        taken = level.step(timed + 1)
        level.commit(len(tokens) - 1, tokens[-1:])
        return Times(taken.draft_ms, taken.verify_ms + taken.other_ms)

    verify_ms = {1: _settled(partial(step, 1, 0), model.device).verify_ms}
    draft_ms = []
    for size, count in zip_longest(sizes, range(1, timed + 1)):  # larger trees behind longer drafts, as they are used
        times = _settled(partial(step, size or max(sizes, default=1), count or timed), model.device)
        draft_ms += [times.draft_ms] if count else []
        verify_ms |= {size: times.verify_ms} if size else {}
    each_ms = max(0.0, draft_ms[-1] - draft_ms[0]) / max(timed - 1, 1)
    draft_ms += [draft_ms[-1] + more * each_ms for more in range(1, iterations - timed + 1)]
    return Prices(verify_ms, draft_ms, confidence_map=confidence_map)


class Times(NamedTuple):
    """Of a step: its draft, and its pass with all that follows until the next step."""

    draft_ms: float
    verify_ms: float


class _Timed(Around):
    """Drafts by `count` iterations of an EAGLE head, and hands up a tree of `size` nodes, whichever were drafted."""

    def __init__(self, drafter: EagleDrafter, context_length: int):
        super().__init__(drafter)
        self.context_length, self.draft_size = context_length, max(SIZES)
        self.size, self.count = 1, 0
        tokens, device = [token % drafter.known_tokens for token in range(max(SIZES))], drafter.head.device
        self.trees = {n: DraftTree.from_lists(tokens[:n], [-1, *[0] * (n - 1)], device) for n in (1, *SIZES)}

    def propose(self, limit: int) -> DraftTree:
        if self.count:
            self.drafter.propose(self.count)
        return self.trees[self.size]


def _settled(step: Callable[[], Times], device: torch.device) -> Times:
    """The medians of `REPEATS` steps behind some that are not counted: the first captures graphs, and the others bring
    a GPU into the state that decoding has."""
    step()
    began = perf_counter()
    while device.type == "cuda" and perf_counter() - began < SETTLE_S:
        step()
    return Times(*map(median, zip(*(step() for _ in range(REPEATS)), strict=True)))
